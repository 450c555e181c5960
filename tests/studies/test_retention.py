"""What the language model keeps: equal behind CROME, changed by training it."""

import json

import pytest

from crome.errors import InputError
from crome.rows import Row
from crome.studies import retention as module
from crome.studies import text
from crome.studies.retention import BARE, NAMES, retention
from crome.studies.text import bare, choose, continuations, paragraphs, passages, through


def test_the_packaged_text_is_prose_enough():
    found = paragraphs()
    assert len(found) > 200
    assert all(len(paragraph) >= 150 and "\n" not in paragraph for paragraph in found)


def test_passages_are_whole_and_apart(build):
    tokenizer = build().processor.tokenizer
    pieces = passages(paragraphs()[:40], tokenizer, 64, 10)
    assert [len(piece) for piece in pieces] == [64] * 10
    assert len({tuple(piece) for piece in pieces}) == 10


def test_continuations_have_one_right_ending():
    questions = continuations(paragraphs(), 50)
    assert len(questions) == 50
    joined = set(paragraphs())
    for question in questions:
        assert len(set(question.endings)) == text.OPTIONS
        whole = [f"{question.beginning} {ending}" in joined for ending in question.endings]
        assert whole.index(True) == question.right
        assert sum(whole) == 1
    assert len({question.right for question in questions}) == text.OPTIONS


def test_a_text_too_short_is_named(tmp_path):
    file = tmp_path / "t.txt"
    file.write_text("One. Two.\n")
    with pytest.raises(InputError, match="0 paragraphs"):
        paragraphs(file)
    with pytest.raises(InputError, match="no such text"):
        paragraphs(tmp_path / "absent.txt")


@pytest.mark.parametrize("language", ["llama", "qwen3", "gemma2"])
def test_crome_without_an_image_is_the_bare_language_model(build, language):
    """The same float32 sums, with the head on gathered rows; worst seen 2e-6."""
    pair = build(language=language)
    ids = [list(range(5, 40)), list(range(60, 75))]
    ours, theirs = through(pair.model)(ids), bare(pair.model.language_model)(ids)
    for mine, other, sequence in zip(ours, theirs, ids, strict=True):
        assert mine.shape == (len(sequence) - 1,)
        assert mine.tolist() == pytest.approx(other.tolist(), rel=1e-5, abs=1e-5)


def test_the_smallest_loss_a_token_is_chosen(build):
    pair = build()
    (question,) = continuations(paragraphs(), 1)
    read = bare(pair.model.language_model)
    tokenizer = pair.processor.tokenizer
    losses = []
    for ending in question.endings:
        begin = tokenizer(question.beginning)["input_ids"]
        end = tokenizer(f" {ending}")["input_ids"]
        losses.append(float(read([begin + end])[0][len(begin) - 1 :].mean()))
    assert choose(read, tokenizer, [question]) == [losses.index(min(losses)) == question.right]


def test_the_command_end_to_end_and_again(build, pictures, tmp_path, monkeypatch, capsys):
    pytest.importorskip("peft")
    rows = [Row((pictures[n % 4],), "What is it?", "blue", str(n)) for n in range(16)]
    loaded = []

    def load(*_, **__):
        pair = build()
        loaded.append(pair)
        return pair.model, pair.processor

    monkeypatch.setattr(module, "load", load)
    monkeypatch.setattr(module, "task_rows", lambda *_: (rows, rows[:4]))
    settings = {
        "steps": 3, "batch_size": 4, "passage_count": 3, "passage_tokens": 32, "questions": 4,
        "topics": 1, "dtype": "float32", "full_rate": 1e-2, "lora_rate": 1e-1,
    }  # fmt: skip
    retention(tmp_path, **settings)
    said = json.loads(capsys.readouterr().out)
    assert list(said) == [BARE, *NAMES.values()]
    summary = json.loads((tmp_path / "retention.json").read_text())["methods"]
    assert summary[NAMES["adapter"]]["largest_difference"] < 1e-5
    assert summary[NAMES["full"]]["largest_difference"] > 1e-3
    assert summary[NAMES["lora"]]["largest_difference"] > 1e-5
    assert (tmp_path / "report.html").exists()
    assert len(loaded) == 3
    retention(tmp_path, **settings)
    assert json.loads(capsys.readouterr().out) == said
    assert len(loaded) == 3  # nothing was measured again
    with pytest.raises(InputError, match="steps was 3, now 4"):
        retention(tmp_path, **settings | {"steps": 4})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_vision_language_model_of_transformers(case, tmp_path, pictures, monkeypatch, dtype):
    """Its head stands beside its language model, and trains with it."""
    pytest.importorskip("peft")
    vlm = case("llava").model.vlm
    for part in (vlm, case("llava").own):
        part.save_pretrained(tmp_path / "llava")
    rows = [Row((pictures[n % 4],), "What is it?", "blue", str(n)) for n in range(8)]
    monkeypatch.setattr(module, "task_rows", lambda *_: (rows, rows[:2]))
    retention(
        tmp_path / "out", checkpoint=str(tmp_path / "llava"), steps=3, batch_size=4, topics=1,
        passage_count=2, passage_tokens=16, questions=4, dtype=dtype,
        full_rate=1e-2, lora_rate=1e-1,
    )  # fmt: skip
    summary = json.loads((tmp_path / "out" / "retention.json").read_text())["methods"]
    assert summary[NAMES["adapter"]]["largest_difference"] < 1e-5
    assert summary[NAMES["full"]]["largest_difference"] > 1e-3
    language = {*vlm.get_decoder().parameters(), vlm.get_output_embeddings().weight}
    assert summary[NAMES["full"]]["trained"] == sum(p.numel() for p in language)
