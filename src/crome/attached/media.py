"""The pictures, films and sounds of a row, and a processor that prepares each of them once.

A row's text cannot be expanded without its media, since the number of placeholders hangs on their
sizes. So every row goes through the model's own processor whole, and only the sub-processors
remember what they made: many questions about one picture cost its preparation once.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from crome.errors import InputError
from crome.images import View, load_image

Picture = Image.Image | str | Path | View
SUBPROCESSORS = ("image_processor", "video_processor", "feature_extractor", "audio_processor")


class Media(NamedTuple):
    """What one row shows and plays, in the order of its placeholders."""

    images: tuple[Any, ...] = ()
    videos: tuple[Any, ...] = ()
    audio: tuple[Any, ...] = ()

    def key(self) -> tuple[Any, ...]:
        """Equal for rows that show the same: equal paths, or identical objects."""
        return tuple(tuple(name(item) for item in items) for items in self)


def name(item: Any) -> Any:
    """A hashable name of a picture, a film or a sound."""
    if isinstance(item, View | str | Path):
        return str(item)
    if isinstance(item, list | tuple):
        return tuple(name(part) for part in item)
    return id(item)


class Remembered:
    """A sub-processor that does not prepare the same media twice.

    Args:
        inner: An image, video or audio processor of transformers.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.kept: dict[Any, tuple[Any, Any]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        """The inner processor's output, as a copy that its caller may change."""
        media = [arguments, {k: v for k, v in settings.items() if isinstance(v, list | tuple)}]
        plain = {k: v for k, v in settings.items() if not isinstance(v, list | tuple)}
        key = (leaves(media), repr(sorted(plain.items(), key=str)))
        if key not in self.kept:  # the media are kept too, so that no other can have their ids
            self.kept[key] = (media, self.inner(*arguments, **settings))
        return copied(self.kept[key][1])


def copied(output: Any) -> Any:
    """A shallow copy of a processor's output; lists in it are copied too, as callers pop them."""
    fresh = copy.copy(output)
    if isinstance(fresh, BatchFeature):
        fresh.data = {k: list(v) if isinstance(v, list) else v for k, v in output.data.items()}
    return fresh


def leaves(media: Any) -> tuple[Any, ...]:
    """What nested lists hold: plain values as they are, pictures by their identity."""
    if isinstance(media, dict):
        return tuple((key, leaves(value)) for key, value in media.items())
    if media is None or isinstance(media, bool | int | float | str):
        return (media,)
    if isinstance(media, list | tuple):
        return tuple(one for part in media for one in leaves(part))
    return (id(media),)


def remembering(processor: Any) -> Any:
    """A copy of a processor whose sub-processors remember; for the rows of one batch."""
    fresh = copy.copy(processor)
    for part in SUBPROCESSORS:
        if (inner := getattr(processor, part, None)) is not None:
            setattr(fresh, part, Remembered(inner))
    return fresh


class Loader:
    """Reads each distinct picture of a batch once."""

    def __init__(self) -> None:
        self.loaded: dict[Any, Any] = {}

    def images(self, pictures: Sequence[Picture]) -> list[Image.Image]:
        """Upright RGB pictures; equal ones are one object."""
        return [self.image(picture) for picture in pictures]

    def image(self, picture: Picture) -> Image.Image:
        """One of them."""
        key = name(picture)
        if key not in self.loaded:
            self.loaded[key] = load_image(picture)
        return self.loaded[key]


def row_tensors(batch: BatchFeature, row: str) -> dict[str, Tensor]:
    """The tensors of a processor's output for one row.

    Args:
        batch: Of one row.
        row: What to call the row in a message.

    Raises:
        InputError: The processor gave no token ids.
    """
    if "input_ids" not in batch:
        raise InputError(f"{row}: the processor gives no input_ids for it.")
    return {k: v for k, v in batch.items() if isinstance(v, Tensor)}
