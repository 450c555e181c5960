"""Rows that are longer than the language model reads are refused before a run, or left out."""

import json

import pytest

from crome.data.validate import validate
from crome.errors import InputError


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


def test_validate_names_rows_that_a_checkpoint_cannot_read(place, too_long, capsys):
    validate(too_long)
    assert "endless" not in capsys.readouterr().out
    validate(too_long, checkpoint=str(place / "base"))
    said = " ".join(capsys.readouterr().out.split())
    assert "long.jsonl, row endless has" in said
    assert "the language model reads 256." in said
    validate(place / "rows.jsonl", checkpoint=str(place / "base"))
    assert "the language model reads" not in capsys.readouterr().out
