"""GQA (arXiv 1902.09506): compositional questions with one short answer each.

The official script compares texts as they are; LLaVA's converter, in front of it, lower-cases the
response and takes a final full stop off, which is what published numbers of such models are.
"""

from functools import partial

from crome.evaluation import cells
from crome.evaluation.predictions import Prediction
from crome.evaluation.sources import Row, records_from
from crome.evaluation.tally import accuracy
from crome.evaluation.task import Protocol, Record, Task
from crome.evaluation.tasks.choices import most_frequent
from crome.evaluation.tasks.prompts import short_question
from crome.matching import plain


def _record(row: Row, number: int) -> Record:
    """A released question (`testdev_balanced_questions.json`), or a hub row."""
    given = row.get("types")
    types = given if isinstance(given, dict) else {}
    return {
        "id": cells.identity(cells.first(row, "id", "question_id", "questionId")),
        "question": cells.text(row["question"]),
        "answer": cells.gold(row.get("answer")),
        "structure": cells.text(types.get("structural")) or None,
        "type": cells.text(types.get("semantic")) or None,
        "images": cells.pictures(row) or cells.file_named(row.get("imageId"), "{}.jpg"),
    }


def parse(record: Record, prediction: Prediction) -> str:
    """The response in small letters, without final full stops."""
    return prediction.response.rstrip(".").lower()


def parse_plain(record: Record, prediction: Prediction) -> str:
    """The gold answer where the response says the same but for space, case and full-width forms."""
    same = plain(prediction.response) == plain(record["answer"])
    return record["answer"] if same else prediction.response


_tally = accuracy("structure", "type")
GQA = Task(
    name="gqa",
    read=partial(records_from, make=_record),
    question=short_question,
    protocols={"llava": Protocol(parse, _tally), "tolerant": Protocol(parse_plain, _tally)},
    baselines=most_frequent,
    releases={12578: "testdev, balanced", 132062: "validation, balanced"},
)
