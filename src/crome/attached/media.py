"""The pictures, films and sounds of a row, and a processor that prepares each of them once.

A row's text cannot be expanded without its media, since the number of placeholders hangs on their
sizes. So every row goes through the model's own processor whole, and only the sub-processors
remember what they made: many questions about one picture cost its preparation once.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from transformers import BatchFeature

from crome.errors import InputError
from crome.images import View, load_image
from crome.sounds import given_samples, load_sound

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
        self.given: dict[str, Any] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        """The inner processor's output, as a copy that its caller may change.

        While `given` is set it is that instead: an output of before, without pixels.
        """
        if self.given is not None:
            return copied(BatchFeature(self.given))
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
        elif part == "video_processor" and hasattr(processor, part):
            setattr(fresh, part, refuse_videos)
    return fresh


def picks_frames(processor: Any) -> bool:
    """Whether a processor takes some of a film's frames by the time at which they stand."""
    return bool(getattr(getattr(processor, "video_processor", None), "do_sample_frames", False))


def refuse_videos(*_: Any, **__: Any) -> None:
    """Stands for a processor of videos that could not be loaded.

    Raises:
        InputError: Always.
    """
    raise InputError(
        "a row shows a video, and processors of videos need torchvision (extra "
        "`video`): install the release that belongs to your PyTorch."
    )


@contextmanager
def giving(worker: Any, outputs: Mapping[str, dict[str, Any]]) -> Iterator[None]:
    """Lets the sub-processors of a processor give outputs of before, as long as the block lasts."""
    parts = {name: getattr(worker, name) for name in outputs}
    for name, part in parts.items():
        part.given = outputs[name]
    try:
        yield
    finally:
        for part in parts.values():
            part.given = None


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

    def video(self, video: Any) -> Any:
        """A film's frames, or its file for the processor to read.

        Raises:
            InputError: There is no such file.
        """
        if isinstance(video, list | tuple):
            return self.images(video)
        if isinstance(video, str | Path):
            if not Path(video).is_file():
                raise InputError(
                    f"no video {video}; expected an existing file or a list of frames."
                )
            if not decodes_files():
                raise InputError(
                    f"{video} cannot be read: transformers decodes files of videos with torchcodec "
                    "(extra `video`), which needs FFmpeg; or give the frames as pictures."
                )
            return str(video)
        return video

    def sound(self, sound: Any, rate: int) -> Any:
        """A recording's samples at a rate; numbers are taken to be at it."""
        if isinstance(sound, str | Path):
            key = (str(sound), rate)
            if key not in self.loaded:
                self.loaded[key] = load_sound(Path(sound), rate)
            return self.loaded[key]
        return given_samples(sound)


def decodes_files() -> bool:
    """Whether torchcodec, with which transformers decodes files of videos, runs here."""
    try:
        import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError):  # absent, or its libraries do not load
        return False
    return True
