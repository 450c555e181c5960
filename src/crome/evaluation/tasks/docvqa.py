"""DocVQA (arXiv 2007.00398) and InfographicVQA (arXiv 2104.12756), by ANLS.

Questions on scanned documents and on infographics, with several accepted answers. The answers of
both test splits are hidden.
"""

from functools import partial

from crome.evaluation import cells
from crome.evaluation.answers import anls, best
from crome.evaluation.predictions import Prediction
from crome.evaluation.sources import Row, records_from
from crome.evaluation.tally import averaged
from crome.evaluation.task import Protocol, Record, Task
from crome.evaluation.tasks.choices import most_frequent
from crome.evaluation.tasks.prompts import short_question


def _record(row: Row, number: int) -> Record:
    """A released annotation (`val_v1.0.json`), or a hub row."""
    answers = tuple(cells.texts(row.get("answers")))
    return {
        "id": cells.identity(cells.first(row, "questionId", "question_id")),
        "question": cells.text(row["question"]),
        "answer": answers[0] if answers else None,
        "accepted": answers,
        "types": tuple(cells.texts(row.get("question_types") or row.get("answer_type"))),
        "images": cells.pictures(row, "image", "image_local_name"),
    }


def parse(record: Record, prediction: Prediction) -> str:
    """The response as it stands: case and runs of space do not count in ANLS."""
    return prediction.response


def _similarity(record: Record, answer: str) -> float:
    return best(anls, answer, record["accepted"])


def _first_type(record: Record) -> str | None:
    return next(iter(record["types"]), None)


DOCVQA, INFOVQA = (
    Task(
        name=name,
        read=partial(records_from, make=_record),
        question=short_question,
        protocols={"anls": Protocol(parse, averaged(_similarity, _first_type))},
        baselines=most_frequent,
        releases=releases,
    )
    for name, releases in (
        ("docvqa", {5349: "validation", 5188: "test"}),
        ("infovqa", {2801: "validation", 3288: "test"}),
    )
)
