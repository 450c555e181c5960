"""The processor: exact token ids, truncation, end tokens, distinct pictures, round trip."""

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from crome.errors import InputError
from crome.model.processing import CromeProcessor, pad

QUESTION, ANSWER = "Is there a star?", "yes"


@pytest.fixture
def tokens(build):
    """Text with special tokens written out → ids."""

    def tokens(processor, text: str) -> list[int]:
        return processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    return tokens


CHAT = ("<s><|user|>", "<|end|><|assistant|>", "<|end|>")


@pytest.mark.parametrize(
    ("language", "settings", "before", "after", "end"),
    [
        ("llama", {}, CHAT[0], QUESTION + CHAT[1], CHAT[2]),
        ("llama", {"system_prompt": "Be brief."}, "<s><|system|>Be brief.<|end|><|user|>",
         QUESTION + CHAT[1], CHAT[2]),
        ("llama", {"prompt_format": "bare"}, "", "<s>" + QUESTION, "</s>"),
        ("llama", {"prompt_format": ("{bos}Look: ", " Q: {question} A:")}, "<s>Look: ",
         f" Q: {QUESTION} A:", "</s>"),
        ("vicuna", {}, "", "<s>" + QUESTION, "</s>"),  # no template: bare
    ],
)  # fmt: skip
def test_the_exact_ids_of_one_row(build, tokens, pictures, language, settings, before, after, end):
    processor = build(language=language, **settings).processor
    batch = processor(pictures[0], QUESTION, [ANSWER])
    head, rest, answer = (tokens(processor, text) for text in (before, after, ANSWER + end))
    assert batch["input_ids"].tolist() == [head + rest + answer]
    assert batch["labels"].tolist() == [[-100] * len(head + rest) + answer]
    assert batch["visual_position"].tolist() == [len(head)]
    assert processor.generation_kwargs["eos_token_id"] == tokens(processor, end)
    text_only = processor(None, QUESTION, [ANSWER])
    assert text_only["input_ids"].tolist() == batch["input_ids"].tolist()
    assert {"pixel_values", "image_index"}.isdisjoint(text_only)


def test_an_encoder_decoder_has_its_answer_apart(build, tokens, pictures):
    processor = build(language="t5").processor
    batch = processor(pictures[:2], [QUESTION, "blue"], [ANSWER, "red star"])
    ids = [tokens(processor, f"<s>{q}</s>") for q in (QUESTION, "blue")]
    labels = [tokens(processor, f"{a}</s>") for a in (ANSWER, "red star")]
    assert batch["input_ids"].tolist() == pad(ids, 0).tolist()
    assert batch["labels"].tolist() == pad(labels, -100).tolist()


def test_a_batch_is_padded_on_the_right_and_hidden(build, rows):
    pair = build()
    batch = pair.batch(rows)
    for row in range(3):
        alone = pair.batch(rows[row : row + 1])
        length = alone["input_ids"].shape[1]
        for name, filler in (("input_ids", 0), ("attention_mask", 0), ("labels", -100)):
            assert torch.equal(batch[name][row, :length], alone[name][0])
            assert (batch[name][row, length:] == filler).all()


def test_earlier_turns_come_first_with_the_picture_in_the_first(build, tokens, pictures):
    history = [("What is it?", "A star.")]
    chat, bare = (build(prompt_format=p).processor for p in ("chat", "bare"))
    prompt = chat.prompt(QUESTION, True, history)
    text = f"<s><|user|>What is it?<|end|><|assistant|>A star.<|end|><|user|>{QUESTION}{CHAT[1]}"
    assert prompt.ids == tokens(chat, text)
    assert prompt.visual_position == len(tokens(chat, CHAT[0]))
    earlier = f"<s>What is it?\nA star.\n{QUESTION}"
    assert bare.prompt(QUESTION, True, history).ids == tokens(bare, earlier)


def test_a_question_is_cut_from_the_left_and_never_its_template(build, tokens):
    processor = build(max_question_tokens=5).processor
    question = "What is the colour of the large square? " * 9 + "blue circle red"
    ids = processor.prompt(question, True).ids
    head, tail = tokens(processor, CHAT[0]), tokens(processor, CHAT[1])
    assert ids[: len(head)] == head
    assert ids[-len(tail) :] == tail
    kept = ids[len(head) : -len(tail)]
    assert kept == tokens(processor, question)[-5:]


def test_twenty_megabytes_of_question_are_cut_at_once(build):
    processor = build().processor
    batch = processor(None, "What is it? " * 1_700_000, ["a"])
    assert batch["input_ids"].shape[1] < 80
    assert batch["qformer_input_ids"].shape[1] <= 60


def test_an_answer_is_cut_from_the_right_and_then_has_no_end(build, tokens):
    processor = build(max_answer_tokens=3).processor
    long = tokens(processor, "How many triangles are there?")
    assert processor.answer_ids("How many triangles are there?") == long[:3]
    assert len(processor.answer_ids("no")) < 4
    assert processor.answer_ids("no")[-1] == tokens(processor, "<|end|>")[0]


def test_the_qformer_reads_the_question_cut_from_the_left_behind_cls(build):
    processor = build(max_question_tokens=6).processor
    batch = processor(None, ["Is there a red star in the large picture?", "star"], None)
    ids, mask = batch["qformer_input_ids"], batch["qformer_attention_mask"]
    whole = processor.qformer_tokenizer("Is there a red star in the large picture?")["input_ids"]
    assert ids[0].tolist() == [whole[0], *whole[-5:]]
    short = processor.qformer_tokenizer("star")["input_ids"]
    assert ids[1, : len(short)].tolist() == short
    assert mask.sum(1).tolist() == [6, len(short)]


def test_equal_pictures_are_prepared_once(build, pictures, tmp_path):
    pictures[0].save(tmp_path / "a.png")
    path, opened = tmp_path / "a.png", pictures[1]
    images = [path, [opened, str(path)], None, opened]
    batch = build().processor(images, [QUESTION] * 4)
    assert batch["pixel_values"].shape == (2, 3, 28, 28)
    assert batch["image_index"].tolist() == [[0, -1], [1, 0], [-1, -1], [1, -1]]


@pytest.mark.parametrize(
    ("images", "questions", "answers", "message"),
    [
        ([None], ["a", "b"], None, r"1 images for 2 questions; give one entry a row"),
        (None, ["a", "b"], ["c"], r"2 questions and 1 answers; a batch needs one answer"),
        (None, [], None, r"0 questions"),
        (["missing.png"], ["a"], None, r"missing\.png"),
    ],
)
def test_batches_that_do_not_fit(build, images, questions, answers, message):
    with pytest.raises(InputError, match=message):
        build().processor(images, questions, answers)


def test_one_picture_and_one_question_need_no_lists(build, pictures):
    assert build().processor(pictures[0], QUESTION)["image_index"].tolist() == [[0]]


def test_pixels_are_those_of_the_image_processor(build):
    red = Image.new("RGB", (50, 30), "red")
    processor = build().processor
    pixels = processor.pixel_values([red])[0]
    mean, std = (torch.tensor(getattr(processor.image_processor, f"image_{n}")) for n in
                 ("mean", "std"))  # fmt: skip
    expected = ((torch.tensor([1.0, 0, 0]) - mean) / std)[:, None, None].expand(3, 28, 28)
    torch.testing.assert_close(pixels, expected, rtol=1e-5, atol=1e-5)


def test_decoding_drops_special_tokens(build, tokens):
    processor = build().processor
    ids = torch.tensor([tokens(processor, "</s> red star </s><pad>")])
    assert processor.batch_decode(ids) == ["red star"]


@pytest.mark.parametrize("loader", [CromeProcessor, AutoProcessor])
def test_round_trip(build, rows, tmp_path, loader):
    pair = build(max_question_tokens=9, prompt_format=["{bos}Look", "{question}"])
    pair.model.save_pretrained(tmp_path)
    pair.processor.save_pretrained(tmp_path)
    again = loader.from_pretrained(tmp_path)
    images, questions, answers = zip(*rows, strict=True)
    ours, theirs = (p(images, questions, answers) for p in (pair.processor, again))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_template_without_a_system_role_says_so(build, rows):
    processor = build(system_prompt="Be brief.").processor
    refusal = "{{ raise_exception('System role not supported') }}"
    processor.tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}" + refusal + "{% endif %}{{ messages[0].content }}"
    )
    with pytest.raises(InputError, match=r"System role not supported; leave system_prompt out"):
        processor(text=[rows[0][1]])
