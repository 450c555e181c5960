"""DocVQA (arXiv 2007.00398) and InfographicVQA (arXiv 2104.12756), by ANLS.

Questions on scanned documents and on infographics, with several accepted answers. The answers of
both test splits are hidden.
"""

from collections.abc import Sequence

from crome.errors import InputError
from crome.evaluation import cells
from crome.evaluation.answers import anls, best
from crome.evaluation.predictions import Prediction
from crome.evaluation.sources import Row, need, records_from
from crome.evaluation.task import (
    Answers,
    Protocol,
    Question,
    Record,
    Scores,
    Task,
    mean_metrics,
)
from crome.evaluation.tasks import choices
from crome.evaluation.tasks.prompts import short_answer


def read(source: str) -> list[Record]:
    """Reads the released annotations (`val_v1.0.json`), or hub rows."""
    return records_from(source, _record)


def _record(row: Row, number: int) -> Record:
    identity = "questionId" if "questionId" in row else "question_id"
    need(row, (identity, "question"))
    answers = tuple(cells.texts(row.get("answers")))
    return {
        "id": cells.identity(row[identity]),
        "question": cells.text(row["question"]),
        "answer": answers[0] if answers else None,
        "accepted": answers,
        "types": tuple(cells.texts(row.get("question_types") or row.get("answer_type"))),
        "images": cells.pictures(row, "image", "image_local_name"),
    }


def question(record: Record, style: str) -> Question:
    """The question with the short-answer sentence."""
    return Question(record["id"], short_answer(record["question"], style), record["images"])


def parse(record: Record, prediction: Prediction) -> str:
    """The response as it stands: case and runs of space do not count in ANLS."""
    return prediction.response


def tally(name: str, records: Sequence[Record], answers: Answers) -> Scores:
    """Mean ANLS, the best over the accepted answers; also by the first type of a question.

    Raises:
        InputError: The answers are hidden, as in the test splits.
    """
    hidden = sum(record["answer"] is None for record in records)
    if hidden:
        raise InputError(f"{hidden} records have no answers: those of the test split are hidden.")
    rows = {
        r["id"]: best(anls, answers[r["id"]], r["accepted"]) if r["id"] in answers else 0.0
        for r in records
    }
    by_type = [lambda record: next(iter(record["types"]), None)]
    return Scores(mean_metrics(name, records, rows, by_type), rows)


def _task(name: str, releases: dict[int, str]) -> Task:
    return Task(
        name=name,
        read=read,
        question=question,
        protocols={"anls": Protocol(parse, tally)},
        baselines=choices.most_frequent,
        releases=releases,
    )


DOCVQA = _task("docvqa", {5349: "validation", 5188: "test"})
INFOVQA = _task("infovqa", {2801: "validation", 3288: "test"})
