import json
from pathlib import Path

import pytest

from crome.evaluation.predictions import Prediction
from crome.evaluation.scoring import score_answers
from crome.evaluation.tasks import scienceqa
from crome.evaluation.tasks.scienceqa import SCIENCEQA, SCIENCEQA_IMG

PROBLEM = {
    "question": "Which is a bird?",
    "choices": ["kite", "carp"],
    "answer": 0,
    "hint": "Birds fly.",
    "image": "image.png",
    "grade": "grade7",
    "subject": "natural science",
    "split": "test",
}


def problems(tmp_path: Path) -> str:
    table = {
        "5": PROBLEM,
        "6": PROBLEM | {"image": None, "hint": "", "grade": "grade2", "answer": 1},
        "7": PROBLEM | {"split": "train"},
    }
    (tmp_path / "problems.json").write_text(json.dumps(table))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        ("B. carp", "B"),
        (" B\n", "B"),
        ("B.", None),
        ("The answer is B.", "B"),
        ("The answer is B, since carps swim", "B"),  # any character will do behind the letter
        ("The answer is B", None),
        ("The answer is A. No: The answer is B.", None),
        ("The answer is A. The answer is Z.", None),
        ("B is a fish", None),
        ("E", None),
        ("", None),
    ],
)
def test_parse(response: str, letter: str | None) -> None:
    record = {"options": {"A": "kite", "B": "carp"}}
    assert scienceqa.parse(record, Prediction("1", response=response)) == letter


def test_official_columns(tmp_path: Path) -> None:
    records = SCIENCEQA.read(problems(tmp_path))
    assert [r["id"] for r in records] == ["5", "6"]
    said = {k: Prediction(k, response="A") for k in ("5", "6")}
    scores, _ = score_answers(SCIENCEQA, records, said)
    values = {name: (m.value, m.n) for name, m in scores.metrics.items()}
    assert values == {
        "scienceqa/llava": (0.5, 2),
        "scienceqa/llava/NAT": (0.5, 2),
        "scienceqa/llava/TXT": (1, 1),
        "scienceqa/llava/IMG": (1, 1),
        "scienceqa/llava/NO": (0, 1),
        "scienceqa/llava/G7-12": (1, 1),
        "scienceqa/llava/G1-6": (0, 1),
    }
    assert [r["id"] for r in SCIENCEQA_IMG.read(problems(tmp_path))] == ["5"]


def test_question(tmp_path: Path) -> None:
    record = SCIENCEQA.read(problems(tmp_path))[0]
    asked = SCIENCEQA.question(record, "llava")
    assert asked.prompt == (
        "Context: Birds fly.\nWhich is a bird?\nA. kite\nB. carp\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert record["images"] == ("test/5/image.png",)
    assert SCIENCEQA.question(record, "instructblip").prompt.startswith("context: Birds fly. Quest")


def test_llava_file_gives_the_same_prompt(tmp_path: Path) -> None:
    ask = "<image>\nContext: Birds fly.\nWhich is a bird?\nA. kite\nB. carp"
    turns = [{"from": "human", "value": ask}, {"from": "gpt", "value": "A"}]
    file = tmp_path / "llava.json"
    file.write_text(json.dumps([{"id": "5", "image": "5/image.png", "conversations": turns}]))
    (record,) = SCIENCEQA.read(str(file))
    official = SCIENCEQA.read(problems(tmp_path))[0]
    assert (
        SCIENCEQA.question(record, "llava").prompt == SCIENCEQA.question(official, "llava").prompt
    )
    assert record["images"]
