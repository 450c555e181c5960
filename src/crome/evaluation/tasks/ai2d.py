"""AI2D (arXiv 1603.07396): questions on science diagrams, four options, 3,088 in the test split.

Two sets of images exist: labels as drawn, or replaced by letters where the options are letters.
Numbers on one do not continue numbers on the other.
"""

import re
import string
from functools import partial

from crome.evaluation import cells
from crome.evaluation.predictions import Prediction
from crome.evaluation.sources import Row, records_from
from crome.evaluation.tally import accuracy
from crome.evaluation.task import Protocol, Record, Task
from crome.evaluation.tasks import choices
from crome.evaluation.tasks.prompts import OPTION_LETTER, choice_question

MASKED_FOLDER = "abc_images"
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _record(row: Row, number: int) -> Record:
    """A JSON line with a lettered question, or a row with a list of options."""
    question = cells.text(row["question"])
    if cells.absent(row.get("options")):
        question, options = choices.split_options(question.removesuffix(f"\n{OPTION_LETTER}"))
    else:
        options = cells.options(row["options"])
    images = cells.pictures(row, "image", "image_1")
    return {
        "id": cells.identity(row.get("question_id", row.get("id", number))),
        "question": question.removeprefix("<image 1>").strip(),
        "options": options,
        "answer": cells.gold_letter(row["answer"], options),
        "images": images,
        "labels": _labels(images),
    }


def _labels(images: tuple[str | bytes, ...]) -> str | None:
    """Which of the two image sets a path belongs to; an embedded image does not say."""
    if not images or not isinstance(images[0], str):
        return None
    return "letter-masked" if images[0].startswith(MASKED_FOLDER) else "labels-shown"


def parse(record: Record, prediction: Prediction) -> str | None:
    """A letter once `X.` is cut to its capital and case and punctuation are ignored."""
    text = prediction.response.strip()
    lettered = re.match(r"([A-Z])\.", text)
    letter = (lettered[1] if lettered else text).translate(_NO_PUNCTUATION).strip().upper()
    return letter if letter in record["options"] else None


_tally = accuracy("labels")
AI2D = Task(
    name="ai2d",
    read=partial(records_from, make=_record),
    question=choice_question,
    protocols={"generate": Protocol(parse, _tally)} | choices.own_protocols(_tally),
    baselines=choices.most_frequent,
    releases={3088: "test"},
)
