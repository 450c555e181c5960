"""ChartQA (arXiv 2203.10244): questions on charts, by relaxed accuracy: numbers within 5 %."""

from collections.abc import Sequence
from pathlib import Path

from crome.evaluation import cells
from crome.evaluation.predictions import Prediction
from crome.evaluation.sources import Row, read_rows, records_from
from crome.evaluation.task import Answers, Protocol, Question, Record, Scores, Task
from crome.evaluation.tasks import choices
from crome.evaluation.tasks.prompts import short_answer

TOLERANCE = 0.05
PARTS = ("human", "augmented")


def read(source: str) -> list[Record]:
    """Reads `test_human.json` or `test_augmented.json`, a folder with both, or hub rows."""
    path = Path(source)
    files = [str(file) for part in PARTS for file in sorted(path.glob(f"*_{part}.json"))]
    rows = [
        {"type": next((part for part in PARTS if part in Path(file).stem), ""), "place": place}
        | row
        for file in files or [source]
        for place, row in enumerate(read_rows(file))
    ]
    return records_from(source, _record, rows)


def _record(row: Row, number: int) -> Record:
    part = cells.text(row.get("type") or row.get("human_or_machine")).removesuffix("_test")
    asked, gold = row.get("query", row.get("question")), row.get("label", row.get("answer"))
    identity = row.get("id", row.get("question_id"))
    place = f"{part}/{row['place']}" if part in PARTS else str(row["place"])
    (answer, *_) = [*cells.texts(gold), ""]
    chart = cells.text(row.get("imgname"))
    return {
        "id": place if identity is None else cells.identity(identity),
        "question": cells.text(asked),
        "answer": answer,
        "type": part or None,
        "images": cells.pictures(row) or ((f"png/{chart}",) if chart else ()),
    }


def question(record: Record, style: str) -> Question:
    """The question with the short-answer sentence."""
    return Question(record["id"], short_answer(record["question"], style), record["images"])


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


def tally(name: str, records: Sequence[Record], answers: Answers) -> Scores:
    """Relaxed accuracy, also of the questions by people and by machine."""
    rows = {r["id"]: float(is_right(answers.get(r["id"]) or "", r["answer"])) for r in records}
    return choices.tally_rows(name, records, rows, [choices.field("type")])


CHARTQA = Task(
    name="chartqa",
    read=read,
    question=question,
    protocols={"relaxed": Protocol(parse, tally)},
    baselines=choices.most_frequent,
    releases={2500: "test", 1250: "one half of test"},
)
