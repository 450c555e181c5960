"""Which pictures rows show, and which of them cannot be decoded."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.progress import track

from crome.errors import InputError
from crome.images import View, load_image
from crome.rows import Row


def files(row: Row) -> list[Path]:
    """The pictures of a row that are files, or views of files, and the frames of its videos."""
    shown = [picture.path if isinstance(picture, View) else picture for picture in row.images]
    frames = [frame for video in row.videos if isinstance(video, tuple) for frame in video]
    return [picture for picture in [*shown, *frames] if isinstance(picture, Path)]


def failure(picture: Path) -> str | None:
    """Why a picture cannot be read, None if it can."""
    try:
        load_image(picture)
    except InputError as error:
        return str(error)
    return None


def first_uses(placed: Sequence[tuple[str, Row]]) -> dict[Path, str]:
    """Each picture file with the place of the first row that uses it."""
    uses: dict[Path, str] = {}
    for place, row in placed:
        for picture in files(row):
            uses.setdefault(picture, place)
    return uses


def undecodable(first_use: dict[Path, str]) -> dict[Path, str]:
    """Decodes each picture once, a few at a time, and says what does not decode.

    Args:
        first_use: Place of the first row that uses each picture.

    Returns:
        The pictures that do not, each with a line about it.
    """

    def line(path: Path) -> str | None:
        found = failure(path)
        return found and f"{first_use[path]}, image: {found}"

    console = Console(stderr=True)
    with ThreadPoolExecutor() as pool:  # the pixels are dropped inside the worker
        lines = track(
            pool.map(line, first_use),
            description="decoding pictures",
            total=len(first_use),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        return {path: found for path, found in zip(first_use, lines, strict=True) if found}
