"""Which pictures rows show and which recordings they play, and which of them cannot be decoded."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.progress import track

from crome.data.checked import first_process, known, remember
from crome.data.media import SUFFIXES
from crome.errors import InputError
from crome.images import View, load_image
from crome.rows import Medium, Row
from crome.sounds import check_sound


def files(row: Row) -> list[Path]:
    """The pictures of a row that are files, the frames of its videos, and its recordings."""
    images = [picture.path if isinstance(picture, View) else picture for picture in row.images]
    frames = [frame for video in row.videos if isinstance(video, tuple) for frame in video]
    sounds = filter(is_recording, row.audios)
    return [file for file in [*images, *frames, *sounds] if isinstance(file, Path)]


def is_recording(file: Path) -> bool:
    """Whether a file's name is that of a recording."""
    return file.suffix.lower() in SUFFIXES["audio"]


def medium_of(file: Path) -> Medium:
    """What a file of `files` is."""
    return "audio" if is_recording(file) else "image"


def failure(file: Path) -> str | None:
    """Why a picture or a recording cannot be read, None if it can."""
    try:
        (check_sound if is_recording(file) else load_image)(file)
    except InputError as error:
        return str(error)
    return None


def first_uses(placed: Sequence[tuple[str, Row]]) -> dict[Path, str]:
    """Each file of `files` with the place of the first row that uses it."""
    uses: dict[Path, str] = {}
    for place, row in placed:
        for picture in files(row):
            uses.setdefault(picture, place)
    return uses


def undecodable(first_use: dict[Path, str], again: bool = False) -> dict[Path, str]:
    """Decodes each picture and recording once, a few at a time, and says what does not decode.

    Args:
        first_use: Place of the first row that uses each picture.
        again: Whether pictures are decoded, too, that were before and have not changed.

    Returns:
        The pictures that do not, each with a line about it.
    """
    console = Console(stderr=True)
    with first_process(), ThreadPoolExecutor() as pool:  # the pixels are dropped in the worker
        before = set() if again else known(first_use)
        left = [picture for picture in first_use if picture not in before]
        reasons = track(
            pool.map(failure, left),
            description="decoding pictures",
            total=len(left),
            console=console,
            transient=True,
            disable=not console.is_terminal or not left,
        )
        found = dict(zip(left, reasons, strict=True))
        remember(picture for picture, reason in found.items() if reason is None)
    return {
        picture: f"{first_use[picture]}, {medium_of(picture)}: {reason}"
        for picture, reason in found.items()
        if reason is not None
    }
