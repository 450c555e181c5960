"""ChartQA (arXiv 2203.10244): questions on charts, by relaxed accuracy: numbers within 5 %."""

from functools import partial
from pathlib import Path

from crome.evaluation import cells
from crome.evaluation.predictions import Prediction
from crome.evaluation.sources import Row, read_rows, records_from
from crome.evaluation.tally import averaged
from crome.evaluation.task import Protocol, Record, Task
from crome.evaluation.tasks.choices import most_frequent
from crome.evaluation.tasks.prompts import short_question

TOLERANCE = 0.05
PARTS = ("human", "augmented")


def _rows(source: str) -> list[Row]:
    """The rows of `test_human.json` or `test_augmented.json`, of their folder, or of the hub."""
    path = Path(source)
    files = [str(file) for part in PARTS for file in sorted(path.glob(f"*_{part}.json"))]
    return [
        {"type": next((part for part in PARTS if part in Path(file).stem), ""), "place": place}
        | row
        for file in files or [source]
        for place, row in enumerate(read_rows(file))
    ]


def _record(row: Row, number: int) -> Record:
    part = cells.text(row.get("type") or row.get("human_or_machine")).removesuffix("_test")
    identity = row.get("id", row.get("question_id"))
    place = f"{part}/{row['place']}" if part in PARTS else str(row["place"])
    (answer, *_) = [*cells.texts(cells.first(row, "label", "answer")), None]
    return {
        "id": place if identity is None else cells.identity(identity),
        "question": cells.text(row.get("query", row.get("question"))),
        "answer": cells.gold(answer),
        "type": part or None,
        "images": cells.pictures(row) or cells.file_named(row.get("imgname"), "png/{}"),
    }


def parse(record: Record, prediction: Prediction) -> str:
    """The response without space around it."""
    return prediction.response.strip()


def is_right(response: str, answer: str) -> bool:
    """Numbers within 5 % of a number that is not 0; other texts the same but for case.

    A number with % is a hundredth of it, so that 50 % is 0.5 and not 50.
    """
    given, expected = _number(response), _number(answer)
    if given is not None and expected:
        return abs(given - expected) / abs(expected) <= TOLERANCE
    return response.lower() == answer.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


_tally = averaged(lambda record, answer: is_right(answer, record["answer"]), "type")
CHARTQA = Task(
    name="chartqa",
    read=partial(records_from, make=_record, rows=_rows),
    question=short_question,
    protocols={"relaxed": Protocol(parse, _tally)},
    baselines=most_frequent,
    releases={2500: "test", 1250: "one half of test"},
)
