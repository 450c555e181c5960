"""RealWorldQA (xAI, 2024): 765 questions on everyday pictures, answered by a letter or a word.

Its authors published no script; `exact-match` is what lmms-eval does: a leading `X.` is its letter,
number words are digits, case and punctuation do not count.
"""

import re
import string
from collections.abc import Sequence
from functools import partial

from crome.evaluation import cells
from crome.evaluation.predictions import Prediction
from crome.evaluation.sources import Row, need, records_from
from crome.evaluation.task import Answers, Protocol, Question, Record, Scores, Task
from crome.evaluation.tasks import choices
from crome.evaluation.tasks.prompts import check_style
from crome.evaluation.vqa_text import NUMBERS

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ASKS = re.compile(r"\n?Please answer directly .*$", re.S)


def read(source: str) -> list[Record]:
    """Reads hub rows, or a table with the same columns; options stand in the question's text."""
    return records_from(source, _record)


def _record(row: Row, number: int) -> Record:
    need(row, ("question", "answer"))
    whole = cells.text(row["question"])
    _, options = choices.split_options(_ASKS.sub("", whole).strip())
    return {
        "id": cells.identity(row.get("id", row.get("index", number))),
        "question": whole,
        "options": options,
        "answer": cells.text(row["answer"]).strip(),
        "type": "letter" if options else "word",
        "images": cells.pictures(row),
    }


def question(record: Record, style: str) -> Question:
    """The released question is the whole prompt, whatever the style."""
    check_style(style)
    return Question(record["id"], record["question"], record["images"], tuple(record["options"]))


def plain(text: str) -> str:
    """Small letters without punctuation; number words as digits."""
    words = text.strip().lower().translate(_NO_PUNCTUATION).split()
    return " ".join(NUMBERS.get(word, word) for word in words)


def parse(record: Record, prediction: Prediction) -> str:
    """The letter of a leading `X.`, or the response in its normal form."""
    lettered = re.match(r"\s*([A-Z])\.", prediction.response) if record["options"] else None
    return plain(lettered[1] if lettered else prediction.response)


def parse_tolerant(record: Record, prediction: Prediction) -> str:
    """A letter stated anywhere where there are options; the response's normal form otherwise."""
    letter = choices.tolerant(record, prediction) if record["options"] else None
    return plain(letter or prediction.response)


def tally(name: str, records: Sequence[Record], answers: Answers) -> Scores:
    """Accuracy, also of questions with options and without."""
    rows = {r["id"]: float(answers.get(r["id"]) == plain(r["answer"])) for r in records}
    return choices.tally_rows(name, records, rows, [choices.field("type")])


REALWORLDQA = Task(
    name="realworldqa",
    read=read,
    question=question,
    protocols={
        "exact-match": Protocol(parse, tally),
        "tolerant": Protocol(parse_tolerant, tally),
    },
    baselines=partial(choices.most_frequent, normal=plain),
    releases={765: "released"},
    max_new_tokens=16,
)
