"""Rows of what is given apart, and the media of rows."""

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from crome.attached.media import Media, Picture
from crome.errors import InputError
from crome.images import View
from crome.model.processing import as_picture
from crome.rows import Place, Row

ONE_KIND = ("SmolVLMProcessor", "Glm4vProcessor", "Glm46VProcessor", "Molmo2Processor")
"""Processors that lose the pictures of a row that shows a film as well, or whose models read one of
the two in a pass."""
History = Sequence[tuple[str, str]]
NOTHING = Media()
MARK = "<image>"
"""In a question: a picture stands here. Without marks, pictures stand in front of it."""


def new_row(
    number: int,
    question: str,
    media: Media = NOTHING,
    history: History = (),
    system: str | None = None,
) -> Row:
    """A row of what is given apart; `<image>` in the question says where a picture stands.

    Without as many marks as there are pictures, they stand in front.
    """
    places: tuple[Place, ...] = ()
    pieces = question.split(MARK)
    if media.images and len(pieces) > 1:
        question = "".join(pieces)
        if len(pieces) - 1 == len(media.images):
            ends = accumulate(map(len, pieces[:-1]))
            places = tuple(Place("image", len(history), end) for end in ends)
    return Row(
        media.images, question, "", str(number), history=tuple(history), places=places,
        videos=media.videos, audios=media.audio, system=system,
    )  # fmt: skip


def check_row(row: Row, media: Media, named: str, prompt: str, system: str | None) -> None:
    """Refuses a row of which a processor or its template would lose something.

    Args:
        row: The row.
        media: What it shows.
        named: The processor's class.
        prompt: The row as text.
        system: Its system message as it should stand there; None without one.

    Raises:
        InputError: Naming the row, what is lost, and the remedy.
    """
    if system is not None and system.strip() not in prompt:
        raise InputError(
            f"row {row.id}: the chat template of {named} drops its system message; put what it "
            "says into the question."
        )
    if media.images and media.videos and named in ONE_KIND:
        raise InputError(
            f"row {row.id} shows a picture and a film, and {named} takes one of the two in a row; "
            "divide it."
        )


def moved_place(place: Place, turn: int, gone: int) -> Place:
    """A place in a question that lost characters in front."""
    if place.turn != turn:
        return place
    return place._replace(offset=max(0, place.offset - gone))


def media_of(messages: Sequence[dict[str, Any]]) -> Media:
    """The media of a conversation in reading order."""
    parts = [part for message in messages for part in message["content"]]
    return Media(
        *(
            tuple(p[kind] for p in parts if p["type"] == kind)
            for kind in ("image", "video", "audio")
        )
    )


def media_of_rows(images: Any, videos: Any, audio: Any, rows: int) -> list[Media]:
    """The media of each row."""
    return [
        Media(*parts)
        for parts in zip(
            per_row(as_pictures(images), rows, "images"),
            per_row(videos, rows, "films"),
            per_row(audio, rows, "sounds"),
            strict=True,
        )
    ]


def as_pictures(images: Any) -> Any:
    """Arrays and tensors of pixels as pictures, in whatever they stand."""
    if isinstance(images, np.ndarray | Tensor):
        return [as_picture(one) for one in images] if images.ndim == 4 else as_picture(images)
    if isinstance(images, list | tuple) and not isinstance(images, View):
        return [as_pictures(one) for one in images]
    return images


def per_row(items: Any, rows: int, what: str) -> list[tuple[Any, ...]]:
    """One tuple a row of what was given as one thing, one a row, or several a row."""
    if items is None:
        return [()] * rows
    if isinstance(items, Picture) and rows == 1:
        items = [items]
    if isinstance(items, Picture) or len(items) != rows:
        found = 1 if isinstance(items, Picture) else len(items)
        raise InputError(f"{found} {what} for {rows} questions; give one entry a row.")
    single = Image.Image | str | Path | View | np.ndarray | Tensor
    return [
        () if entry is None else (entry,) if isinstance(entry, single) else tuple(entry)
        for entry in items
    ]


def described(media: Media) -> str:
    """A row's media in words."""
    counts = zip((len(items) for items in media), ("picture", "film", "sound"), strict=True)
    named = [f"{n} {noun}{'s' if n > 1 else ''}" for n, noun in counts if n]
    return " and ".join(named) or "text alone"


def uneven(films: Sequence[Sequence[Any]] | None) -> str:
    """Ends a message about films whose frames differ in size; empty for others."""
    for film in (films or [()])[0]:
        frames = film if isinstance(film, list) else []
        sizes = dict.fromkeys(one.size for one in frames if isinstance(one, Image.Image))
        if len(sizes) > 1:
            named = ", ".join(f"{width} × {height}" for width, height in sizes)
            return f"; the frames of a film differ in size ({named}), make them of one size."
    return ""


def without_torchvision(error: BaseException) -> str:
    """Ends a message about pictures that only torchvision prepares; empty for others.

    Processors of transformers that need it, and do not say so, end at a part that is None.
    """
    if isinstance(error, AttributeError) and "NoneType" in str(error) and not _has_torchvision():
        return "; this family's pictures need torchvision, in the release of your PyTorch."
    return ""


def _has_torchvision() -> bool:
    return find_spec("torchvision") is not None


def first_line(error: BaseException) -> str:
    """The first line of an error, for a message."""
    return str(error).strip().split("\n")[0][:300]
