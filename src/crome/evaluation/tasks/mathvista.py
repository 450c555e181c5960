"""MathVista (arXiv 2310.02255), testmini: mathematics on pictures, scored by rules alone.

Officially a language model takes the answer out of a response first; `rules` has only what the
official scripts do without it, so that a wordy response may count as wrong. No published number is
comparable but one that was extracted by rules, too.
"""

import re
from collections.abc import Sequence

from crome.evaluation import cells
from crome.evaluation.answers import edit_distance
from crome.evaluation.predictions import Prediction
from crome.evaluation.sources import Row, need, records_from
from crome.evaluation.task import Answer, Answers, Protocol, Question, Record, Scores, Task
from crome.evaluation.tasks import choices
from crome.evaluation.tasks.prompts import multiple_choice, short_answer


def read(source: str) -> list[Record]:
    """Reads `testmini.json`, or hub rows."""
    return records_from(source, _record)


def _record(row: Row, number: int) -> Record:
    need(row, ("question", "question_type", "answer_type", "answer"))
    metadata, listed = row.get("metadata"), row.get("choices")
    about = metadata if isinstance(metadata, dict) else {}
    return {
        "id": cells.identity(row.get("pid", row.get("id", number))),
        "question": cells.text(row["question"]),
        "query": cells.text(row.get("query")),
        "options": cells.options(listed) if listed is not None and len(listed) else {},
        "answer": cells.text(row["answer"]),
        "answer_type": cells.text(row["answer_type"]),
        "precision": int(float(cells.text(row.get("precision")) or 0)),
        "category": cells.text(about.get("task")) or None,
        "images": cells.pictures(row),
    }


def question(record: Record, style: str) -> Question:
    """Under `official` the released query with its hint; the usual wordings otherwise."""
    if style == "official" and record["query"]:
        return Question(record["id"], record["query"], record["images"])
    if not record["options"]:
        return Question(record["id"], short_answer(record["question"], style), record["images"])
    prompt, candidates = multiple_choice(record["question"], record["options"], style)
    return Question(record["id"], prompt, record["images"], candidates)


def parse(record: Record, prediction: Prediction) -> str | None:
    """The answer in the official normal form: an option's text, a whole or a rounded number."""
    quoted = re.search(r'The answer is "(.*)"\.', prediction.response)
    return normal(record, quoted[1] if quoted else prediction.response.strip())


def normal(record: Record, text: str) -> str | None:
    """An extracted answer as the official script compares it; None where it is no number."""
    options = record["options"]
    if options:
        letters = re.findall(r"\(([a-zA-Z])\)", text)
        letter = letters[0].upper() if letters else text
        if letter in options:
            return str(options[letter])
        return min(options.values(), key=lambda option: edit_distance(letter, option))
    try:
        if record["answer_type"] == "integer":
            return str(int(float(text)))
        if record["answer_type"] == "float":
            return str(round(float(text), record["precision"]))
    except (ValueError, OverflowError):
        return None
    return text


def tally(name: str, records: Sequence[Record], answers: Answers) -> Scores:
    """Accuracy, also by kind of task."""
    rows = {r["id"]: float(answers.get(r["id"]) == r["answer"]) for r in records}
    return choices.tally_rows(name, records, rows, [choices.field("category")])


def baselines(records: Sequence[Record]) -> dict[str, dict[str, Answer]]:
    """The first option, and 1 where there are none."""
    first = {r["id"]: next(iter(r["options"].values()), normal(r, "1")) for r in records}
    return {"always the first option, or 1": first}


MATHVISTA = Task(
    name="mathvista",
    read=read,
    question=question,
    protocols={"rules": Protocol(parse, tally)},
    baselines=baselines,
    releases={1000: "testmini"},
    max_new_tokens=512,
)
