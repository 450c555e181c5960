"""MathVista (arXiv 2310.02255), testmini: mathematics on pictures, scored by rules alone.

Officially a language model takes the answer out of a response first; `rules` has only what the
official scripts do without it, so that a wordy response may count as wrong. No published number is
comparable but one that was extracted by rules, too.
"""

import re
from collections.abc import Sequence
from functools import partial

from crome.evaluation import cells
from crome.evaluation.answers import edit_distance
from crome.evaluation.predictions import Prediction
from crome.evaluation.sources import Row, records_from
from crome.evaluation.tally import accuracy
from crome.evaluation.task import Answer, Protocol, Question, Record, Task
from crome.evaluation.tasks import choices
from crome.evaluation.tasks.prompts import choice_question, short_question


def _record(row: Row, number: int) -> Record:
    """A record of `testmini.json`, or a hub row."""
    metadata, listed = row.get("metadata"), cells.texts(row.get("choices"))
    about = metadata if isinstance(metadata, dict) else {}
    options = cells.options(listed) if listed else {}
    answer = cells.gold(row["answer"])
    if answer and options and answer not in options.values():
        answer = options[cells.gold_letter(answer, options, index=False)]
    return {
        "id": cells.identity(row.get("pid", row.get("id", number))),
        "question": cells.text(row["question"]),
        "query": cells.text(row.get("query")),
        "options": options,
        "answer": answer,
        "answer_type": cells.text(row["answer_type"]),
        "precision": int(float(cells.text(row.get("precision")) or 0)),
        "category": cells.text(about.get("task")) or None,
        "images": cells.pictures(row),
    }


def question(record: Record, style: str) -> Question:
    """Under `official` the released query with its hint; the usual wordings otherwise."""
    if style == "official" and record["query"]:
        return Question(record["query"])
    return (choice_question if record["options"] else short_question)(record, style)


def parse(record: Record, prediction: Prediction) -> str | None:
    """The answer in the official normal form: an option's text, a whole or a rounded number."""
    quoted = re.search(r'The answer is "(.*)"\.', prediction.response)
    return normal(record, quoted[1] if quoted else prediction.response.strip())


def parse_tolerant(record: Record, prediction: Prediction) -> str | None:
    """The option stated anywhere in the response; without options as under `rules`."""
    if not record["options"]:
        return parse(record, prediction)
    letter = choices.tolerant(record, prediction)
    return letter and str(record["options"][letter])


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


def baselines(records: Sequence[Record]) -> dict[str, dict[str, Answer]]:
    """The first option, and 1 where there are none."""
    first = {r["id"]: next(iter(r["options"].values()), normal(r, "1")) for r in records}
    return {"always the first option, or 1": first}


_tally = accuracy("category")
MATHVISTA = Task(
    name="mathvista",
    read=partial(records_from, make=_record),
    question=question,
    protocols={"rules": Protocol(parse, _tally), "tolerant": Protocol(parse_tolerant, _tally)},
    baselines=baselines,
    releases={1000: "testmini"},
    max_new_tokens=512,
)
