"""RealWorldQA (xAI, 2024): 765 questions on everyday pictures, answered by a letter or a word.

Its authors published no script; `exact-match` is what lmms-eval does: a leading `X.` is its letter,
number words are digits, case and punctuation do not count.
"""

import re
import string
from functools import partial

from crome.evaluation import cells
from crome.evaluation.predictions import Prediction
from crome.evaluation.sources import Row, records_from
from crome.evaluation.tally import averaged
from crome.evaluation.task import Protocol, Question, Record, Task
from crome.evaluation.tasks import choices
from crome.evaluation.vqa_text import NUMBERS

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ASKS = re.compile(r"\n?Please answer directly .*$", re.S)


def _record(row: Row, number: int) -> Record:
    """A hub row, or one of a table with the same columns; options stand in the question's text."""
    whole = cells.text(row["question"])
    _, options = choices.split_options(_ASKS.sub("", whole).strip())
    answer = cells.gold(row["answer"])
    if answer and options and plain(answer) not in map(plain, options):  # an option's text
        answer = cells.gold_letter(answer.strip(), options, index=False)
    return {
        "id": cells.identity(row.get("id", row.get("index", number))),
        "question": whole,
        "options": options,
        "answer": answer,
        "type": "letter" if options else "word",
        "images": cells.pictures(row),
    }


def question(record: Record, style: str) -> Question:
    """The released question is the whole prompt, whatever the style."""
    return Question(record["question"], tuple(record["options"]))


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


_tally = averaged(lambda record, answer: answer == plain(record["answer"]), "type")
REALWORLDQA = Task(
    name="realworldqa",
    read=partial(records_from, make=_record),
    question=question,
    protocols={
        "exact-match": Protocol(parse, _tally),
        "tolerant": Protocol(parse_tolerant, _tally),
    },
    baselines=partial(choices.most_frequent, normal=plain),
    releases={765: "released"},
    max_new_tokens=16,
)
