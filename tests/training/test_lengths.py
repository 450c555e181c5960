"""Rows that are longer than the language model reads are refused before a run, or left out."""

import json

import pytest

from crome.checkpoints.loading import load
from crome.data.validate import validate
from crome.errors import InputError
from crome.evaluation.evaluate import evaluate
from crome.serving.ask import ask
from crome.training.plan import plan


@pytest.fixture
def too_long(place):
    """The place's rows, and one whose history is longer than the language model's 256 tokens."""
    rows = [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()]
    path = place / "long.jsonl"
    long = {"id": "endless", "image": "0.png", "question": "What is it?", "answer": "no"}
    pairs = [["Is there a circle in the picture?", "yes"]] * 60
    rows.append(long | {"history": pairs})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("views", [0, 2])
def test_a_row_that_is_too_long_stops_the_run_before_it_starts(short, place, too_long, views):
    with pytest.raises(InputError, match=r"row endless has [\d,]+ tokens .* reads 256\. Shorten"):
        short(data=too_long, views=views)
    assert not (place / "run" / "run.yaml").exists()


def test_a_row_that_is_too_long_is_left_out_and_written_down(short, too_long, capsys):
    out = short(data=too_long, on_bad_row="skip", steps=6)
    assert "row endless has" in " ".join(capsys.readouterr().err.split())
    skipped = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert {row["id"] for row in skipped} == {"endless"}
    assert "the language model reads 256" in skipped[0]["reason"]


def test_validate_refuses_rows_that_a_checkpoint_cannot_read(place, too_long, capsys):
    validate(too_long)
    assert "endless" not in capsys.readouterr().out
    with pytest.raises(InputError, match=r"at least 1 row is too long for .*base\. Shorten"):
        validate(too_long, checkpoint=str(place / "base"))
    said = " ".join(capsys.readouterr().out.split())
    assert "long.jsonl, row endless has" in said
    assert "the language model reads 256." in said
    validate(place / "rows.jsonl", checkpoint=str(place / "base"))
    assert "the language model reads" not in capsys.readouterr().out


@pytest.mark.parametrize("skip", ["raise", "skip"])
def test_a_plan_counts_rows(place, too_long, capsys, skip):
    plan(out=place / "run", data=too_long, checkpoint=str(place / "base"), dtype="float32",
         memory=8, json=True, on_bad_row=skip)  # fmt: skip
    told = json.loads(capsys.readouterr().out)
    assert told["fits"] == (skip == "skip")
    (line,) = told["too_long"]
    assert line.startswith("row endless has")
    assert "reads 256" in line
    plan(out=place / "run", data=too_long, checkpoint=str(place / "base"), dtype="float32",
         memory=8, on_bad_row=skip)  # fmt: skip
    said = " ".join(capsys.readouterr().out.split())
    assert "row endless has" in said
    assert ("It does not fit" in said) == (skip == "raise")


def test_a_plan_of_questions_that_are_all_too_long(place, capsys):
    """Its step is measured at the length that the model reads, and the rows are named."""
    rows = [{"image": "0.png", "question": "What is it? " * 60, "answer": "no"}] * 4
    (place / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan(out=place / "run", data=place / "all.jsonl", checkpoint=str(place / "base"),
         dtype="float32", memory=8, json=True)  # fmt: skip
    told = json.loads(capsys.readouterr().out)
    assert told["too_long"][0].startswith("row 0 has a longer question than the 60 tokens")


def test_a_run_of_rows_that_are_all_too_long(short, place):
    rows = [{"image": "0.png", "question": "What?", "answer": "no", "system": "s " * 300}] * 4
    (place / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"row \d has .*reads 256. No row before it fits"):
        short(data=place / "all.jsonl", on_bad_row="skip", steps=1)


# ---------------------------------------------------------------------- one rule in every verb


@pytest.fixture(params=["question", "answer"])
def wordy(place, request):
    """The place's rows, and one whose question or answer the processor would cut."""
    rows = [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()]
    path = place / "wordy.jsonl"
    row = {"id": "wordy", "image": "0.png", "question": "What is it?", "answer": "no"}
    rows.append(row | {request.param: "Is there a circle in the picture? " * 15})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path, request.param


def test_a_text_that_would_be_cut_is_refused_in_training(short, place, wordy, capsys):
    path, part = wordy
    limit = {"question": 60, "answer": 20}[part]
    message = rf"row wordy has a longer {part} than the {limit} tokens .*\(max_{part}_tokens\)"
    with pytest.raises(InputError, match=message):
        short(data=path)
    with pytest.raises(InputError, match="at least 1 row is too long"):
        validate(path, checkpoint=str(place / "base"))
    assert f"wordy.jsonl, row wordy has a longer {part}" in " ".join(
        capsys.readouterr().out.split()
    )
    out = short(data=path, on_bad_row="skip", steps=6)
    skipped = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert {row["id"] for row in skipped} == {"wordy"}


def test_a_run_may_read_more_and_its_checkpoint_does(short, place, wordy):
    path, part = wordy
    out = short(data=path, settings={"max_question_tokens": 250, "max_answer_tokens": 200})
    _, processor = load(str(out), "float32")
    assert (processor.max_question_tokens, processor.max_answer_tokens) == (250, 200)
    with pytest.raises(InputError, match="num_query_tokens belongs to an adapter"):
        short("other", settings={"num_query_tokens": 2})
    if part == "question":
        evaluate(data=path, checkpoint=str(out), out=place / "eval", dtype="float32")


def test_a_question_that_would_be_cut_is_refused_when_answered(place, wordy, capsys):
    path, part = wordy
    question = json.loads(path.read_text().splitlines()[-1])["question"]
    ways = [
        lambda: evaluate(data=path, checkpoint=str(place / "base"), out=place / "eval",
                         dtype="float32"),
        lambda: ask(question, place / "0.png", str(place / "base"), dtype="float32"),
    ]  # fmt: skip
    for way in ways:
        if part == "answer":  # which nobody reads here
            way()
            continue
        with pytest.raises(InputError, match=r"has a longer question than the 60 tokens.*Shorten"):
            way()
    ask(question, None, str(place / "base"), dtype="float32", max_new_tokens=2)
    with pytest.raises(InputError, match="longer question than the 256 tokens"):
        ask(
            "Is there a circle? " * 150,
            None,
            str(place / "base"),
            dtype="float32",
            max_new_tokens=2,
        )
