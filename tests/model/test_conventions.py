"""What a user of transformers tries first: it works, or one line says why not.

The checks are those that transformers makes of its own models, generation and processors, as far
as they mean something for a composite of frozen towers.
"""

import copy
import inspect
import pickle
import threading
import warnings

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    pipeline,
)

from crome.errors import InputError
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor, as_picture
from crome.model.prompting import read_conversation

GREEDY = {"max_new_tokens": 4, "do_sample": False}


@pytest.fixture
def saved(build, tmp_path):
    """A model and its folder, processor included."""
    pair = build()
    pair.model.save_pretrained(tmp_path)
    pair.processor.save_pretrained(tmp_path)
    return pair, tmp_path


@pytest.fixture
def batch(build, rows):
    pair = build()
    return pair, pair.batch([row[:2] for row in rows])


# ---------------------------------------------------------------------- the model


def test_forward_begins_with_input_ids_and_names_its_labels():
    parameters = list(inspect.signature(CromeForConditionalGeneration.forward).parameters)
    assert parameters[1] == CromeForConditionalGeneration.main_input_name == "input_ids"
    assert {"attention_mask", "pixel_values", "labels", "num_items_in_batch"} < set(parameters)


def test_output_is_a_tuple_too(batch):
    pair, batch = batch
    output = pair.model(**batch)
    assert torch.equal(output[0], output.logits)
    assert output["logits"] is output.logits


def test_without_a_mask_nothing_is_padding(build, rows):
    pair = build()
    batch = pair.batch(rows[:1])
    expected = pair.model(**batch).loss
    assert torch.equal(pair.model(**{**batch, "attention_mask": None}).loss, expected)
    del batch["attention_mask"]
    assert torch.equal(pair.model(**batch).loss, expected)
    del batch["labels"]
    assert pair.model.generate(**batch, **GREEDY).shape[0] == 1


def test_hidden_states_are_those_of_the_language_model(batch):
    pair, batch = batch
    output = pair.model(**batch, output_hidden_states=True)
    layers = pair.model.language_model.config.num_hidden_layers
    assert len(output.hidden_states) == layers + 1
    head = pair.model.get_output_embeddings()
    assert torch.equal(head(output.hidden_states[-1]), output.logits)


def test_it_can_be_copied_and_pickled(batch):
    pair, batch = batch
    pickled = pickle.dumps(pair.model)  # before transformers puts hooks into it
    expected = pair.model(**batch).logits
    for again in (copy.deepcopy(pair.model), pickle.loads(pickled)):
        assert torch.equal(again(**batch).logits, expected)
        assert again.generate(**batch, **GREEDY).shape[0] == 3


def test_a_forward_pass_twice_is_the_same(batch):
    pair, batch = batch
    assert torch.equal(pair.model(**batch).logits, pair.model(**batch).logits)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("share_prefix", [True, False])
def test_the_whole_model_may_change_its_type(build, rows, dtype, share_prefix):
    pair = build(share_prefix=share_prefix)
    expected = pair.model(**pair.batch(rows)).loss
    model = pair.model.to(dtype)
    assert model.dtype == dtype
    loss = model(**pair.batch(rows)).loss
    tolerance = {torch.float64: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    assert model.generate(**pair.batch([row[:2] for row in rows]), **GREEDY).shape[0] == 3


def test_it_can_generate_and_says_how(batch):
    pair, _ = batch
    model = pair.model
    assert model.can_generate()
    assert model.generation_config is model.language_model.generation_config
    model.generation_config = GenerationConfig(repetition_penalty=1.5)
    assert model.language_model.generation_config.repetition_penalty == 1.5
    assert model.get_decoder() is model.language_model.get_decoder()


def test_image_features_are_the_visual_tokens(batch):
    pair, batch = batch
    model = pair.model
    instruction = {k: v[1:] for k, v in batch.items() if k.startswith("qformer_")}
    tokens = model.get_image_features(batch["pixel_values"], **instruction)
    assert tokens.shape == (2, 4 + 3, 32)
    embeds, _ = model.prompt_embeddings(**batch, side="right")
    start = int(batch["visual_position"][2])
    torch.testing.assert_close(tokens[1], embeds[2, start : start + 7])
    with pytest.raises(InputError, match="depend on the question; give qformer_input_ids"):
        model.get_image_features(batch["pixel_values"])


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.resize_token_embeddings(400),
        lambda model: model.set_input_embeddings(torch.nn.Embedding(4, 4)),
        lambda model: model.set_output_embeddings(torch.nn.Linear(4, 4)),
    ],
)
def test_the_vocabulary_is_not_changed(batch, change):
    pair, batch = batch
    expected = pair.model(**batch).logits
    with pytest.raises(InputError, match="frozen: its embeddings are neither replaced nor resized"):
        change(pair.model)
    assert torch.equal(pair.model(**batch).logits, expected)


def test_weights_are_not_drawn_anew(batch):
    pair, batch = batch
    expected = pair.model(**batch).logits
    pair.model.init_weights()
    pair.model.tie_weights()
    assert torch.equal(pair.model(**batch).logits, expected)


def test_gradient_checkpointing_can_be_switched(build, rows):
    pair = build()
    pair.model.adapter.requires_grad_(True)
    batch = pair.batch(rows)
    pair.model(**batch).loss.backward()
    expected = pair.model.adapter.up["shared"].weight.grad.clone()
    pair.model.zero_grad()
    pair.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert pair.model.is_gradient_checkpointing
    pair.model(**batch).loss.backward()
    torch.testing.assert_close(pair.model.adapter.up["shared"].weight.grad, expected)
    pair.model.gradient_checkpointing_disable()
    assert not pair.model.is_gradient_checkpointing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_mask": torch.ones(3, 2)}, r"attention_mask is \(3, 2\) and input_ids"),
        ({"visual_position": torch.zeros(2)}, "visual_position has 2 rows for 3 questions"),
        ({"image_index": torch.zeros(1, 1)}, "image_index has 1 rows for 3 questions"),
        ({"image_index": torch.full((3, 1), 7)}, "names image 7, and the batch has 2"),
        ({"adapter_names": ["a"]}, "adapter_names has 1 rows for 3 questions"),
        ({"adapter_names": ["a"] * 3}, "no adapter named 'a' is loaded; loaded: none"),
        ({"input_ids": torch.ones(5)}, r"input_ids is \(5,\); expected \(rows, tokens\)"),
        ({"pixel_values": None}, "there are no pixel_values"),
        ({"qformer_input_ids": torch.ones(3, 99, dtype=torch.long)}, "positions for 64"),
    ],
)
def test_parts_that_disagree_are_named(batch, change, message):
    pair, batch = batch
    with pytest.raises(InputError, match=message):
        pair.model(**{**batch, **change})


@pytest.mark.parametrize("language", ["llama", "t5"])
@pytest.mark.parametrize("width", [-2, 3])
def test_labels_of_another_width_are_refused(build, rows, language, width):
    pair = build(language=language)
    batch = pair.batch(rows)
    if width < 0:
        batch["labels"] = batch["labels"][:, :width]
    else:
        batch["labels"] = torch.nn.functional.pad(batch["labels"], (0, width), value=5)
    if language == "t5":  # a decoder of its own reads answers of any length
        assert pair.model(**batch).loss.isfinite()
        return
    with pytest.raises(InputError, match="expected one label for each token"):
        pair.model(**batch)


# ---------------------------------------------------------------------- generation


@pytest.mark.parametrize(
    "settings",
    [
        {"eos_token_id": None},
        {"pad_token_id": None},
        {"eos_token_id": 2},
        {"max_new_tokens": None},
        {"num_beams": 2},
        {"num_beams": 2, "num_return_sequences": 2},
        {"max_new_tokens": None, "max_length": 3},
        {"generation_config": GenerationConfig(max_new_tokens=3, do_sample=False)},
        {"do_sample": True, "temperature": 0.7, "top_k": 5},
    ],
)
def test_settings_of_generate_do_the_same_behind_a_shared_prefix(build, rows, settings):
    """Rows on one picture, which may share a prefix, and the same rows without sharing."""
    answers, pair = [], build()
    for share in (True, False):
        pair.model.config.share_prefix = share
        batch = pair.batch([row[:2] for row in rows])
        whole = {**GREEDY, **pair.processor.generation_kwargs, **settings}
        torch.manual_seed(0)
        answers.append(pair.model.generate(**batch, **whole))
    longest = max(a.shape[1] for a in answers)
    same = [torch.nn.functional.pad(a, (0, longest - a.shape[1])) for a in answers]
    assert torch.equal(*same)


def test_no_answer_at_all_is_refused(batch):
    pair, batch = batch
    with pytest.raises(InputError, match="max_new_tokens is 0; expected a number above 0"):
        pair.model.generate(**batch, max_new_tokens=0, do_sample=False)


@pytest.mark.parametrize("where", ["asked", "default", "generation_config"])
@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.8},
        {"repetition_penalty": 1.2, "no_repeat_ngram_size": 2},
        {"repetition_penalty": 1.5, "num_beams": 2},
        {"min_new_tokens": 3},
        {"begin_suppress_tokens": [5, 6, 7]},
        {"exponential_decay_length_penalty": (1, 1.5)},
    ],
)
def test_what_counts_tokens_does_not_count_padding(build, rows, pictures, settings, where):
    """Answers of a batch are those of its rows alone; rows are padded by different lengths."""
    pair = build()
    more = dict(settings)
    if where == "default":
        pair.model.language_model.generation_config.update(**settings)
        more = {}
    elif where == "generation_config":
        more = {"generation_config": GenerationConfig(**settings)}
    mixed = [*rows, (None, "Is it?", ""), (pictures[:2], "How many stars are there?", "")]
    together = pair.say(mixed, **more)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert together == [pair.say([row], **more)[0] for row in mixed]


def test_a_penalty_counts_the_answer(batch):
    """With an endless penalty no token comes twice."""
    pair, batch = batch
    ids = pair.model.generate(**batch, max_new_tokens=12, do_sample=False, repetition_penalty=1e9,
                              eos_token_id=[2])  # fmt: skip
    for row in ids.tolist():
        assert len(set(row)) == len(row)


def test_what_reads_the_prompts_ids_is_refused(batch):
    pair, batch = batch
    with pytest.raises(InputError, match="prompt_lookup_num_tokens reads the ids of the prompt"):
        pair.model.generate(**batch, **GREEDY, prompt_lookup_num_tokens=3)


def test_threads_do_not_meet_each_others_head(build, rows, pictures):
    """Two threads on one model, of which each chooses where the head runs."""
    pair = build()
    batches = [pair.batch([row]) for row in rows] + [pair.batch([(None, "Is it?", "no")])]
    expected = [pair.model(**batch).token_losses for batch in batches]
    asked = [pair.say([row]) for row in rows]
    wrong: list[object] = []

    def work(number: int) -> None:
        try:
            for turn in range(12):
                i = (number + turn) % len(batches)
                found = pair.model(**batches[i]).token_losses
                if not torch.allclose(found, expected[i], rtol=1e-4, atol=1e-5):
                    wrong.append((i, found))
                if i < len(rows) and pair.say([rows[i]]) != asked[i]:
                    wrong.append(i)
        except Exception as error:  # a thread's error is not the test's
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---------------------------------------------------------------------- loading


def test_keywords_of_transformers_are_honoured(saved):
    _, folder = saved
    load = CromeForConditionalGeneration.from_pretrained
    assert load(folder, torch_dtype=torch.bfloat16).language_model.dtype == torch.bfloat16
    model = load(folder, attn_implementation="eager", device_map="cpu", low_cpu_mem_usage=True)
    assert model.language_model.config._attn_implementation == "eager"
    split = {"text_config": "eager", "vision_config": "sdpa"}
    model = load(folder, attn_implementation=split)
    assert model.vision_model.config._attn_implementation == "sdpa"
    assert load(folder, trust_remote_code=True, use_safetensors=True).dtype == torch.float32


@pytest.mark.parametrize("loader", [CromeForConditionalGeneration, AutoModelForImageTextToText])
def test_fields_are_changed_through_every_loader(saved, loader):
    _, folder = saved
    assert not loader.from_pretrained(folder, share_prefix=False).config.share_prefix
    config = AutoConfig.from_pretrained(folder)
    config.share_prefix = False
    assert not loader.from_pretrained(folder, config=config).config.share_prefix


@pytest.mark.parametrize(
    ("keyword", "message"),
    [
        ({"shareprefix": False}, "'shareprefix' is neither a field.*did you mean share_prefix"),
        ({"output_loading_info": True}, "nor a keyword that loading it can honour"),
        ({"load_in_4bit": True}, "'load_in_4bit'"),
    ],
)
@pytest.mark.parametrize("loader", [CromeForConditionalGeneration, CromeProcessor])
def test_keywords_that_would_be_ignored_are_refused(saved, loader, keyword, message):
    with pytest.raises(InputError, match=message):
        loader.from_pretrained(saved[1], **keyword)


def test_a_misspelt_field_of_a_new_bridge_is_refused(build):
    with pytest.raises(InputError, match="did you mean adapter_bottleneck"):
        build(adapter_bottlneck=3)


def test_saving_honours_or_refuses(saved, monkeypatch, tmp_path):
    pair, _ = saved
    with pytest.raises(InputError, match="cannot honour variant"):
        pair.model.save_pretrained(tmp_path / "a", variant="fp16")
    pair.model.save_pretrained(tmp_path / "b", max_shard_size="1GB", safe_serialization=True)
    pair.model.save_pretrained(tmp_path / "c", is_main_process=False)
    assert not (tmp_path / "c").exists()
    sent = []
    for module in ("pretrained", "processing", "task_adapters"):
        monkeypatch.setattr(f"crome.model.{module}.upload_folder", lambda *a: sent.append(a))
    pair.model.save_pretrained(tmp_path / "d", push_to_hub=True)
    pair.processor.save_pretrained(tmp_path / "d", push_to_hub="me/it")
    pair.model.save_adapter(tmp_path / "e", push_to_hub="me/adapter")
    assert sent == [
        (tmp_path / "d", True), (tmp_path / "d", "me/it"), (tmp_path / "e", "me/adapter"),
    ]  # fmt: skip


def test_an_adapter_of_another_library_is_named(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    with pytest.raises(InputError, match="holds an adapter of another library, such as a LoRA"):
        CromeForConditionalGeneration.from_pretrained(tmp_path)


def test_a_wrong_repository_costs_no_weights(fetched):
    """`config.json` is read before any weights are fetched."""
    with pytest.raises(InputError, match="is a 'llama' model; expected 'crome'"):
        CromeForConditionalGeneration.from_pretrained("org/llama-70b")
    assert fetched
    assert not any("safetensors" in pattern for pattern in fetched)


# ---------------------------------------------------------------------- the processor


def test_a_processor_is_loaded_with_a_models_keywords(saved):
    _, folder = saved
    processor = AutoProcessor.from_pretrained(folder, dtype="auto", device_map="cpu")
    assert isinstance(processor, CromeProcessor)
    assert AutoProcessor.from_pretrained(folder, max_question_tokens=7).max_question_tokens == 7


@pytest.mark.parametrize(
    ("keyword", "message"),
    [
        ({"answer": ["yes"]}, "answer=.*did you mean answers"),
        ({"return_tensors": "np"}, "return_tensors='np'; leave it out"),
        ({"padding": "max_length"}, "padding='max_length'"),
        ({"max_length": 3}, "max_length=3"),
    ],
)
def test_a_call_refuses_what_it_would_ignore(build, pictures, keyword, message):
    with pytest.raises(InputError, match=message):
        build().processor(images=pictures[:1], text=["What?"], **keyword)


def test_a_call_takes_what_it_does_anyway(build, pictures):
    processor = build().processor
    plain = processor(images=pictures[:1], text=["What?"])
    usual = {"return_tensors": "pt", "padding": True, "truncation": True}
    again = processor(images=pictures[:1], text=["What?"], **usual)
    assert all(torch.equal(plain[k], again[k]) for k in plain)


def test_pixels_are_pictures(build, pictures):
    processor, array = build().processor, np.asarray(pictures[0])
    expected = processor(images=pictures[:1], text="What?")["pixel_values"]
    channels_first = torch.tensor(array).permute(2, 0, 1)
    for pixels in (array, channels_first, array / 255.0, channels_first.float() / 255):
        for images in (pixels, [pixels], pixels[None]):
            found = processor(images=images, text="What?")["pixel_values"]
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((4, 5, 6, 7)), "an image of shape"),
        (np.zeros((5, 7, 9), np.uint8), "expected .height, width, 3."),
        (np.full((5, 7, 3), -1.5), "values outside 0 to 1: it is normalised already"),
        (np.full((5, 7, 3), 300), "values outside 0 to 255"),
    ],
)
def test_pixels_that_are_no_picture_are_refused(pixels, message):
    with pytest.raises(InputError, match=message):
        as_picture(pixels)


MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "image", "image": None}, {"type": "text", "text": "A?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "blue"}]},
    {"role": "user", "content": "Is there a star?"},
]


def conversation(picture):
    messages = copy.deepcopy(MESSAGES)
    messages[1]["content"][0]["image"] = picture
    return messages


def test_a_conversation_is_a_question_with_its_history(build, pictures):
    processor = build().processor
    messages = conversation(pictures[0])
    text = processor.apply_chat_template(messages)
    assert text == processor.render("Is there a star?", True, [("A?", "blue")], "Be brief.")
    assert text.startswith("<s><|system|>Be brief.<|end|><|user|><image>A?")
    batch = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    expected = processor(images=[pictures[0]], text=["Is there a star?"],
                         histories=[[("A?", "blue")]], systems=["Be brief."])  # fmt: skip
    assert all(torch.equal(batch[k], expected[k]) for k in expected)
    two = processor.apply_chat_template([messages, messages[3:]], tokenize=True, return_dict=True)
    assert len(two["input_ids"]) == 2


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (MESSAGES[:3], "an image without content"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "without a"),
        ([{"role": "tool", "content": "a"}], "a message of role 'tool' out of turn"),
        ([{"role": "user", "content": [{"type": "video"}]}], "a part of type 'video'"),
    ],
)  # fmt: skip
def test_conversations_that_end_otherwise_are_refused(messages, reason):
    with pytest.raises(InputError, match=reason):
        read_conversation(messages)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_a_pipeline_answers(saved, pictures, dtype):
    pair, folder = saved
    pipe = pipeline("image-text-to-text", model=str(folder), dtype=dtype)
    assert isinstance(pipe.model, CromeForConditionalGeneration)
    parts = [{"type": "image", "image": pictures[0]}, {"type": "text", "text": "Is there a star?"}]
    chat = [{"role": "user", "content": parts}]
    (found,) = pipe(text=chat, max_new_tokens=4, return_full_text=False)
    if dtype == "auto":
        batch = pair.batch([(pictures[0], "Is there a star?")])
        ids = pair.model.generate(**batch, max_new_tokens=4, do_sample=False)
        assert found["generated_text"].strip() == pair.processor.batch_decode(ids)[0]
    plain = pipe(images=pictures[0], text="Is there a star?", max_new_tokens=4,
                 return_full_text=False)  # fmt: skip
    assert plain[0]["generated_text"] == found["generated_text"]


# ---------------------------------------------------------------------- length


def test_a_row_longer_than_the_language_model_is_refused_by_its_number(build, rows, pictures):
    pair = build()
    limit = pair.model.language_model.config.max_position_embeddings
    many = (pictures[:2] * (limit // 14 + 1), *rows[0][1:])
    for call in (
        lambda: pair.model(**pair.batch([rows[0], many])),
        lambda: pair.model.generate(**pair.batch([rows[0][:2], many[:2]]), **GREEDY),
        lambda: pair.model.generate(**pair.batch([rows[0][:2]]), max_new_tokens=limit),
    ):
        with pytest.raises(
            InputError, match=rf"row \d of the batch has \d+ tokens.* reads {limit}"
        ):
            call()


def test_a_long_question_never_leaves_the_q_formers_positions(build, pictures):
    pair = build(max_question_tokens=200)
    batch = pair.batch([(pictures[0], "star " * 150)])
    assert batch["qformer_input_ids"].shape[1] == 64
    assert batch["input_ids"].shape[1] > 150
    assert pair.model(**batch).logits.isfinite().all()


def test_a_cut_question_is_said_aloud(build, pictures, caplog):
    from crome.model.answering import answer
    from crome.rows import Row

    pair = build(max_question_tokens=5)
    rows = [Row((pictures[0],), "Is there a large star in the picture?", "", "long-one"),
            Row((), "Why?", "", "short")]  # fmt: skip
    answer(pair.model, pair.processor, rows, max_new_tokens=2)
    (said,) = [r.getMessage() for r in caplog.records if "crome" in r.name]
    assert "row long-one is longer than the 5 tokens" in said
