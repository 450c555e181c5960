"""What a user of transformers tries first on an attached model: it works, or one line says why not.

The checks of `tests/model/test_conventions.py`, for the other kind of model.
"""

import copy
import itertools
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GenerationConfig, pipeline
from transformers.generation import LogitsProcessor

from crome import attached
from crome.attached import AttachedModel, opening
from crome.attached.files import ADAPTER_FILE
from crome.errors import InputError
from crome.rows import Row

GREEDY = {"max_new_tokens": 4, "do_sample": False}
QUESTIONS = ("What is it?", "How many of the things here do you see?", "x")


@pytest.fixture(params=["llava", "qwen2_5_vl"])
def one(case, request):
    """A family with positions in a row, and one with positions in a plane."""
    found = case(request.param)
    found.draw()
    return found


def batch_of(one, pictures=(None,), questions=QUESTIONS, answer=None):
    shown = [one.small if picture is None else picture for picture in pictures]
    rows = [Row((p,), q, answer or "", f"{q}{n}") for n, p in enumerate(shown) for q in questions]
    return one.placed(dict(one.processor.encode(rows, answers=answer is not None)))


# ---------------------------------------------------------------------- parts of a batch


def test_without_a_mask_nothing_is_padding(one):
    batch = batch_of(one, questions=QUESTIONS[:1])
    expected, answer = one.model(**batch).logits, one.model.generate(**batch, **GREEDY)
    assert torch.equal(one.model(**{**batch, "attention_mask": None}).logits, expected)
    del batch["attention_mask"]
    assert torch.equal(one.model(**batch).logits, expected)
    assert torch.equal(one.model.generate(**batch, **GREEDY), answer)


def test_hidden_states_are_those_of_the_language_model(one):
    batch = batch_of(one)
    output = one.model(**batch, output_hidden_states=True)
    layers = one.model.language_model.config.get_text_config().num_hidden_layers
    assert len(output.hidden_states) == layers + 1
    head = one.model.get_output_embeddings()
    torch.testing.assert_close(head(output.hidden_states[-1]), output.logits)


def narrower(batch):
    return {"labels": batch["labels"][:, 2:]}


def wider(batch):
    return {"labels": torch.nn.functional.pad(batch["labels"], (0, 3), value=5)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (narrower, r"labels is \(3, \d+\) and input_ids \(3, \d+\); expected one value"),
        (wider, r"labels is \(3, \d+\) and input_ids"),
        (lambda batch: {"labels": batch["labels"][:2]}, r"labels is \(2, \d+\)"),
        (lambda batch: {"attention_mask": batch["attention_mask"][:, 1:]}, "attention_mask is"),
        (lambda _: {"input_ids": torch.ones(5)}, r"input_ids is \(5,\); expected \(rows, tokens"),
        (lambda _: {"media_index": torch.tensor([0])}, "media_index has 1 rows for 3 questions"),
        (lambda _: {"media_index": torch.full((3,), 4)}, "names set 4, and the batch has 1"),
        (lambda _: {"media_index": torch.tensor([0, -1, 0])}, "row 1 .* shows none"),
        (lambda _: {"media": None, "media_index": None}, "row 0 of the batch has places for media"),
        (lambda _: {"features": [None, None]}, "2 features for 1 sets of media"),
        (lambda _: {"adapter_names": ["a"]}, "1 adapter names for 3 rows"),
        (lambda _: {"adapter_names": ["a"] * 3}, "no adapter named 'a' is loaded"),
        (lambda _: {"pixel_values": torch.zeros(1, 3, 4, 4)}, "pixel_values is nothing that"),
        (lambda _: {"answer": ["yes"]}, "answer is nothing that this model takes"),
    ],
)
def test_parts_that_disagree_are_named(one, change, message):
    batch = batch_of(one, answer="red")
    with pytest.raises(InputError, match=message):
        one.model(**{**batch, **change(batch)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_new_tokens": 0}, "an answer of 0 tokens; expected max_new_tokens above 0"),
        ({"max_new_tokens": None, "max_length": 3}, "an answer of -"),
        ({"inputs_embeds": torch.zeros(3, 9, 32)}, "inputs_embeds is nothing that"),
        ({"pixel_values": torch.zeros(1, 3, 4, 4)}, "pixel_values is nothing that"),
        ({"input_ids": None}, "there are no input_ids"),
        ({"media": None}, "row 0 of the batch has places for media and shows none"),
    ],
)
def test_answers_refuse_what_would_be_wrong(one, change, message):
    with pytest.raises(InputError, match=message):
        one.model.generate(**{**batch_of(one), **GREEDY, **change})


def test_no_row_is_longer_than_the_language_model_reads(one, monkeypatch):
    """In `forward` too, and whatever names the length of an answer."""
    batch, longest = batch_of(one, answer="red"), 0
    labels = batch.pop("labels")
    longest = int(one.model.lengths(**batch).max())
    text = one.model.language_model.config.get_text_config()
    monkeypatch.setattr(text, "max_position_embeddings", longest - 1)
    for more in ({}, {"labels": labels}):
        with pytest.raises(InputError, match=rf"row \d .* the language model reads {longest - 1}"):
            one.model(**batch, **more)
    monkeypatch.setattr(text, "max_position_embeddings", longest + 3)
    assert one.model(**batch, labels=labels).loss.isfinite()
    config = GenerationConfig(max_new_tokens=30, do_sample=False)
    for settings in ({}, {"max_length": 999}, {"generation_config": config}):
        with pytest.raises(InputError, match="and an answer of up to"):
            one.model.generate(**batch, **settings)


# ---------------------------------------------------------------------- the model


def test_it_can_generate_and_says_how(one):
    model = one.model
    assert model.can_generate()
    assert model.generation_config is model.vlm.generation_config
    assert model.get_decoder() is model.vlm.get_decoder()
    assert model.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_copy_may_change_its_type(one, dtype):
    batch = batch_of(one, answer="red")
    expected = one.model(**batch).loss
    model = copy.deepcopy(one.model).to(dtype)
    assert model.dtype == dtype
    tolerance = {torch.float64: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
    assert model(**batch).loss.item() == pytest.approx(expected.item(), rel=tolerance)
    assert torch.equal(one.model(**batch).loss, expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.resize_token_embeddings(400),
        lambda model: model.set_input_embeddings(torch.nn.Embedding(4, 4)),
        lambda model: model.set_output_embeddings(torch.nn.Linear(4, 4)),
    ],
)
def test_the_vocabulary_is_not_changed(one, change):
    batch = batch_of(one)
    expected = one.model(**batch).logits
    with pytest.raises(InputError, match="frozen: its embeddings are neither replaced nor resized"):
        change(one.model)
    assert torch.equal(one.model(**batch).logits, expected)


def test_weights_are_not_drawn_anew(one):
    batch = batch_of(one)
    expected = one.model(**batch).logits
    one.model.init_weights()
    one.model.tie_weights()
    assert torch.equal(one.model(**batch).logits, expected)


def test_gradient_checkpointing_can_be_switched(one):
    batch, weight = batch_of(one, answer="red"), one.model.adapter.up["shared"].weight
    one.model.zero_grad()
    one.model(**batch).loss.backward()
    expected = weight.grad.clone()
    one.model.zero_grad()
    one.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert one.model.is_gradient_checkpointing
    one.model(**batch).loss.backward()
    torch.testing.assert_close(weight.grad, expected)
    one.model.gradient_checkpointing_disable()
    assert not one.model.is_gradient_checkpointing
    one.model.zero_grad()


def test_image_features_are_the_visual_tokens(one):
    batch = batch_of(one, questions=QUESTIONS[:1])
    tokens = one.model.get_image_features(**batch["media"][0])
    seen = []
    handle = one.model.get_decoder().register_forward_pre_hook(
        lambda _, __, given: seen.append(given["inputs_embeds"]), with_kwargs=True
    )
    one.model(**batch)
    handle.remove()
    (wanted,) = one.model.placeholders & set(batch["input_ids"][0].tolist())
    torch.testing.assert_close(seen[0][batch["input_ids"] == wanted], torch.cat(tokens))


def test_it_is_loaded_by_transformers_and_not_by_itself(tmp_path):
    with pytest.raises(InputError, match=r"load the base with transformers, then crome\.attach"):
        AttachedModel.from_pretrained(tmp_path)


def test_saving_honours_or_refuses(one, monkeypatch, tmp_path):
    sent = []
    monkeypatch.setattr("crome.attached.modeling.upload_folder", lambda *a: sent.append(a))
    with pytest.raises(InputError, match=r"an adapter is one file .* cannot honour variant"):
        one.model.save_pretrained(tmp_path / "a", variant="fp16")
    one.model.save_pretrained(tmp_path / "b", is_main_process=False)
    assert not list(tmp_path.iterdir())
    one.model.save_pretrained(tmp_path / "c", push_to_hub="me/it", max_shard_size="1GB")
    assert (tmp_path / "c" / ADAPTER_FILE).is_file()
    assert sent == [(tmp_path / "c", "me/it")]
    with pytest.raises(InputError, match="an attached processor has no files of its own"):
        one.processor.save_pretrained(tmp_path / "d", push_to_hub=True)


# ---------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.8},
        {"no_repeat_ngram_size": 2},
        {"repetition_penalty": 1.5, "num_beams": 2},
        {"min_new_tokens": 3},
        {"begin_suppress_tokens": [5, 6, 7]},
        {"eos_token_id": [2]},
        {"max_new_tokens": None},
        {"generation_config": GenerationConfig(repetition_penalty=1.8, max_new_tokens=4)},
    ],
)
def test_a_batch_says_what_its_rows_say_alone(one, settings):
    """Padding has the id of a likely word, as it has that of the end token in many models."""
    pictures = (None, one.large)
    alone = [batch_of(one, (p,), (q,)) for p in pictures for q in QUESTIONS]
    shortest = one.model.generate(**alone[2], **GREEDY, eos_token_id=None)
    word = int(shortest[0, 0])
    whole = {**GREEDY, "eos_token_id": None, "pad_token_id": word, **settings}
    together = batch_of(one, pictures)
    together["input_ids"][together["attention_mask"] == 0] = word
    found = one.model.generate(**together, **whole).tolist()
    for ids, batch in zip(found, alone, strict=True):
        expected = one.model.generate(**batch, **whole)[0].tolist()
        assert ids[: len(expected)] == expected


class Seen(LogitsProcessor):
    def __init__(self):
        self.ids = []

    def __call__(self, input_ids, scores):
        self.ids.append(input_ids)
        return scores


def test_an_opening_is_read_apart_only_where_nothing_reads_ids(case, monkeypatch):
    one = case("llava")
    one.draw()
    read, openings = opening.read, []
    monkeypatch.setattr(opening, "read", lambda *a: openings.append(a) or read(*a))
    batch, idle = batch_of(one), {"repetition_penalty": 1.0, "num_beams": 1}
    one.model.generate(**batch, **GREEDY, **idle)
    assert len(openings) == 1
    seen = Seen()
    for more in (
        {"repetition_penalty": 1.2}, {"no_repeat_ngram_size": 2}, {"bad_words_ids": [[5, 6]]},
        {"logits_processor": [seen]}, {"generation_config": GenerationConfig(num_beams=2)},
        {"prefix_allowed_tokens_fn": lambda *_: list(range(9))},
    ):  # fmt: skip
        one.model.generate(**batch, **GREEDY, **more)
    assert len(openings) == 1
    mask = batch["attention_mask"].bool()
    lengths, width = mask.sum(1).tolist(), mask.shape[1]
    for ids, own, length in zip(seen.ids[0], batch["input_ids"], lengths, strict=True):
        assert torch.equal(ids[width - length :], own[:length])


def test_threads_take_turns_where_a_model_writes_positions_down(case):
    """Models with positions in a plane write them down on themselves between their steps."""
    one = case("qwen2_5_vl")
    batches = [batch_of(one, (p,), QUESTIONS[:1]) for p in (one.small, one.large)]
    expected = [one.model.generate(**batch, **GREEDY, eos_token_id=None) for batch in batches]
    steps: list[int] = []
    found: dict[int, torch.Tensor] = {}

    def work(number: int) -> None:
        found[number] = one.model.generate(**batches[number], **GREEDY, eos_token_id=None)
        one.model(**batches[number])

    def pause(*_: object) -> None:
        steps.append(threading.get_ident())
        time.sleep(0.002)  # for the other thread to come in, if it may

    handle = one.model.vlm.register_forward_pre_hook(pause)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handle.remove()
    assert len(steps) == 2 * (GREEDY["max_new_tokens"] + 1)
    changes = sum(a != b for a, b in itertools.pairwise(steps))
    assert changes <= 3  # an answer is never divided, a pass may stand between
    assert all(torch.equal(found[i], expected[i]) for i in range(2))


@pytest.fixture(scope="module")
def scaled(case):
    """LLaVA on a language model whose rotary positions depend on the longest row of a batch."""
    case("llava")  # finds the module below
    import tiny_vlms

    config = tiny_vlms.config_of("llava")
    rope = {"rope_type": "dynamic", "factor": 20.0, "rope_theta": 100.0}
    config.text_config.rope_parameters = rope
    config.text_config.max_position_embeddings = 24
    processor = tiny_vlms.processor_of("llava")
    tiny_vlms.set_tokens(config, processor)
    torch.manual_seed(0)
    vlm = tiny_vlms.model_class("llava")(config).eval()
    tiny_vlms.draw(vlm, 0)
    model, processor = attached.attach(vlm, processor, bottleneck=8)
    for weight in model.adapter.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return model, processor


def test_rows_that_would_scale_each_other_are_read_apart(scaled):
    model, processor = scaled
    red, blue = (Image.new("RGB", (40, 40), colour) for colour in ("red", "blue"))
    rows = [Row((red,), q, "red", q) for q in QUESTIONS] + [Row((blue,), "Why?", "so", "4")]
    rows.append(Row((), "And without a picture?", "no", "5"))
    options = processor.options([["yes", "no it is not"]] * len(rows))
    together = processor.encode(rows, answers=True)
    losses = model(**together).token_losses
    prompts = processor.encode(rows)
    logits, ranked = model(**prompts).logits, model.option_losses(**options, **prompts)
    answers = model.generate(**prompts, **GREEDY, pad_token_id=0)
    alone = []
    for number, row in enumerate(rows):
        batch = processor.encode([row])
        own = model(**batch).logits[0]
        torch.testing.assert_close(logits[number, : len(own)], own)
        mine = processor.options([["yes", "no it is not"]])
        torch.testing.assert_close(
            ranked[2 * number : 2 * number + 2], model.option_losses(**mine, **batch)
        )
        expected = model.generate(**batch, **GREEDY, pad_token_id=0)[0]
        assert torch.equal(answers[number, : len(expected)], expected)
        alone.append(model(**processor.encode([row], answers=True)).token_losses)
    torch.testing.assert_close(losses, torch.cat(alone))


# ---------------------------------------------------------------------- the processor


def test_pixels_are_pictures(one):
    array = np.asarray(one.small)
    expected = one.processor(images=[one.small], text="What?")
    channels_first = torch.tensor(array).permute(2, 0, 1)
    for pixels in (array, channels_first, array / 255.0):
        for images in (pixels, [pixels], [[pixels]], pixels[None]):
            found = one.processor(images=images, text="What?")
            assert torch.equal(found["input_ids"], expected["input_ids"])
            for name, tensor in expected["media"][0].items():
                torch.testing.assert_close(found["media"][0][name], tensor)


@pytest.mark.parametrize(
    ("keyword", "message"),
    [
        ({"answer": ["yes"]}, "answer=.*did you mean answers"),
        ({"return_tensors": "np"}, "return_tensors='np'; leave it out"),
        ({"max_length": 3}, "max_length=3"),
        ({"histories": [(), ()]}, "2 histories for 1 questions"),
        ({"systems": ["a", "b"]}, "2 systems for 1 questions"),
    ],
)
def test_a_call_refuses_what_it_would_ignore(one, keyword, message):
    with pytest.raises(InputError, match=message):
        one.processor(images=[one.small], text=["What?"], **keyword)


def test_a_system_message_of_a_row_is_shown(one):
    row = Row((one.small,), "What?", "", "0", system="Be brief.")
    found = one.processor(images=[one.small], text=["What?"], systems=["Be brief."])
    assert torch.equal(found["input_ids"], one.processor.encode([row])["input_ids"])


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl", "gemma3"])
def test_a_conversation_is_read_as_the_models_own_processor_does(case, kind):
    one = case(kind)
    parts = [{"type": "text", "text": "Look: "}, {"type": "image", "image": one.small},
             {"type": "text", "text": "what is it?"}]  # fmt: skip
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
    ]
    wanted = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    own = one.own.apply_chat_template([messages], add_generation_prompt=True, **wanted)
    found = one.processor.apply_chat_template(messages, add_generation_prompt=True, **wanted)
    assert torch.equal(found["input_ids"], own["input_ids"])
    plain = [*messages[:2], {"role": "user", "content": "Why?"}]
    text = one.processor.apply_chat_template([plain, messages])
    assert text[0] == text[1]
    assert one.model.generate(**found, **GREEDY).shape[0] == 1


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([{"role": "user", "content": [{"type": "image"}]}], "'image' without content"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "without a"),
        ([{"role": "user", "content": [{"type": "audio", "path": "a.wav"}]}], "has audio, and"),
        ([{"role": "user", "content": [{"type": "sound"}]}], "a part of type 'sound'"),
        ([], "without a question"),
    ],
)  # fmt: skip
def test_conversations_that_end_otherwise_are_refused(one, messages, reason):
    with pytest.raises(InputError, match=reason):
        one.processor.apply_chat_template([messages])


def test_a_pipeline_answers(one):
    pipe = pipeline("image-text-to-text", model=one.model, processor=one.processor)
    parts = [{"type": "image", "image": one.small}, {"type": "text", "text": "What is it?"}]
    chat = [{"role": "user", "content": parts}]
    settings = {"generate_kwargs": {"do_sample": False}, "max_new_tokens": 4}
    (found,) = pipe(text=chat, return_full_text=False, **settings)
    batch = batch_of(one, questions=QUESTIONS[:1])
    ids = one.model.generate(**batch, **GREEDY)
    assert found["generated_text"] == one.processor.batch_decode(ids)[0]


# ---------------------------------------------------------------------- what is attached to


def wrapped(vlm):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(vlm, LoraConfig(r=2, target_modules=["q_proj"]))


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        (torch.compile, "it is compiled: give the model itself"),
        (lambda vlm: vlm.model, "it has no head for words"),
        (lambda vlm: "llava", "give a loaded model"),
        (lambda vlm: attached.AttachedModel(vlm, bottleneck=8), "it has an adapter: give its vlm"),
        (wrapped, "merge_and_unload"),
    ],
    ids=["compiled", "inner", "text", "attached", "peft"],
)
def test_what_is_no_plain_model_is_refused_with_the_remedy(case, given, remedy):
    if given is wrapped:
        pytest.importorskip("peft", reason="wraps a model with LoRA of PEFT")
    one = case("llava")
    with pytest.raises(InputError, match=remedy):
        attached.attach(given(copy.deepcopy(one.vlm)), one.own)


@pytest.mark.parametrize("bottleneck", [None, 0, -1, 10**15])
def test_a_bottleneck_that_cannot_be_is_one_line(case, bottleneck):
    with pytest.raises(InputError, match="bottleneck is"):
        attached.attach(case("llava").vlm, case("llava").own, bottleneck=bottleneck)


def test_a_branch_that_is_named_twice_is_one(case):
    one = case("llava")
    model, _ = attached.attach(one.vlm, one.own, branches=["image", "image"], bottleneck=8)
    assert model.adapter_settings["branches"] == ["image"]


@pytest.mark.parametrize("kind", ["lfm2_vl", "llava", "paligemma"])
def test_penalties_do_not_count_padding(case, kind):
    if kind == "lfm2_vl":
        pytest.importorskip("torchvision", reason="pictures of LFM2-VL need torchvision")
    one = case(kind)
    one.draw()
    rows = [(one.small, "what is it?"), (one.small, "is it a large red one?"), (one.small, "why?")]
    settings = {"encoder_repetition_penalty": 1.5, "repetition_penalty": 1.2}
    together = one.greedy(one.batch(rows), **settings)
    for answer, row in zip(together, rows, strict=True):
        (alone,) = one.greedy(one.batch([row]), **settings)
        assert torch.equal(answer[: len(alone)], alone)
