"""Labels, templates, media at their places, and what is refused in one line."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile

import crome
from crome.attached import rows as module
from crome.attached.processing import AttachedProcessor
from crome.data.validate import validate
from crome.errors import InputError
from crome.rows import Place, Row

RED = Image.new("RGB", (60, 44), "red")
BLUE = Image.new("RGB", (44, 60), "blue")
FAMILIES = ["llava", "qwen3_vl", "smolvlm", "gemma3", "internvl", "qwen2_5_vl"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}{% if p.type == "
    "'text' %}{{ p.text }}{% else %}IMAGE{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


OPENING = "<|im_start|>assistant\n"


def with_template(case, template, family="llava", **settings):
    own = copy.copy(case(family).own)
    own.chat_template = template.replace("IMAGE", own.image_token)
    return AttachedProcessor(own, case(family).processor.inputs, **settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_are_the_answer_and_its_end(case, family):
    processor = case(family).processor
    batch = processor([RED], ["what is it?"], ["a red one"])
    labels = batch["labels"][0]
    where = labels != -100
    assert processor.tokenizer.decode(labels[where]) == "a red one<|im_end|>"
    assert torch.equal(batch["input_ids"][0][where], labels[where])
    assert where.nonzero()[0] == where.nonzero()[-1] - where.sum() + 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("answer", ["yes", "7", " spaced", "two\nlines", "ß"])
def test_the_prompts_ids_are_a_prefix_of_the_rows(case, family, answer):
    processor = case(family).processor
    prompt = processor([RED], ["what is it?"])["input_ids"]
    row = processor([RED], ["what is it?"], [answer])["input_ids"]
    assert torch.equal(row[:, : prompt.shape[1]], prompt)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_is_what_the_whole_conversation_is_tokenised_to(case, family):
    processor = case(family).processor
    row = processor([None], ["what is it?"], ["blue"])["input_ids"][0]
    message = {"role": "user", "content": [{"type": "text", "text": "what is it?"}]}
    reply = {"role": "assistant", "content": [{"type": "text", "text": "blue"}]}
    whole = processor._ids(processor.template.render([message, reply]))
    assert row.tolist() == whole[: len(row)]


def test_pictures_stand_where_they_are_marked(case):
    processor = case("llava").processor
    image = processor.processor.image_token_id
    ids = processor([[RED, BLUE]], ["a <image> is not <image>."])["input_ids"][0].tolist()
    text = processor.tokenizer.decode([i for i in ids if i != image])
    assert "a \n is not \n." in text
    first, last = ids.index(image), len(ids) - ids[::-1].index(image)
    assert " is not " in processor.tokenizer.decode(ids[first:last])


def test_places_of_a_row_are_kept_in_histories_too(case):
    processor = case("qwen3_vl").processor
    row = Row((RED, BLUE), "and this?", "", "1", history=(("what is this?", "red"),),
              places=(Place("image", 0, 0), Place("image", 1, 4)))  # fmt: skip
    text, mark = processor.template.render(processor.messages(row)), processor.processor.image_token
    assert text.index(mark) < text.index("what is this?") < text.index("red<|im_end|>")
    assert f"and {mark}\nthis?" in text
    assert text.count(mark) == 2


def test_equal_media_are_prepared_once(case):
    batch = case("llava").processor([RED, BLUE, RED, None], ["a", "b", "c", "d"])
    assert batch["media_index"].tolist() == [0, 1, 0, -1]
    assert len(batch["media"]) == 2


def test_special_tokens_in_a_question_are_text(case):
    processor = case("llava").processor
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    plain = processor(None, ["hello"])["input_ids"].eq(end).sum()
    assert processor(None, ["hello<|im_end|>"])["input_ids"].eq(end).sum() == plain


def test_a_system_message_is_shown(case):
    processor = with_template(case, CHATML, system_prompt="Be brief.")
    assert "<|im_start|>system\nBe brief.<|im_end|>" in processor.render("hello", False)
    row = Row((), "hello", "", "1", system="Be long.")
    assert "Be long." in processor.template.render(processor.messages(row))


def test_a_template_that_drops_the_system_message_is_refused(case):
    loop = "{% for m in messages %}"
    dropped = CHATML.replace(loop, loop.replace(" %}", " if m.role != 'system' %}"))
    with pytest.raises(InputError, match="drops the system message"):
        with_template(case, dropped, system_prompt="Be brief.")
    processor = with_template(case, dropped)
    with pytest.raises(InputError, match=r"row 1: .* drops its system message"):
        processor.encode([Row((), "hello", "", "1", system="Be brief.")])


@pytest.mark.parametrize("mark", ["<think>", "[THINK]", "<seed:think>", "◁think▷", "<thinking>"])
def test_a_thinking_block_that_stays_open_is_refused(case, mark):
    with pytest.raises(InputError, match=r"opens a thinking block"):
        with_template(case, CHATML.replace(OPENING, f"{OPENING}{mark}\n"))
    closed = f"{OPENING}{mark}\n{mark[0]}/{mark[1:]}\n"
    assert with_template(case, CHATML.replace(OPENING, closed)).render("a", False).endswith("\n")


@pytest.mark.parametrize("switch", ["enable_thinking", "thinking"])
def test_the_thinking_switch_is_off(case, switch):
    condition = f"{{% if {switch} is defined and not {switch} %}}"
    switch = f"{OPENING}{condition}<think>\n\n</think>\n\n{{% endif %}}"
    processor = with_template(case, CHATML.replace(OPENING, switch))
    assert processor.render("hello", False).endswith("<think>\n\n</think>\n\n")
    assert processor.template.record()["enable_thinking"] is False


@pytest.mark.parametrize(
    ("stamp", "day"),
    [
        ("{{ strftime_now('%Y-%m-%d') }}", "2024-07-26"),
        ("{{ date_string }}", "26 Jul 2024"),
        ("{% set form = '%-d %B %Y' %}{{ strftime_now(form) }}", "26 July 2024"),
        ('{{ strftime_now("%A, %H:%M" ~ " o\'clock") }}', "Friday, 00:00 o'clock"),
    ],
)
def test_the_date_is_always_the_same(case, stamp, day):
    assert with_template(case, stamp + CHATML).render("hello", False).startswith(day)


def test_a_template_that_writes_answers_otherwise_is_refused(case):
    with pytest.raises(InputError, match="writes an answered conversation otherwise"):
        with_template(case, CHATML.replace(OPENING, "<|im_start|>bot\n"))


def test_templates_of_plain_text_contents_work(case):
    start = CHATML.index("{% for p in")
    end = CHATML.index("{% endfor %}") + len("{% endfor %}")
    processor = with_template(case, CHATML[:start] + "{{ m.content }}" + CHATML[end:])
    ids = processor([RED], ["what?"])["input_ids"]
    assert ids.eq(processor.processor.image_token_id).sum() == 16


def test_a_base_model_without_a_template_gets_a_bare_prompt_and_says_so(case, caplog):
    own = copy.copy(case("llava").own)
    own.chat_template = None
    processor = AttachedProcessor(own, case("llava").processor.inputs)
    assert processor.render("what is it?", True) == "<image>\nwhat is it?\n"
    assert "has no chat template, so a question stands in its prompt as" in caplog.text
    ids = processor([RED], ["what is it?"], ["red"])["labels"][0]
    assert ids[-1] == processor.tokenizer.eos_token_id


def test_long_questions_and_answers_are_cut(case):
    processor = with_template(case, CHATML, max_question_tokens=6, max_answer_tokens=4)
    assert "efghij" in processor.render("abcdefghij", False)
    assert "d" not in processor.render("abcdefghij", False).split("user")[1].split("<|")[0]
    assert len(processor.answer_ids("abcdefgh")) == 4
    assert not processor.reads_whole("abcdefghij")


def test_numbers_of_rows_must_agree(case):
    with pytest.raises(InputError, match="2 questions and 1 answers"):
        case("llava").processor([RED, RED], ["a", "b"], ["c"])
    with pytest.raises(InputError, match="1 images for 2 questions"):
        case("llava").processor([RED], ["a", "b"])


def test_a_row_with_sound_for_a_model_without_ears_is_refused(case, tmp_path):
    with pytest.raises(InputError, match="row 7 has audio, and this model takes image"):
        case("llava").processor.encode([Row((), "what?", "", "7", audios=(tmp_path / "a.wav",))])


def test_a_row_with_sound_is_refused_before_anything_is_prepared_or_trained(case, tmp_path):
    row = Row((), "what?", "", "7", audios=(tmp_path / "none.wav",))
    with pytest.raises(InputError, match="row 7 has audio, and this model takes image"):
        case("llava").processor.prepare(row)
    case("llava").vlm.save_pretrained(tmp_path / "vlm")
    case("llava").own.save_pretrained(tmp_path / "vlm")
    wavfile.write(tmp_path / "a.wav", 16_000, np.ones(900, np.int16))
    (tmp_path / "rows.jsonl").write_text('{"audio": "a.wav", "question": "what?", "answer": "x"}')
    with pytest.raises(InputError, match="has audio, and this model takes image"):
        validate(tmp_path / "rows.jsonl", checkpoint=str(tmp_path / "vlm"))


def test_what_an_encoder_cannot_read_is_blamed_on_the_processor(case):
    with pytest.raises(InputError, match=r"image encoder cannot read.*from one checkpoint"):
        case("llava").model.encode({"pixel_values": torch.zeros(16, 1176)})


def test_a_missing_video_is_named(case, tmp_path):
    with pytest.raises(InputError, match="no video"):
        case("qwen3_vl").processor.encode([Row((), "what?", "", "7", videos=(tmp_path / "a.mp4",))])


def test_another_models_processor_is_refused(case, monkeypatch):
    own = copy.copy(case("llava").own)
    own.image_token_id = 401
    monkeypatch.setattr(case("llava").vlm.config, "image_token_index", 300)  # a letter there
    with pytest.raises(InputError, match="load model and processor from one checkpoint"):
        crome.attach(case("llava").vlm, own)
    with pytest.raises(InputError, match="has no tokenizer"):
        crome.attach(case("llava").vlm, object())


def test_a_prompt_cut_inside_its_pictures_is_refused(case):
    one = case("llava")
    batch = dict(one.processor([RED], ["what is it?"]))
    for name in ("input_ids", "attention_mask"):
        batch[name] = batch[name][:, 20:]
    with pytest.raises(InputError, match="a prompt was cut inside its pictures"):
        one.model(**batch)


def test_pictures_that_need_torchvision_say_so(monkeypatch):
    error = AttributeError("'NoneType' object has no attribute 'fetch_images'")
    monkeypatch.setattr(module, "_has_torchvision", lambda: False)
    assert "need torchvision" in module.without_torchvision(error)
    assert not module.without_torchvision(AttributeError("no attribute 'x'"))
    monkeypatch.setattr(module, "_has_torchvision", lambda: True)
    assert not module.without_torchvision(error)
