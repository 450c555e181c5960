"""The bridge to vLLM, against a stand-in that checks what vLLM 0.33 checks and then decodes.

The rules on the wire, from vLLM's source: strict base64 of a `torch.save`d tensor that loads with
`weights_only`, dense, two-dimensional, as wide as the model, of a floating type; `prompt` may be
lists of ids; with both, embeddings are answered first; unknown models are 404.
"""

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from crome.errors import InputError, JobError
from crome.model.answering import answer
from crome.rows import Row
from crome.serving.vllm import Server, load_front_end, prompts, sampling

from .streaming import RefusedError

FIELDS = {
    "model", "prompt", "prompt_embeds", "max_tokens", "temperature", "stop_token_ids", "stream",
    "top_p", "seed", "stop",
}  # fmt: skip


class StandIn:
    """vLLM's completions endpoint over a language model of transformers."""

    def __init__(self, language_model, tokenizer, enabled=True):
        self.language_model, self.tokenizer, self.enabled = language_model, tokenizer, enabled
        self.seen: list[dict] = []

    def prompts(self, body):
        """Embeddings (1, L, d) of each prompt, in the order of vLLM's answers."""
        if body.get("model") != "llm":
            raise RefusedError(404, f"The model `{body.get('model')}` does not exist.")
        if unknown := body.keys() - FIELDS:
            raise RefusedError(400, f"unknown {unknown}")  # vLLM lets them pass; a typo should not
        if not body.get("prompt") and not body.get("prompt_embeds"):
            raise RefusedError(400, "Either prompt or prompt_embeds must be provided.")
        embeds = [self.decode(text) for text in body.get("prompt_embeds", [])]
        for ids in body.get("prompt", []):
            assert ids
            assert all(isinstance(i, int) and i >= 0 for i in ids)
            embeds.append(self.language_model.get_input_embeddings()(torch.tensor([ids])))
        return embeds

    def decode(self, text):
        if not self.enabled:
            raise RefusedError(400, "You must set `--enable-prompt-embeds` to input them.")
        raw = base64.b64decode(text, validate=True)
        tensor = torch.load(io.BytesIO(raw), weights_only=True, map_location="cpu")
        assert isinstance(tensor, torch.Tensor)
        assert tensor.layout == torch.strided
        assert tensor.is_floating_point()
        assert tensor.dim() == 2
        assert tensor.shape[1] == self.language_model.config.hidden_size
        # Nothing else travels along: no gradients, and no storage beyond the prompt's own.
        assert not tensor.requires_grad
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
        self.seen.append(tensor)
        return tensor[None].to(self.language_model.dtype)

    def texts(self, body):
        for embeds in self.prompts(body):
            ids = self.language_model.generate(
                inputs_embeds=embeds,
                attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
                max_new_tokens=body["max_tokens"],
                do_sample=body["temperature"] > 0,
                eos_token_id=body["stop_token_ids"],
                pad_token_id=0,
            )
            yield self.tokenizer.decode(ids[0], skip_special_tokens=True)

    def respond(self, body):
        """Status, type and content of a reply."""
        try:
            texts = list(self.texts(body))
        except RefusedError as refused:
            status, message = refused.args
            return status, "application/json", json.dumps({"error": {"message": message}})
        choices = [{"index": n, "text": t, "finish_reason": "stop"} for n, t in enumerate(texts)]
        if not body.get("stream"):
            # Their order in the list is not promised.
            return 200, "application/json", json.dumps({"choices": choices[::-1]})
        events = [
            {"choices": [{"index": 0, "text": piece, "finish_reason": None}]}
            for piece in texts[0].partition(" ")
        ]
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        return 200, "text/event-stream", ": ping\n\n" + "".join(lines) + "data: [DONE]\n\n"


@pytest.fixture
def serve():
    """Starts a server that replies as told; returns its address."""
    running = []

    def start(respond):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                assert self.path == "/v1/completions"
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, kind, content = respond(body)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.end_headers()
                self.wfile.write(content.encode())

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        running.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/v1"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.fixture
def asked(pictures):
    def row(question, *images, history=()):
        return Row(images, question, "", "id", history=history)

    return [
        row("Is there a star?"),
        row("What is the colour?", pictures[0]),
        row("How many triangles are there? Answer with one word.", pictures[0], pictures[1]),
        row("And now?", history=(("Is there a star?", "no"),)),
        row("And now?", pictures[2], history=(("Is there a star?", "no"),)),
    ]


@pytest.mark.parametrize("language", ["llama", "vicuna"])
def test_vllm_answers_as_generate_does(build, serve, asked, language):
    """With two adapters and none in one batch; answers are greedy, in fp32."""
    pair = build(language=language)
    pair.model.task_adapters["a"] = type(pair.model.adapter)(32, 4)
    torch.nn.init.normal_(pair.model.task_adapters["a"].up["shared"].weight)
    names = ["a", None, "a", None, "a"]
    expected = answer(pair.model, pair.processor, asked, adapter_names=names, max_new_tokens=8)
    stand_in = StandIn(pair.model.language_model, pair.processor.tokenizer)
    server = Server(serve(stand_in.respond), "llm")
    ready = prompts(pair.model, pair.processor, asked, names)
    assert [sorted(p) for p in ready] == [
        ["prompt_token_ids"], ["prompt_embeds"], ["prompt_embeds"], ["prompt_token_ids"],
        ["prompt_embeds"],
    ]  # fmt: skip
    assert server.complete(ready, **sampling(pair.processor, 8)) == expected
    assert len(stand_in.seen) == 3
    for prompt, text in zip(ready, expected, strict=True):
        pieces = list(server.stream(prompt, **sampling(pair.processor, 8)))
        assert "".join(pieces).strip() == text


def test_the_front_end_needs_no_layer_of_the_language_model(build, asked, tmp_path):
    pair = build()
    pair.model.save_pretrained(tmp_path / "base")
    pair.processor.save_pretrained(tmp_path / "base")
    torch.nn.init.normal_(pair.model.adapter.up["shared"].weight)
    pair.model.save_adapter(tmp_path / "task")
    model, processor = load_front_end(
        str(tmp_path / "base"), {"t": tmp_path / "task"}, dtype="float32"
    )
    left = sum(p.numel() for p in model.language_model.parameters())
    assert left == 2 * 320 * 32 + 32  # embeddings, head and the last norm
    ours = prompts(model, processor, asked, ["t"] * 5)
    whole = prompts(pair.model, pair.processor, asked)  # whose own adapter is the task's
    for a, b in zip(ours, whole, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) if k == "prompt_embeds" else a[k] == b[k] for k in a)


def test_an_encoder_decoder_is_refused(build, tmp_path):
    pair = build(language="t5")
    pair.model.save_pretrained(tmp_path)
    pair.processor.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="encoder-decoder"):
        load_front_end(str(tmp_path), dtype="float32")


def test_what_vllm_refuses_is_said(build, serve, asked):
    pair = build()
    stand_in = StandIn(pair.model.language_model, pair.processor.tokenizer, enabled=False)
    url, settings = serve(stand_in.respond), sampling(pair.processor, 4)
    ready = prompts(pair.model, pair.processor, asked)
    with pytest.raises(JobError, match=r"HTTP 400: .*Start it with --enable-prompt-embeds\."):
        Server(url, "llm").complete(ready, **settings)
    with pytest.raises(JobError, match=r"HTTP 404: .*`other` does not exist"):
        Server(url, "other").complete(ready, **settings)
    assert Server(url, "llm").complete([], **settings) == []


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ('{"choices": [{"index": 0, "text": "one"}]}', r"sent 1 answers to 2 prompts"),
        ('{"choices": [{"index": 0, "text": "one"}, {"index": 0, "text": "two"}]}', r"sent 1"),
        ("<html>", r"expected JSON from vLLM, got b'<html>'"),
        ("[]", r"expected JSON"),
    ],
)
def test_a_server_that_is_not_vllm(serve, reply, message):
    url = serve(lambda _: (200, "application/json", reply))
    with pytest.raises(JobError, match=message):
        Server(url, "llm").complete([{"prompt_token_ids": [1]}, {"prompt_token_ids": [2]}])


def test_a_stream_that_breaks_off(serve):
    piece = 'data: {"choices": [{"index": 0, "text": "half an"}]}\n\n'
    stream = Server(serve(lambda _: (200, "text/event-stream", piece)), "llm").stream(
        {"prompt_token_ids": [1]}
    )
    assert next(stream) == "half an"
    with pytest.raises(JobError, match="broke off in the middle of an answer"):
        next(stream)


def test_no_server():
    with pytest.raises(JobError, match="cannot be reached"):
        Server("http://127.0.0.1:9/v1", "llm").complete([{"prompt_token_ids": [1]}])
    with pytest.raises(InputError, match="http://localhost:8000/v1"):
        Server("localhost:8000", "llm")
