"""POPE (arXiv 2305.10355): is an object in the picture? 3,000 questions in each of three settings.

Objects that are not there are drawn at random, from the popular ones, or from those that often
stand beside what is there.
"""

from collections.abc import Sequence
from pathlib import Path

from crome.evaluation import cells
from crome.evaluation.predictions import Prediction
from crome.evaluation.sources import Row, need, read_rows, records_from
from crome.evaluation.task import (
    Answers,
    Protocol,
    Question,
    Record,
    Scores,
    Task,
    grouped,
    mean_metric,
)
from crome.evaluation.tasks import yes_no
from crome.evaluation.tasks.prompts import short_answer

SETTINGS = ("random", "popular", "adversarial")


def read(source: str) -> list[Record]:
    """Reads `coco_pope_<setting>.json`, a folder with several of them, or hub rows."""
    path = Path(source)
    files = [str(file) for file in sorted(path.glob("*pope*.json"))]
    rows = [
        {"category": _setting(file)} | row for file in files or [source] for row in read_rows(file)
    ]
    return records_from(source, _record, rows)


def _setting(name: str) -> str:
    return next((setting for setting in SETTINGS if setting in Path(name).stem), "")


def _record(row: Row, number: int) -> Record:
    gold = "label" if "label" in row else "answer"
    need(row, ("question_id", gold))
    setting = cells.text(row.get("category"))
    identity = cells.identity(row["question_id"])
    return {
        "id": f"{setting}/{identity}" if setting else identity,
        "question": cells.text(row.get("text") or row.get("question")),
        "answer": cells.yes_no(row[gold]),
        "category": setting or None,
        "images": cells.pictures(row),
    }


def question(record: Record, style: str) -> Question:
    """The released question; all styles but `official` add their short-answer wording."""
    text = short_answer(record["question"], style)
    return Question(record["id"], text, record["images"], ("yes", "no"))


def parse(record: Record, prediction: Prediction) -> str:
    """No when the first sentence has the word no or not, and otherwise, whatever it says, yes."""
    words = prediction.response.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def tally(name: str, records: Sequence[Record], answers: Answers) -> Scores:
    """Accuracy, and precision, recall and F1 of "yes", of all questions and of each setting."""
    rows = {r["id"]: float(answers.get(r["id"]) == r["answer"]) for r in records}
    metrics = {name: mean_metric(records, rows)} | yes_no.yes_metrics(name, records, answers)
    for setting, members in grouped(records, lambda record: record["category"]).items():
        metrics[f"{name}/{setting}"] = mean_metric(members, rows)
        metrics |= yes_no.yes_metrics(f"{name}/{setting}", members, answers)
    return Scores(metrics, rows, {"correct": round(sum(rows.values()))})


POPE = Task(
    name="pope",
    read=read,
    question=question,
    protocols={"official": Protocol(parse, tally), "tolerant": Protocol(yes_no.tolerant, tally)},
    baselines=yes_no.constant_yes_no,
    releases={9000: "random, popular and adversarial", 3000: "one setting"},
)
