import json
from pathlib import Path

import pytest

from crome.errors import InputError
from crome.evaluation.predictions import Prediction
from crome.evaluation.scoring import score_answers
from crome.evaluation.tasks import rows


def read(tmp_path: Path, *entries: dict) -> list[dict]:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return rows.ROWS.read(str(file))


def said(**responses: str) -> dict[str, Prediction]:
    return {key: Prediction(key, response=text) for key, text in responses.items()}


def test_exact_match_by_kind(tmp_path: Path) -> None:
    records = read(
        tmp_path,
        {"id": "a", "question": "Which shape?", "answer": "circle", "kind": "shape"},
        {"id": "b", "question": "Which colour?", "answer": "red", "kind": "colour"},
        {"id": "c", "question": "Which colour?", "answer": "red", "kind": "colour"},
    )
    scores, baselines = score_answers(rows.ROWS, records, said(a="Circle.", b="a red one"))
    assert scores.metrics["rows/exact-match"].value == 1 / 3
    assert scores.metrics["rows/exact-match/shape"].value == 1
    assert scores.metrics["rows/exact-match/colour"].n == 2
    assert baselines == {
        "always red": {
            "rows/exact-match": pytest.approx(2 / 3),
            "rows/exact-match/shape": 0,
            "rows/exact-match/colour": 1,
        }
    }
    vqa, _ = score_answers(rows.ROWS, records, said(a="The circle"), "vqa-accuracy")
    assert vqa.metrics["rows/vqa-accuracy/shape"].value == 1


def test_choices_by_letter_and_by_rank(tmp_path: Path) -> None:
    records = read(
        tmp_path,
        {"id": "a", "question": "Which?", "answer": "red", "choices": ["blue", "red"]},
        {"id": "b", "question": "Which?", "answer": "B", "choices": ["blue", "red"]},
    )
    asked = rows.ROWS.question(records[0], "llava")
    assert asked.candidates == ("A", "B")
    assert asked.prompt.startswith("Which?\nA. blue\nB. red\n")
    scores, baselines = score_answers(rows.ROWS, records, said(a="B", b="A"), "letter")
    assert scores.metrics["rows/letter"].value == 0.5
    assert baselines["always B"]["rows/letter"] == 1
    assert baselines["always red"]["rows/letter"] == 1
    ranked = {k: Prediction(k, losses=(2.0, 1.0)) for k in "ab"}
    assert score_answers(rows.ROWS, records, ranked, "rank")[0].metrics["rows/rank"].value == 1


def test_an_answer_that_is_no_choice_is_named(tmp_path: Path) -> None:
    records = read(
        tmp_path, {"id": "a", "question": "Which?", "answer": "green", "choices": ["blue", "red"]}
    )
    with pytest.raises(
        InputError, match=r"row a: the answer 'green' is none of its choices \(blue"
    ):
        score_answers(rows.ROWS, records, said(a="B"), "letter")


def test_official_style_is_the_bare_question(tmp_path: Path) -> None:
    (record,) = read(tmp_path, {"question": "Which colour?", "answer": "red"})
    assert rows.ROWS.question(record, "official").prompt == "Which colour?"
    assert record["id"] == "0"


def test_scoring_needs_no_pictures(tmp_path: Path) -> None:
    (record,) = read(tmp_path, {"image": "gone.png", "question": "Which?", "answer": "red"})
    assert record["images"] == (str(tmp_path / "gone.png"),)
    scores, _ = score_answers(rows.ROWS, [record], {"0": Prediction("0", response="red")})
    assert scores.metrics["rows/exact-match"].value == 1
