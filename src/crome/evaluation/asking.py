"""How a benchmark is put to a model: its records as rows, with pictures that exist and decode."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal

from crome.data.pictures import undecodable
from crome.errors import InputError
from crome.evaluation.cells import PICTURE_COLUMNS
from crome.evaluation.grading import Grading, is_judged
from crome.evaluation.pictures import image_file
from crome.evaluation.predict import console
from crome.evaluation.sources import fingerprint
from crome.evaluation.task import Record, Task, gold_text, hidden
from crome.evaluation.tasks.prompts import STYLES
from crome.rows import Row


@dataclass(frozen=True)
class Asking:
    """How a benchmark is put to a model.

    Attributes:
        protocol: Its name, None for the judge's.
        style: Style of the prompts.
        ranked: Whether candidates are ranked instead of generating.
        per_token: Whether ranked losses are means over tokens.
    """

    protocol: str | None
    style: str
    ranked: bool
    per_token: bool


def asking(task: Task, protocol: str | None, style: str | None, grading: Grading) -> Asking:
    """Mode and style that a protocol wants.

    Raises:
        InputError: The task has no such protocol.
    """
    if style not in (None, task.style, *STYLES):
        known = dict.fromkeys((task.style, *STYLES))
        raise InputError(f"prompt style {style!r} is unknown: use one of {', '.join(known)}.")
    if is_judged(task, protocol, grading):
        return Asking(None, style or task.style, False, False)
    protocol = protocol or next(iter(task.protocols))
    if protocol not in task.protocols:
        raise InputError(
            f"{task.name} has no protocol {protocol!r}: choose from {', '.join(task.protocols)}."
        )
    mode = task.protocols[protocol].mode
    ranked = mode != "generate"
    default = "rank" if ranked else task.style
    return Asking(protocol, style or default, ranked, mode == "rank-per-token")


def require_pictures(task: Task, records: Sequence[Record]) -> None:
    """Refuses records without the pictures that their benchmark is about.

    Raises:
        InputError: They lack them, and a model would answer blind.
    """
    bare = [record["id"] for record in records if not record["images"]]
    if (task.pictures == "all" and bare) or (task.pictures == "some" and len(bare) == len(records)):
        raise InputError(
            f"{len(bare)} of {len(records)} records of {task.name} have no picture, such as "
            f"{bare[0]}: pictures are looked for in the columns {', '.join(PICTURE_COLUMNS)}."
        )


def hidden_answers(task: Task, records: Sequence[Record]) -> bool:
    """Whether the benchmark keeps the answers of all records to itself, as a test split does.

    Raises:
        InputError: Some of the records have an answer, and some have none.
    """
    without = hidden(records)
    if without and len(without) < len(records):
        raise InputError(
            f"{len(without)} of {len(records)} records of {task.name} have no answer, such as "
            f"{without[0]}: score those with answers apart from those without."
        )
    return bool(without)


def questions(
    task: Task, records: Sequence[Record], how: Asking, image_root: Path, kept: Path
) -> list[Row]:
    """The records as rows: the prompt as the question, candidates as choices.

    Args:
        task: The benchmark.
        records: Its records.
        how: Style and mode.
        image_root: Folder that image paths start from.
        kept: Folder for images that records carry inside, each written once.

    Raises:
        InputError: A record has no question, or nothing to rank.
    """
    rows = []
    for record in records:
        prompt, candidates = task.question(record, how.style)
        if not record["question"]:
            raise InputError(
                f"record {record['id']} has no question text: these references can score "
                "predictions, and a model needs the benchmark's records to be asked."
            )
        if how.ranked and not candidates:
            raise InputError(f"record {record['id']} has no candidates to rank.")
        images = tuple(image_file(image, image_root, kept) for image in record["images"])
        row = record.get("row")
        if row is None:
            rows.append(Row(images, prompt, gold_text(record), record["id"], candidates))
        else:
            row = reworded(row, prompt)
            rows.append(replace(row, images=images, choices=candidates or None))
    return rows


def reworded(row: Row, prompt: str) -> Row:
    """A row with its question inside another text, and its media at their places in it."""
    shift = max(0, prompt.find(row.question))
    places = tuple(
        place._replace(offset=place.offset + shift) if place.turn == len(row.history) else place
        for place in row.places
    )
    return replace(row, question=prompt, places=places)


def readable(rows: Sequence[Row], on_bad_row: Literal["raise", "skip"]) -> list[Row]:
    """The rows whose images can be read.

    Raises:
        InputError: No image can be read, or one cannot and `on_bad_row` is "raise".
    """
    first_use: dict[Path, str] = {}
    for row in rows:
        for image in row.images:
            assert isinstance(image, Path)
            first_use.setdefault(image, f"record {row.id}")
    broken = undecodable(first_use)
    kept = [row for row in rows if broken.keys().isdisjoint(row.images)]
    if broken and (on_bad_row == "raise" or not kept):
        raise InputError(
            f"{len(broken)} of {len(first_use)} images cannot be read, first "
            f"{next(iter(broken.values())).removesuffix('.')}. --image_root names the folder that "
            "image paths start from; --on_bad_row skip counts these records as wrong."
        )
    for problem in list(broken.values())[:10]:
        console.print(f"left out, counted as wrong: {problem}", style="yellow", markup=False)
    return kept


def digest(rows: Sequence[Row]) -> str:
    """A short hash of the questions: ids, prompts, candidates, and the content of the media."""
    contents: dict[object, str] = {}

    def content(medium: object) -> str:
        if isinstance(medium, Path) and medium not in contents and medium.is_file():
            with medium.open("rb") as file:
                contents[medium] = hashlib.file_digest(file, "blake2b").hexdigest()
        return contents.get(medium, "") if isinstance(medium, Path) else ""

    def shown(row: Row) -> list[str]:
        films = (film if isinstance(film, tuple) else (film,) for film in row.videos)
        return [*map(content, (*row.images, *chain.from_iterable(films), *row.audios))]

    parts = [
        (row.id, row.question, row.choices, row.history, row.system, shown(row)) for row in rows
    ]
    return fingerprint(json.dumps(parts))
