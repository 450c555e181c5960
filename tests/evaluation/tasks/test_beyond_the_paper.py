"""Benchmarks beyond the paper: their layouts, their rules, and what these make of odd replies."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from crome.errors import InputError
from crome.evaluation import tasks
from crome.evaluation.asking import asking, hidden_answers, questions, require_pictures
from crome.evaluation.grading import Grading
from crome.evaluation.predictions import Prediction
from crome.evaluation.scoring import score_answers
from crome.evaluation.task import Record, Scores
from crome.evaluation.tasks import chartqa, get_task, read_records
from crome.evaluation.tasks.prompts import OPTION_LETTER, SHORT_ANSWER

NEW = (
    "pope", "textvqa", "gqa", "chartqa", "docvqa", "infovqa", "mmstar", "mathvista", "realworldqa",
)  # fmt: skip


def read(task: str, path: Path, content: Any) -> list[Record]:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_records(get_task(task), str(path))


def score(
    task: str, records: list[Record], replies: list[str], protocol: str | None = None
) -> Scores:
    said = {
        r["id"]: Prediction(r["id"], response=text)
        for r, text in zip(records, replies, strict=True)
    }
    return score_answers(get_task(task), records, said, protocol)[0]


def values(scores: Scores) -> dict[str, float]:
    return {name: metric.value for name, metric in scores.metrics.items()}


POPE = "".join(
    json.dumps({"question_id": k, "image": "a.jpg", "text": f"Is there {k}?", "label": gold}) + "\n"
    for k, gold in enumerate(("yes", "yes", "no", "no"), start=1)
)
ROWS: dict[str, Any] = {
    "pope": POPE,
    "textvqa": {"data": [{"question_id": 7, "question": "What brand?", "image_id": "ab",
                          "answers": ["nous les gosses"] * 6 + ["gosses"] * 4}]},
    "gqa": {"201": {"question": "Is it red?", "imageId": "n1", "answer": "no",
                    "types": {"structural": "verify", "semantic": "attr"}}},
    "chartqa": [{"imgname": "c.png", "query": "How many?", "label": "14"}],
    "docvqa": {"data": [{"questionId": 3, "question": "Date?", "image": "documents/d.png",
                         "answers": ["May 2, 1998", "5/2/98"], "question_types": ["form"]}]},
    "infovqa": {"data": [{"questionId": 3, "question": "Share?", "image_local_name": "3.jpeg",
                          "answers": ["12%"]}]},
    "mmstar": [{"index": 0, "question": "Which?\nOptions: A: red, dark, B: blue, C: two, D: x",
                "answer": "B", "category": "logic", "l2_category": "deep", "image": "a.jpg"}],
    "mathvista": {"1": {"question": "Sum?", "question_type": "free_form", "answer_type": "float",
                        "answer": "1.2", "precision": 1.0, "choices": None, "image": "i/1.jpg",
                        "query": "Hint: …\nQuestion: Sum?", "metadata": {"task": "figure"}}},
    "realworldqa": [{"question": "Which way?\nA. left\nB. right\nPlease answer directly with only "
                     "the letter of the correct option and nothing else.",
                     "answer": "B", "image": "a.webp"}],
}  # fmt: skip


@pytest.mark.parametrize("name", NEW)
def test_released_layouts_make_questions_with_pictures(tmp_path: Path, name: str) -> None:
    task = get_task(name)
    records = read(name, tmp_path / "coco_pope_random.json", ROWS[name])
    require_pictures(task, records)
    rows = questions(task, records, asking(task, None, None, Grading()), tmp_path, tmp_path)
    assert rows[0].question
    assert rows[0].images
    asked = task.question(records[0], "llava").prompt
    assert asked.count(SHORT_ANSWER) + asked.count(OPTION_LETTER) + ("nothing else" in asked) == 1
    scores = score(name, records, [""] * len(records))
    (first, *_) = scores.metrics
    assert first == f"{name}/{next(iter(task.protocols))}"


@pytest.mark.parametrize("name", sorted({*NEW} - {"textvqa"}))  # which shares VQAv2's file
def test_a_benchmark_takes_less_than_a_hundred_lines(name: str) -> None:
    module = import_module(f"{tasks.__name__}.{tasks.TASKS[name][0]}")
    assert len(Path(str(module.__file__)).read_text().splitlines()) < 100


def test_pope_counts_yes_and_falls_back_on_it(tmp_path: Path) -> None:
    records = read("pope", tmp_path / "coco_pope_popular.json", POPE)
    assert [r["id"] for r in records][:2] == ["popular/1", "popular/2"]
    replies = ["Yes, there is.", "There is not one. Yes", "I cannot tell", "No"]
    found = values(score("pope", records, replies))
    assert found["pope/official"] == 0.5  # hit, missed, false alarm, right no
    assert found["pope/official/precision"] == 0.5
    assert found["pope/official/recall"] == 0.5
    assert found["pope/official/f1"] == 0.5
    assert found["pope/official/yes-ratio"] == 0.5
    assert found["pope/official/popular/f1"] == 0.5
    (tmp_path / "coco_pope_random.json").write_text(POPE)
    assert len(read_records(get_task("pope"), str(tmp_path))) == 8


def test_textvqa_normalises_annotators_too(tmp_path: Path) -> None:
    row = {"question_id": 1, "question": "?", "image_id": "a"}
    given = ["The Dog's bone!"] * 3 + ["cat"] * 7
    records = read("textvqa", tmp_path / "t.json", [row | {"answers": given}])
    scores = score("textvqa", records, ["dog 's bone"])
    # Three of ten agree: left out one in three times, three others remain in seven of ten.
    assert scores.metrics["textvqa/m4c"].value == pytest.approx(100 * (3 * 2 / 3 + 7) / 10)
    assert score("textvqa", records, ["cat"]).metrics["textvqa/m4c"].value == 100


def test_gqa_ignores_case_and_a_full_stop_alone(tmp_path: Path) -> None:
    records = read("gqa", tmp_path / "g.json", ROWS["gqa"])
    for reply, right in (("No.", 1), ("no", 1), ("No, it is not", 0), (" no", 0)):
        found = values(score("gqa", records, [reply]))
        assert found["gqa/llava"] == found["gqa/llava/verify"] == right
    assert values(score("gqa", records, [" No。"], "tolerant"))["gqa/tolerant"] == 1


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        ("14.7", "14", True),
        ("14.71", "14", False),
        ("13.3", "14", True),
        ("50%", "0.5", True),
        ("50", "50%", False),
        ("0.1", "0", False),  # 5 % of nothing
        ("0", "0", True),
        ("Yes", "yes", True),
        ("14 million", "14", False),
    ],
)
def test_chartqa_is_relaxed_by_five_percent(response: str, answer: str, right: bool) -> None:
    assert chartqa.is_right(response, answer) == right


def test_chartqa_halves_have_ids_of_their_own(tmp_path: Path) -> None:
    for part in chartqa.PARTS:
        (tmp_path / f"test_{part}.json").write_text(json.dumps(ROWS["chartqa"]))
    records = read_records(get_task("chartqa"), str(tmp_path))
    assert [r["id"] for r in records] == ["human/0", "augmented/0"]
    found = values(score("chartqa", records, ["14", "x"]))
    assert (found["chartqa/relaxed/human"], found["chartqa/relaxed/augmented"]) == (1, 0)


def test_docvqa_takes_the_nearest_accepted_answer(tmp_path: Path) -> None:
    records = read("docvqa", tmp_path / "d.json", ROWS["docvqa"])
    for reply, expected in (
        ("5/2/98", 1), ("MAY 2,  1998", 1), ("May 2 1998", 10 / 11), ("June", 0), ("", 0),
    ):  # fmt: skip
        found = values(score("docvqa", records, [reply]))
        assert found["docvqa/anls"] == found["docvqa/anls/form"] == pytest.approx(expected)


def test_docvqa_test_answers_are_hidden(tmp_path: Path) -> None:
    row = {"questionId": 3, "question": "Date?", "image": "d.png"}
    records = read("docvqa", tmp_path / "d.json", {"data": [row]})
    assert hidden_answers(get_task("docvqa"), records)
    with pytest.raises(InputError, match="1 of 1 records have no answer"):
        score("docvqa", records, ["x"])


def test_mmstar_reads_options_and_its_four_forms(tmp_path: Path) -> None:
    (record,) = records = read("mmstar", tmp_path / "m.json", ROWS["mmstar"])
    assert record["options"] == {"A": "red, dark", "B": "blue", "C": "two", "D": "x"}
    for reply, right in (
        ("B", 1), ("b. blue", 1), ("(B) blue", 1), ("Option B", 1), ("The answer is B.", 1),
        ("It is B", 0), ("A", 0), ("blue", 1), ("", 0),  # blue begins with its letter
    ):  # fmt: skip
        assert values(score("mmstar", records, [reply]))["mmstar/official"] == right
    assert values(score("mmstar", records, ["It is **B**"], "tolerant"))["mmstar/tolerant"] == 1


@pytest.mark.parametrize(
    ("change", "reply", "right"),
    [
        ({}, "1.23", 1),
        ({}, 'The answer is "1.2".', 1),
        ({}, "It is 1.2", 0),  # extraction is a language model's work
        ({"answer_type": "integer", "answer": "5"}, "5.0", 1),
        ({"answer_type": "integer", "answer": "5"}, "five", 0),
        ({"answer_type": "text", "choices": ["Yes", "No"], "answer": "No"}, "(B)", 1),
        ({"answer_type": "text", "choices": ["Yes", "No"], "answer": "No"}, "B", 1),
        ({"answer_type": "text", "choices": ["Yes", "No"], "answer": "No"}, "Noo", 1),
        ({"answer_type": "list", "answer": "[1, 2]"}, "[1, 2]", 1),
    ],
)
def test_mathvista_rules(tmp_path: Path, change: dict, reply: str, right: float) -> None:
    records = read("mathvista", tmp_path / "m.json", {"1": ROWS["mathvista"]["1"] | change})
    assert values(score("mathvista", records, [reply]))["mathvista/rules"] == right
    assert get_task("mathvista").question(records[0], "official").prompt.startswith("Hint")


def test_mathvista_has_a_tolerant_reading_of_options(tmp_path: Path) -> None:
    choice = {"answer_type": "text", "choices": ["Yes", "No"], "answer": "No"}
    records = read("mathvista", tmp_path / "m.json", {"1": ROWS["mathvista"]["1"] | choice})
    for reply, right in (("So the answer is **B**.", 1), ("I cannot say", 0), ("A", 0)):
        found = values(score("mathvista", records, [reply], "tolerant"))
        assert found["mathvista/tolerant"] == right


def test_realworldqa_takes_letters_and_words(tmp_path: Path) -> None:
    word = {"question": "How many?", "answer": "2", "image": "a.webp"}
    records = read("realworldqa", tmp_path / "r.json", [*ROWS["realworldqa"], word])
    assert records[0]["options"] == {"A": "left", "B": "right"}
    found = values(score("realworldqa", records, ["B. right", "Two."]))
    assert found["realworldqa/exact-match"] == 1
    found = values(score("realworldqa", records, ["I would go right", "two"], "tolerant"))
    assert found["realworldqa/tolerant/letter"] == 1
