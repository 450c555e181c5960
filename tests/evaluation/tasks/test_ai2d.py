import json
from pathlib import Path

import pytest

from crome.evaluation.predictions import Prediction
from crome.evaluation.scoring import score_answers
from crome.evaluation.tasks import ai2d

SENTENCE = "Answer with the option's letter from the given choices directly."


def read(tmp_path: Path, *rows: dict) -> list[dict]:
    file = tmp_path / "ai2d.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ai2d.AI2D.read(str(file))


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("C", "C"),
        ("c", "C"),
        ("(C)", "C"),
        ("C. the sun", "C"),
        ("C: the sun", None),
        ("..C..", "C"),
        ("c. the sun", None),  # only a capital is cut off
        ("the sun", None),
        ("E", None),
        ("", None),
    ],
)
def test_parse(response: str, letter: str | None) -> None:
    record = {"options": dict.fromkeys("ABCD", "x")}
    assert ai2d.parse(record, Prediction("1", response=response)) == letter


def test_lettered_questions_and_the_two_image_sets(tmp_path: Path) -> None:
    text = f"Where is the core?\nA. in\nB. out\nC. up\nD. down\n{SENTENCE}"
    records = read(
        tmp_path,
        {"question_id": "7.png-1", "image": "images/7.png", "question": text, "answer": "A"},
        {"question_id": "7.png-2", "image": "abc_images/7.png", "question": text, "answer": "B"},
    )
    assert records[0]["question"] == "Where is the core?"
    assert ai2d.AI2D.question(records[0], "llava").prompt == text
    said = {r["id"]: Prediction(r["id"], response="A") for r in records}
    scores, _ = score_answers(ai2d.AI2D, records, said)
    values = {name: m.value for name, m in scores.metrics.items()}
    assert values["ai2d/generate/labels-shown"] == 1
    assert values["ai2d/generate/letter-masked"] == 0


def test_rows_with_a_list_of_options(tmp_path: Path) -> None:
    (record,) = read(
        tmp_path,
        {
            "question": "<image 1> What is it?",
            "options": ["sun", "moon"],
            "answer": "1",
            "image_1": "a.jpg",
        },
    )
    assert record["question"] == "What is it?"
    assert record["answer"] == "B"
    assert record["images"] == ("a.jpg",)
