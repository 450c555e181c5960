"""ScienceQA (arXiv 2209.09513): school questions with two to five options, half with an image."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from crome.errors import InputError
from crome.evaluation import cells
from crome.evaluation.predictions import Prediction
from crome.evaluation.replies import option_letter
from crome.evaluation.sources import Row, read_rows, records_from
from crome.evaluation.tally import accuracy
from crome.evaluation.task import Protocol, Question, Record, Task
from crome.evaluation.tasks import choices
from crome.evaluation.tasks.prompts import multiple_choice

SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}
LAST_LOWER_GRADE = 6
_STATES = re.compile(r"The answer is ([A-Z]).")  # whatever stands behind the letter, as there
_CONTEXT = "Context: "


def _rows(source: str) -> list[Row]:
    """The rows of `problems.json`, which may be named by its folder, or of any other file."""
    file = Path(source) / "problems.json"
    return read_rows(str(file) if file.exists() else source)


def _record(row: Row, number: int, *, image_only: bool) -> Record | None:
    """A problem of the test split, a question of LLaVA's file, or a hub row."""
    split = cells.text(row.get("split")) or "test"
    if split != "test":
        return None
    record = _llava(row) if "conversations" in row else _problem(row)
    if image_only and not record["images"]:
        return None
    return {"id": cells.identity(row.get("id", number)), "split": split} | record


def _problem(row: Row) -> dict[str, Any]:
    image = row.get("image")
    if isinstance(image, str) and not cells.absent(image):
        # problems.json names the file, the images lie in a folder per id
        image = f"{row.get('split') or 'test'}/{row.get('id')}/{image}"
    grade = re.sub(r"\D", "", cells.text(row.get("grade")))
    options = cells.options(row["choices"])
    return {
        "question": cells.text(row["question"]),
        "context": cells.text(row.get("hint")),
        "options": options,
        "answer": cells.gold_letter(row["answer"], options),
        "images": cells.images_in(image) or cells.pictures(row),
        "subject": SUBJECTS.get(cells.text(row.get("subject"))),
        "grade": None if not grade else "G1-6" if int(grade) <= LAST_LOWER_GRADE else "G7-12",
    }


def _llava(row: Row) -> dict[str, Any]:
    ask, reply = (turn["value"] for turn in row["conversations"][:2])
    text, options = choices.split_options(ask.removeprefix("<image>\n"))
    letter = option_letter(reply, options)
    if letter is None:
        raise InputError(f"the answer {cells.quoted(reply)} is none of the options' letters.")
    return {
        "question": text,
        "context": "",
        "options": options,
        "answer": letter,
        "images": cells.pictures(row),
        "text": text.startswith(_CONTEXT),
    }


def question(record: Record, style: str) -> Question:
    """Context, question, lettered options and the option-letter sentence."""
    context = record["context"]
    if context and style != "instructblip":
        context = f"{_CONTEXT}{context}"
    return multiple_choice(record["question"], record["options"], style, context)


def parse(record: Record, prediction: Prediction) -> str | None:
    """LLaVA's rule: a bare letter, `X. ` in front, or "The answer is X" exactly once, not last."""
    text = prediction.response.strip()
    if text in record["options"]:
        return text
    if text[1:3] == ". " and text[0] in record["options"]:
        return text[0]
    stated = _STATES.findall(text)
    return stated[0] if len(stated) == 1 and stated[0] in record["options"] else None


def _context(kind: str) -> Callable[[Record], str | None]:
    def group(record: Record) -> str | None:
        text, image = bool(record["context"]) or record.get("text", False), bool(record["images"])
        held = {"TXT": text, "IMG": image, "NO": not text and not image}
        return kind if held[kind] else None

    return group


# The official columns; a question may have both a text and an image.
_tally = accuracy("subject", _context("TXT"), _context("IMG"), _context("NO"), "grade")
_protocols = {"llava": Protocol(parse, _tally)} | choices.own_protocols(_tally)
SCIENCEQA = Task(
    name="scienceqa",
    read=partial(records_from, make=partial(_record, image_only=False), rows=_rows),
    question=question,
    protocols=_protocols,
    baselines=choices.most_frequent,
    releases={4241: "test"},
    pictures="some",
)
SCIENCEQA_IMG = Task(
    name="scienceqa-img",
    read=partial(records_from, make=partial(_record, image_only=True), rows=_rows),
    question=question,
    protocols=_protocols,
    baselines=choices.most_frequent,
    releases={2017: "test, with image"},
)
