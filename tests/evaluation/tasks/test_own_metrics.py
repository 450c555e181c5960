"""What people measure on their own rows: accepted answers, tolerance, ANLS, classes, a rubric."""

import json
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import confusion_matrix, f1_score

from crome.errors import InputError
from crome.evaluation.answers import anls, edit_distance, number, within
from crome.evaluation.grading import Grading, score_judged
from crome.evaluation.predictions import Prediction
from crome.evaluation.score import score
from crome.evaluation.scoring import score_answers
from crome.evaluation.task import Record, Scores
from crome.evaluation.tasks import rubric
from crome.evaluation.tasks.rows import ROWS, read


def rows(tmp_path: Path, *entries: dict[str, Any]) -> list[Record]:
    file = tmp_path / "rows.jsonl"
    made = [{"id": str(k), "question": f"{k}?"} | entry for k, entry in enumerate(entries)]
    file.write_text("".join(json.dumps(entry) + "\n" for entry in made))
    return read(str(file))


def scored(records: list[Record], replies: list[str], protocol: str) -> Scores:
    said = {str(k): Prediction(str(k), response=text) for k, text in enumerate(replies)}
    return score_answers(ROWS, records, said, protocol)[0]


def test_every_accepted_answer_is_right(tmp_path: Path) -> None:
    entry = {"answer": "NYC", "answers": ["New York", "New York City"]}
    for reply, right in (("NYC", 1), ("new york city", 1), ("Boston", 0)):
        for protocol in ("exact-match", "vqa-accuracy", "anls", "classes"):
            scores = scored(rows(tmp_path, entry), [reply], protocol)
            assert scores.metrics[f"rows/{protocol}"].value == right


def test_full_width_and_composed_forms_are_the_same(tmp_path: Path) -> None:
    for reply, answer in (("はい。", "はい"), ("ＡＢＣ", "abc"), ("cafe\u0301", "café")):
        scores = scored(rows(tmp_path, {"answer": answer}), [reply], "exact-match")
        assert scores.metrics["rows/exact-match"].value == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12), ("-3.5", -3.5), ("1,250", 1250), ("1 250", 1250), ("$1250.00", 1250),
        ("12.5 kg", 12.5), ("40 %", 0.4), ("1.25e3", 1250), (".5", 0.5), ("１２", 12), ("12.", 12),
        ("about 12", None), ("", None), ("-", None), ("12 or 13", None), ("v1.2.3", None),
    ],
)  # fmt: skip
def test_number(text: str, value: float | None) -> None:
    assert number(text) == (value if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    ("response", "answer", "tolerance", "right"),
    [
        ("105", "100", 0.05, 1), ("105.1", "100", 0.05, 0), ("95", "100", 0.05, 1),
        ("100 m", "100", 0.0, 1), ("100.1", "100", 0.0, 0), ("-95", "-100", 0.05, 1),
        ("0", "0", 0.05, 1), ("0.01", "0", 0.05, 0), ("red", "Red.", 0.05, 1),
        ("5", "red", 0.05, 0),
    ],
)  # fmt: skip
def test_within(response: str, answer: str, tolerance: float, right: float) -> None:
    assert within(response, answer, tolerance) == right


def test_tolerance_is_part_of_the_protocol_s_name(tmp_path: Path) -> None:
    records = rows(tmp_path, {"answer": "200"})
    for protocol, right in (("number", 0), ("within-1", 0), ("within-5", 1), ("within-10", 1)):
        assert scored(records, ["208"], protocol).metrics[f"rows/{protocol}"].value == right


def slow_distance(a: str, b: str) -> int:
    if not a or not b:
        return len(a) + len(b)
    return min(
        slow_distance(a[1:], b) + 1,
        slow_distance(a, b[1:]) + 1,
        slow_distance(a[1:], b[1:]) + (a[0] != b[0]),
    )


@pytest.mark.parametrize(
    ("a", "b"), [("", "ab"), ("kit", "sit"), ("kitten", "sittin"), ("ab", "ba")]
)
def test_edit_distance_is_that_of_its_definition(a: str, b: str) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) == slow_distance(a, b)


@pytest.mark.parametrize(
    ("response", "answer", "value"),
    [
        ("Hello  World", "hello world", 1), ("helo world", "hello world", 10 / 11),
        ("abcd", "abxy", 0.5), ("abc", "axyz", 0), ("", "x", 0), ("", "", 1),
    ],
)  # fmt: skip
def test_anls(response: str, answer: str, value: float) -> None:
    assert anls(response, answer) == pytest.approx(value)


def test_classes_agree_with_scikit_learn(tmp_path: Path) -> None:
    gold = ["crack", "crack", "ok", "ok", "dent", "ok"]
    replies = ["Crack.", "ok", "ok", "dent", "dent", "no idea"]
    scores = scored(rows(tmp_path, *({"answer": answer} for answer in gold)), replies, "classes")
    said = ["crack", "ok", "ok", "dent", "dent", "(other)"]
    values = {name: metric.value for name, metric in scores.metrics.items()}
    assert values["rows/classes"] == 0.5
    names = ["crack", "ok", "dent"]
    each = f1_score(gold, said, labels=names, average=None, zero_division=0)
    for name, expected in zip(names, each, strict=True):
        assert values[f"rows/classes/f1 of {name}"] == pytest.approx(expected)
    assert values["rows/classes/macro-f1"] == pytest.approx(each.mean())
    matrix = confusion_matrix(gold, said, labels=[*names, "(other)"])
    for i, row in enumerate(names):
        for j, column in enumerate([*names, "(other)"]):
            assert scores.confusion[row].get(column, 0) == matrix[i, j]
    assert scores.counts["no class"] == 1


def test_classes_of_choices_are_their_texts(tmp_path: Path) -> None:
    entries = [
        {"answer": "red", "choices": ["blue", "red"]},
        {"answer": "A", "choices": ["red", "x"]},
    ]
    scores = scored(rows(tmp_path, *entries), ["B", "red"], "classes")
    assert scores.confusion == {"red": {"red": 2}}


def test_the_confusion_matrix_is_in_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows(tmp_path, {"answer": "a"}, {"answer": "b"})
    said = tmp_path / "p.json"
    said.write_text('{"0": "a", "1": "a"}')
    score(
        "rows", predictions=str(said), references=str(tmp_path / "rows.jsonl"), protocol="classes"
    )
    report = json.loads(capsys.readouterr().out)
    assert report["confusion"] == {"a": {"a": 1}, "b": {"a": 1}}
    score(
        "rows", predictions=str(said), references=str(tmp_path / "rows.jsonl"), protocol="classes",
        json=False,
    )  # fmt: skip
    assert "right answer" in capsys.readouterr().out


class Grader:
    """Gives the grade that stands in the answer, and keeps what it was asked."""

    name = "grader"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, messages: Any, *, temperature: float, max_tokens: int) -> str:
        self.asked.append(messages[0]["content"])
        return messages[0]["content"].split("Answer: ")[1].split("\n")[0]


def test_a_judge_grades_by_a_rubric(tmp_path: Path) -> None:
    records = rows(tmp_path, {"answer": "red {question}", "kind": "x"}, {"answer": "blue"})
    said = {
        "0": Prediction("0", response="<think>0</think>1"),
        "1": Prediction("1", response="5/10"),
    }
    wording = tmp_path / "strict.txt"
    wording.write_text("1 for the right shade, else 0.")
    grader = Grader()
    grading = Grading(ask=grader, prompt=str(wording))
    scores = score_judged(ROWS, records, said, grading, tmp_path / "p.jsonl")
    (name, *_) = scores.metrics
    assert name.startswith("rows/grader[strict-")
    assert scores.metrics[name].value == 0.75
    assert "1 for the right shade" in grader.asked[0]
    assert "Reference: red {question}" in grader.asked[0]
    plain = score_judged(ROWS, records, said, Grading(ask=Grader()), tmp_path / "q.jsonl")
    assert "rows/grader[rubric-1]x1" in plain.metrics


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("1", 1), ("0.5", 0.5), ("Grade: 0.5", 0.5), ("**Score: 7/10**", 0.7), ("0.\nBecause.", 0),
        ("It is good.\nGrade: 1", 1), ("2", None), ("7", None), ("1 or 0", None), ("", None),
        ("good", None), ("3/0", None), ("nan", None),
    ],
)  # fmt: skip
def test_reading_a_grade(reply: str, grade: float | None) -> None:
    assert rubric.parse_verdict(reply) == grade


def test_an_empty_rubric_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text(" \n")
    with pytest.raises(InputError, match="the rubric is empty"):
        rubric.rules(str(tmp_path / "r.txt"))
