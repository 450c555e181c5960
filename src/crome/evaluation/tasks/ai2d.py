"""AI2D (arXiv 1603.07396): questions on science diagrams, four options, 3,088 in the test split.

Two sets of images exist: labels as drawn, or replaced by letters where the options are letters.
Numbers on one do not continue numbers on the other.
"""

import re
import string
from functools import partial

from crome.evaluation import cells
from crome.evaluation.predictions import Prediction
from crome.evaluation.sources import Row, need, records_from
from crome.evaluation.task import Protocol, Question, Record, Task
from crome.evaluation.tasks import choices
from crome.evaluation.tasks.prompts import OPTION_LETTER, multiple_choice

MASKED_FOLDER = "abc_images"
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def read(source: str) -> list[Record]:
    """Reads JSON lines with lettered questions, or rows with a list of options."""
    return records_from(source, _record)


def _record(row: Row, number: int) -> Record:
    need(row, ("question", "answer"))
    question_ = cells.text(row["question"])
    if cells.absent(row.get("options")):
        text, options = choices.split_options(question_.removesuffix(f"\n{OPTION_LETTER}"))
    else:
        text, options = question_, cells.options(row["options"])
    images = cells.pictures(row, "image", "image_1")
    return {
        "id": cells.identity(row.get("question_id", row.get("id", number))),
        "question": text.removeprefix("<image 1>").strip(),
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


def question(record: Record, style: str) -> Question:
    """Question, lettered options and the option-letter sentence."""
    prompt, candidates = multiple_choice(record["question"], record["options"], style)
    return Question(record["id"], prompt, record["images"], candidates)


def parse(record: Record, prediction: Prediction) -> str | None:
    """A letter once `X.` is cut to its capital and case and punctuation are ignored."""
    text = prediction.response.strip()
    lettered = re.match(r"([A-Z])\.", text)
    letter = (lettered[1] if lettered else text).translate(_NO_PUNCTUATION).strip().upper()
    return letter if letter in record["options"] else None


_tally = partial(choices.accuracy, parts=(choices.field("labels"),))

AI2D = Task(
    name="ai2d",
    read=read,
    question=question,
    protocols={"generate": Protocol(parse, _tally)} | choices.own_protocols(_tally),
    baselines=choices.majority_letter,
    releases={3088: "test"},
)
