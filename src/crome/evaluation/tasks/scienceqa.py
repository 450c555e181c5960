"""ScienceQA (arXiv 2209.09513): school questions with two to five options, half with an image."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from crome.errors import InputError
from crome.evaluation import cells
from crome.evaluation.predictions import Prediction
from crome.evaluation.replies import option_letter
from crome.evaluation.sources import Row, need, records_from
from crome.evaluation.task import Answers, Protocol, Question, Record, Scores, Task
from crome.evaluation.tasks import choices
from crome.evaluation.tasks.prompts import multiple_choice

SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}
LAST_LOWER_GRADE = 6
_STATES = re.compile(r"The answer is ([A-Z]).")  # whatever stands behind the letter, as there
_CONTEXT = "Context: "


def read(source: str, *, image_only: bool) -> list[Record]:
    """Reads `problems.json` (its test split), LLaVA's question file, or hub rows."""
    folder = Path(source)
    if (folder / "problems.json").exists():
        source = str(folder / "problems.json")
    records = records_from(source, _record)
    return [r for r in records if r["image"] or not image_only]


def _record(row: Row, number: int) -> Record | None:
    split = cells.text(row.get("split")) or "test"
    if split != "test":
        return None
    record = _llava(row) if "conversations" in row else _problem(row)
    return {"id": cells.identity(row.get("id", number)), "split": split} | record


def _problem(row: Row) -> dict[str, Any]:
    need(row, ("question", "choices", "answer"))
    image = row.get("image")
    if isinstance(image, str) and not cells.absent(image):
        # problems.json names the file, the images lie in a folder per id
        image = f"{row.get('split') or 'test'}/{row.get('id')}/{image}"
    images = cells.images_in(image) or cells.pictures(row)
    grade = re.sub(r"\D", "", cells.text(row.get("grade")))
    options = cells.options(row["choices"])
    return {
        "question": cells.text(row["question"]),
        "context": cells.text(row.get("hint")),
        "options": options,
        "answer": cells.gold_letter(row["answer"], options),
        "image": bool(images),
        "images": images,
        "subject": SUBJECTS.get(cells.text(row.get("subject"))),
        "grade": None if not grade else "G1-6" if int(grade) <= LAST_LOWER_GRADE else "G7-12",
    }


def _llava(row: Row) -> dict[str, Any]:
    ask, reply = (turn["value"] for turn in row["conversations"][:2])
    text, options = choices.split_options(ask.removeprefix("<image>\n"))
    letter = option_letter(reply, options)
    if letter is None:
        raise InputError(f"the answer {cells.quoted(reply)} is none of the options' letters.")
    images = cells.pictures(row)
    return {
        "question": text,
        "context": "",
        "options": options,
        "answer": letter,
        "image": bool(images),
        "images": images,
        "text": text.startswith(_CONTEXT),
    }


def question(record: Record, style: str) -> Question:
    """Context, question, lettered options and the option-letter sentence."""
    context = record["context"] and f"{_CONTEXT}{record['context']}"
    if style == "instructblip":
        context = record["context"]
    prompt, candidates = multiple_choice(record["question"], record["options"], style, context)
    return Question(record["id"], prompt, record["images"], candidates)


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
        text = bool(record["context"]) or record.get("text", False)
        held = {"TXT": text, "IMG": record["image"], "NO": not text and not record["image"]}
        return kind if held[kind] else None

    return group


PARTS = (
    choices.field("subject"),
    _context("TXT"),
    _context("IMG"),
    _context("NO"),
    choices.field("grade"),
)


def tally(name: str, records: Sequence[Record], answers: Answers) -> Scores:
    """Accuracy with the official columns: subject, context (a question may be in two), grade."""
    return choices.accuracy(name, records, answers, parts=PARTS)


_protocols = {"llava": Protocol(parse, tally)} | choices.own_protocols(tally)

SCIENCEQA = Task(
    name="scienceqa",
    read=partial(read, image_only=False),
    question=question,
    protocols=_protocols,
    baselines=choices.majority_letter,
    releases={4241: "test"},
    pictures="some",
)
SCIENCEQA_IMG = Task(
    name="scienceqa-img",
    read=partial(read, image_only=True),
    question=question,
    protocols=_protocols,
    baselines=choices.majority_letter,
    releases={2017: "test, with image"},
)
