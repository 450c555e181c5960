"""An attached model over a vLLM: its pictures as image embeddings, against a stand-in.

The stand-in keeps vLLM's rules on the wire: a part of a message holds one picture, as strict
base64 of a tensor that `torch.load(weights_only=True)` reads; (N, d) alone, or with a grid (3,)
where positions hang on it, and d counts the additions to further layers. It writes the model's own
chat template, and the first piece of a stream has the token ids of the prompt.
"""

import base64
import io
import queue
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from crome.attached import attach
from crome.attached.encoding import Encoded
from crome.checkpoints.loading import load
from crome.errors import InputError
from crome.rows import Place, Row
from crome.serving.engine.image_embeds import embeddings
from crome.serving.engine.protocol import EngineError, Request
from crome.serving.engine.remote import RemoteEngine
from crome.serving.engine.sampling import Sampling
from crome.serving.prompts import prompt_of
from crome.serving.vllm import load_front_end

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("benchmarks/ is not part of this installation", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import tiny_vlms  # noqa: E402

from .streaming import RefusedError, streaming  # noqa: E402

TOKENS = 6
KNOWN = {
    "model", "messages", "stream", "max_tokens", "stop", "temperature", "top_p", "seed",
    "presence_penalty", "frequency_penalty", "logprobs", "top_logprobs", "stop_token_ids",
    "return_token_ids", "return_tokens_as_token_ids", "top_k", "min_p", "repetition_penalty",
    "chat_template_kwargs", "structured_outputs", "prompt",
}  # fmt: skip
GRIDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


class StandIn:
    """What a vLLM does with a request."""

    def __init__(self, vlm, processor):
        self.vlm, self.processor, self.bodies = vlm, processor, []
        self.prefix = []

    def tensor(self, text):
        return torch.load(io.BytesIO(base64.b64decode(text, validate=True)), weights_only=True)

    def picture(self, part):
        value = part["image_embeds"]
        if self.vlm.config.model_type in GRIDS:
            if set(value) != {"image_embeds", "image_grid_thw"}:
                raise RefusedError(400, "image_grid_thw is required")
            grid = self.tensor(value["image_grid_thw"])
            assert grid.shape == (3,)
            assert not grid.is_floating_point()
            embeds = self.tensor(value["image_embeds"])
            merge = self.vlm.config.vision_config.spatial_merge_size
            assert len(embeds) == int(grid.prod()) // merge**2
        else:
            assert isinstance(value, str)
            embeds, grid = self.tensor(value), None
        levels = getattr(self.vlm.config.vision_config, "deepstack_visual_indexes", None) or ()
        width = self.vlm.config.get_text_config().hidden_size * (1 + len(levels))
        if embeds.ndim != 2 or embeds.shape[1] != width:
            raise RefusedError(400, f"expected width {width}, got {tuple(embeds.shape)}")
        return embeds, grid

    def events(self, body):
        assert set(body) <= KNOWN, set(body) - KNOWN
        if "prompt" in body:
            yield from self.continued({"input_ids": torch.tensor(body["prompt"])}, body, "text")
            return
        pictures, messages = [], []
        for message in body["messages"]:
            parts = []
            for part in message["content"]:
                if part["type"] == "image_embeds":
                    pictures.append(self.picture(part))
                    parts.append({"type": "image"})
                else:
                    assert set(part) == {"type", "text"}
                    assert part["type"] == "text"
                    parts.append(part)
            messages.append({"role": message["role"], "content": parts})
        text = self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False, **body["chat_template_kwargs"]
        )
        pieces = text.split(self.processor.image_token)
        assert len(pieces) - 1 == len(pictures)
        ids = self.ids(pieces[0])
        for (embeds, _), piece in zip(pictures, pieces[1:], strict=True):
            ids += [self.processor.image_token_id] * len(embeds) + self.ids(piece)
        yield from self.continued(self.inputs(self.prefix + ids, pictures), body, "chat")

    def ids(self, text):
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    def inputs(self, ids, pictures):
        call = {"input_ids": torch.tensor([ids])}
        if not pictures:
            return call
        embeds, grids = [e for e, _ in pictures], [g for _, g in pictures]
        width = self.vlm.config.get_text_config().hidden_size
        pooled = [e[:, :width] for e in embeds]
        behind = range(width, embeds[0].shape[1], width)
        levels = [[e[:, i : i + width] for e in embeds] for i in behind]
        encoded = Encoded(pooler_output=pooled, deepstack_features=levels or None)
        call["mm_encoder_outputs"] = {"image": encoded}
        if grids[0] is not None:
            call["image_grid_thw"] = torch.stack(grids)
            types = call["input_ids"] == self.processor.image_token_id
            call["mm_token_type_ids"] = types.int()
        return call

    def continued(self, call, body, kind):
        ids = call["input_ids"]
        output = self.vlm.generate(
            **call, attention_mask=torch.ones_like(ids), max_new_tokens=body["max_tokens"],
            do_sample=False, eos_token_id=body["stop_token_ids"], pad_token_id=0,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        new = output.sequences[0, ids.shape[1] :].tolist()
        for n, token in enumerate(new):
            before = self.processor.tokenizer.decode(new[:n], skip_special_tokens=True)
            text = self.processor.tokenizer.decode(new[: n + 1], skip_special_tokens=True)
            stopped = token in body["stop_token_ids"]
            last = n + 1 == len(new)
            finish = "stop" if stopped else "length" if last else None
            choice = {"index": 0, "finish_reason": finish, "token_ids": [token]}
            if kind == "chat":
                choice["delta"] = {"content": text[len(before) :]}
                if body.get("logprobs"):
                    p = float(output.logits[n][0].log_softmax(-1)[token])
                    top = {"token": f"token_id:{token}", "logprob": p, "bytes": None}
                    choice["logprobs"] = {"content": [{**top, "top_logprobs": [top]}]}
            else:
                choice["text"] = text[len(before) :]
            event = {"id": "x", "created": 0, "model": "vlm", "choices": [choice],
                     "object": "chat.completion.chunk"}  # fmt: skip
            if n == 0 and kind == "chat":
                event["prompt_token_ids"] = ids[0].tolist()
            yield event


@pytest.fixture(scope="module", params=["llava", "qwen2_5_vl", "qwen3_vl"])
def served(request, tmp_path_factory):
    """An attached model with two adapters, and a vLLM over the bare model."""
    vlm, processor = tiny_vlms.build(request.param)
    bare, theirs = tiny_vlms.build(request.param)
    stand_in = StandIn(bare.eval(), theirs)
    model, prepared = attach(vlm, processor, bottleneck=8)
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        torch.nn.init.normal_(model.adapter.up["shared"].weight, std=2.0)
        folder = tmp_path_factory.mktemp("adapters") / name
        model.save_adapter(folder)
        model.load_adapter(folder, name)
        model.set_adapter(None)
    torch.nn.init.zeros_(model.adapter.up["shared"].weight)

    with streaming(stand_in) as url:
        engine = RemoteEngine(model.eval(), prepared, url, "vlm")
        engine.start()
        yield engine, stand_in
        engine.close(5)


def rows():
    small, wide = Image.new("RGB", (50, 50), "red"), Image.new("RGB", (90, 40), "blue")
    return [
        Row((small,), "What is it?", "", "1"),
        Row((wide,), "What colour is it, and why would you say that?", "", "2"),
        Row((), "Is it text?", "", "3"),
        Row((small,), "And now?", "", "4", history=(("What is it?", "red"),)),
        Row((small, wide), "Are  and  alike?", "", "5",
            places=(Place("image", 0, 4), Place("image", 0, 9))),
    ]  # fmt: skip


def ask(engine, row, adapter=None, **settings):
    pieces = queue.Queue()
    engine.submit(
        Request(
            prompt_of(engine.processor, row, adapter), pieces.put, max_new_tokens=TOKENS,
            end_ids=tuple(engine.processor.end_ids), **settings,
        )
    )  # fmt: skip
    found = []
    while not found or found[-1].finish is None:
        found.append(pieces.get(timeout=60))
    if found[-1].error:
        raise found[-1].error
    return found


def test_answers_are_those_of_generate_with_every_adapter(served):
    engine, stand_in = served
    seen = set()
    for adapter in (None, "a", "b"):
        for row in rows():
            batch = engine.processor.encode([row])
            ends = engine.processor.generation_kwargs
            ids = engine.model.generate(**batch, adapter_names=[adapter], max_new_tokens=TOKENS,
                                        do_sample=False, **ends)  # fmt: skip
            expected = [t for t in ids[0].tolist() if t not in engine.processor.end_ids]
            found = [t.id for piece in ask(engine, row, adapter) for t in piece.tokens]
            assert found == expected, (adapter, row.id)
            seen.add(tuple(found))
            path = "/v1/chat/completions" if row.images else "/v1/completions"
            assert stand_in.bodies[-1][0] == path
    assert len(seen) > 5  # adapters and pictures make a difference


def test_log_probabilities_of_the_chat_endpoint(served):
    engine, _ = served
    tokens = [t for piece in ask(engine, rows()[0], sampling=Sampling(logprobs=1))
              for t in piece.tokens]  # fmt: skip
    assert tokens
    assert all(t.logprob <= 0 and t.top[0][0] == t.id for t in tokens)


def test_a_vllm_that_writes_another_prompt_is_refused(served):
    engine, stand_in = served
    stand_in.prefix = [1]
    try:
        with pytest.raises(EngineError, match=r"another prompt.*--chat-template-content-format"):
            ask(engine, rows()[0])
    finally:
        stand_in.prefix = []


def test_families_without_image_embeddings_are_refused_by_name():
    model, processor = attach(*tiny_vlms.build("gemma3"), bottleneck=8)
    with pytest.raises(InputError, match="no image embeddings of gemma3"):
        RemoteEngine(model, processor, "http://127.0.0.1:9/v1", "x")


def test_the_front_end_of_a_folder_makes_the_same_embeddings_without_layers(tmp_path):
    vlm, processor = tiny_vlms.build("llava")
    vlm.save_pretrained(tmp_path / "vlm")
    processor.save_pretrained(tmp_path / "vlm")
    whole, prepared = load(str(tmp_path / "vlm"), dtype="float32", device="cpu")
    torch.nn.init.normal_(whole.adapter.up["shared"].weight, std=2.0)
    whole.save_adapter(tmp_path / "a")
    front, theirs = load_front_end(str(tmp_path / "vlm"), {"a": tmp_path / "a"}, dtype="float32")
    assert len(front.language_model.layers) == 0
    whole.load_adapter(tmp_path / "a", "a")
    found = embeddings(front, prompt_of(theirs, rows()[4], "a"))
    expected = embeddings(whole.eval(), prompt_of(prepared, rows()[4], "a"))
    bare = embeddings(front, prompt_of(theirs, rows()[4]))
    for one, other, plain in zip(found, expected, bare, strict=True):
        assert torch.equal(one["image_embeds"], other["image_embeds"])
        assert not torch.equal(one["image_embeds"], plain["image_embeds"])
