"""GQA (arXiv 1902.09506): compositional questions with one short answer each.

The official script compares texts as they are; LLaVA's converter, in front of it, lower-cases the
response and takes a final full stop off, which is what published numbers of such models are.
"""

from collections.abc import Sequence

from crome.evaluation import cells
from crome.evaluation.predictions import Prediction
from crome.evaluation.sources import Row, need, records_from
from crome.evaluation.task import Answers, Protocol, Question, Record, Scores, Task
from crome.evaluation.tasks import choices
from crome.evaluation.tasks.prompts import short_answer
from crome.matching import plain


def read(source: str) -> list[Record]:
    """Reads the released questions (`testdev_balanced_questions.json`), or hub rows."""
    return records_from(source, _record)


def _record(row: Row, number: int) -> Record:
    identity = next((name for name in ("id", "question_id", "questionId") if name in row), "id")
    need(row, (identity, "question", "answer"))
    given = row.get("types")
    types = given if isinstance(given, dict) else {}
    image = cells.text(row.get("imageId"))
    return {
        "id": cells.identity(row[identity]),
        "question": cells.text(row["question"]),
        "answer": cells.text(row["answer"]),
        "structure": cells.text(types.get("structural")) or None,
        "type": cells.text(types.get("semantic")) or None,
        "images": cells.pictures(row) or ((f"{image}.jpg",) if image else ()),
    }


def question(record: Record, style: str) -> Question:
    """The question with the short-answer sentence."""
    return Question(record["id"], short_answer(record["question"], style), record["images"])


def parse(record: Record, prediction: Prediction) -> str:
    """The response in small letters, without final full stops."""
    return prediction.response.rstrip(".").lower()


def parse_plain(record: Record, prediction: Prediction) -> str:
    """The gold answer where the response says the same but for space, case and full-width forms."""
    same = plain(prediction.response) == plain(record["answer"])
    return record["answer"] if same else prediction.response


def tally(name: str, records: Sequence[Record], answers: Answers) -> Scores:
    """Accuracy, by the structure of the question and by what it is about."""
    rows = {r["id"]: float(answers.get(r["id"]) == r["answer"]) for r in records}
    return choices.tally_rows(
        name, records, rows, [choices.field("structure"), choices.field("type")]
    )


GQA = Task(
    name="gqa",
    read=read,
    question=question,
    protocols={"llava": Protocol(parse, tally), "tolerant": Protocol(parse_plain, tally)},
    baselines=choices.most_frequent,
    releases={12578: "testdev, balanced", 132062: "validation, balanced"},
)
