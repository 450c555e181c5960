"""MMStar (arXiv 2403.20330): 1,500 four-option questions that want the picture looked at."""

import re
from functools import partial

from crome.evaluation import cells
from crome.evaluation.predictions import Prediction
from crome.evaluation.sources import Row, records_from
from crome.evaluation.tally import accuracy
from crome.evaluation.task import Protocol, Question, Record, Task
from crome.evaluation.tasks import choices
from crome.evaluation.tasks.prompts import OPTION_LETTER, choice_question

_OPTIONS = re.compile(r"\s*Options:\s*(?=A:)", re.S)
_OPTION = re.compile(r"([A-F]):\s*(.*?)(?=,?\s*[A-F]:|$)", re.S)
_LEADS = ("", "(", "option ", "the answer is ")


def _record(row: Row, number: int) -> Record:
    """A row of the released table or the hub; the options stand in the question's text."""
    whole = cells.text(row["question"])
    question, *listed = _OPTIONS.split(whole, maxsplit=1)
    found = _OPTION.findall(listed[0]) if listed else []
    options = {letter: text.strip().rstrip(",. ") for letter, text in found}
    options = options or dict.fromkeys("ABCD", "")
    return {
        "id": cells.identity(row["index"]),
        "question": question,
        "whole": whole,
        "options": options,
        "answer": cells.gold_letter(row["answer"], options, index=False),
        "category": cells.text(row.get("category")) or None,
        "l2_category": cells.text(row.get("l2_category")) or None,
        "images": cells.images_in(cells.decoded(row.get("image"))) or cells.pictures(row),
    }


def question(record: Record, style: str) -> Question:
    """The released text with its options, and the option-letter sentence but under `official`."""
    if style in ("llava", "official"):
        sentence = f"\n{OPTION_LETTER}" if style == "llava" else ""
        return Question(record["whole"] + sentence, tuple(record["options"]))
    return choice_question(record, style)


def parse(record: Record, prediction: Prediction) -> str | None:
    """A letter in front, behind a bracket, behind "option" or behind "the answer is"."""
    text = prediction.response.lower().strip().replace("\n", " ")
    for lead in _LEADS:
        letter = text[len(lead) : len(lead) + 1].upper()
        if text.startswith(lead) and letter in record["options"]:
            return letter
    return None


_tally = accuracy("category", "l2_category")
MMSTAR = Task(
    name="mmstar",
    read=partial(records_from, make=_record),
    question=question,
    protocols={"official": Protocol(parse, _tally)} | choices.own_protocols(_tally),
    baselines=choices.most_frequent,
    releases={1500: "released"},
)
