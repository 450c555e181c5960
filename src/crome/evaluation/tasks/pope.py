"""POPE (arXiv 2305.10355): is an object in the picture? 3,000 questions in each of three settings.

Objects that are not there are drawn at random, from the popular ones, or from those that often
stand beside what is there.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from crome.evaluation import cells
from crome.evaluation.predictions import Prediction
from crome.evaluation.sources import Row, read_rows, records_from
from crome.evaluation.tally import accuracy
from crome.evaluation.task import Answers, Protocol, Record, Scores, Task, grouped
from crome.evaluation.tasks import yes_no
from crome.evaluation.tasks.prompts import yes_no_question

SETTINGS = ("random", "popular", "adversarial")


def _rows(source: str) -> list[Row]:
    """The rows of `coco_pope_<setting>.json`, of a folder with several of them, or of the hub."""
    files = [str(file) for file in sorted(Path(source).glob("*pope*.json"))]
    return [
        {"category": next((s for s in SETTINGS if s in Path(file).stem), "")} | row
        for file in files or [source]
        for row in read_rows(file)
    ]


def _record(row: Row, number: int) -> Record:
    setting = cells.text(row.get("category"))
    identity = cells.identity(row["question_id"])
    return {
        "id": f"{setting}/{identity}" if setting else identity,
        "question": cells.text(row.get("text") or row.get("question")),
        "answer": cells.yes_no(cells.first(row, "label", "answer")),
        "category": setting or None,
        "images": cells.pictures(row),
    }


def parse(record: Record, prediction: Prediction) -> str:
    """No when the first sentence has the word no or not, and otherwise, whatever it says, yes."""
    words = prediction.response.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def tally(name: str, records: Sequence[Record], answers: Answers) -> Scores:
    """Accuracy, and precision, recall and F1 of "yes", of all questions and of each setting."""
    scores = accuracy("category")(name, records, answers)
    scores.metrics.update(yes_no.yes_metrics(name, records, answers))
    for setting, members in grouped(records, lambda record: record["category"]).items():
        scores.metrics.update(yes_no.yes_metrics(f"{name}/{setting}", members, answers))
    return scores


POPE = Task(
    name="pope",
    read=partial(records_from, make=_record, rows=_rows),
    question=yes_no_question,
    protocols={"official": Protocol(parse, tally), "tolerant": Protocol(yes_no.tolerant, tally)},
    baselines=yes_no.constant_yes_no,
    releases={9000: "random, popular and adversarial", 3000: "one setting"},
)
