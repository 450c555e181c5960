"""`crome cache prune`: what was kept on disk and not used for a while is removed."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow
from rich.console import Console
from rich.table import Table

from crome.data.mixture.table import RowTable
from crome.errors import InputError, not_negative
from crome.features.names import default_folder
from crome.features.store import gigabytes
from crome.storage import STAGING, cache_folder, folder_bytes

DAY = 24 * 3600.0


def prune(days: float = 30.0, folder: Path | None = None, dry_run: bool = False) -> None:
    """Remove features, prepared mixtures and unpacked pictures that no run used for a while.

    Of few-shot features, those of an encoder go together.

    What is removed is made again when it is needed. Pictures of mixtures that stay are kept, and so
    are packaged weights and data (`crome assets`). Leftovers of killed processes go after a day.

    Args:
        days: Since the last use; 0 for everything.
        folder: A folder of caches of features; by default all of crome in the user's cache folder.
        dry_run: Only say what would be removed.
    """
    not_negative(days=days)
    if folder is not None and not folder.is_dir():
        raise InputError(f"no folder {folder}; expected one that `crome cache build` made.")
    table = Table("what", "removed", "size", title_justify="left")
    for what, found in removable(days * DAY, folder):
        size = sum(folder_bytes(p) if p.is_dir() else p.stat().st_size for p in found)
        if not dry_run:
            for path in found:
                remove(path)
        table.add_row(what, f"{len(found):,}", gigabytes(size))
    table.title = "would be removed" if dry_run else None
    Console(markup=False).print(table)


def removable(age: float, folder: Path | None) -> Iterator[tuple[str, list[Path]]]:
    """The files and folders to remove, by kind."""
    features = folder or default_folder()
    yield "features", unused(features, age)
    yield "leftovers", leftovers(features, min(age, DAY))
    if folder is not None:
        return
    mixtures, pictures = cache_folder() / "mixtures", cache_folder() / "pictures"
    old = set(unused(mixtures, age))
    # A mixture that stays needs the tables that it selects from, and these their pictures.
    staying = [path for path in mixtures.glob("rows-*") if path.is_dir() and path not in old]
    yield "mixtures", sorted(old)
    yield "leftovers of mixtures", leftovers(mixtures, min(age, DAY))
    named = {name for path in staying for name in picture_names(path, pictures)}
    files = [path for path in pictures.glob("*/*") if older(path, age) and str(path) not in named]
    yield "pictures", files
    yield "few-shot features", unused(cache_folder() / "fewshot", age)
    yield "leftovers of few-shot features", leftovers(cache_folder() / "fewshot", min(age, DAY))
    yield "lists of pictures that were checked", unused(cache_folder() / "checked", age)


def unused(folder: Path, age: float) -> list[Path]:
    """The contents of a folder that were not used for so many seconds."""
    return [
        path
        for path in sorted(folder.glob("*"))
        if not path.name.startswith(STAGING) and path.suffix != ".lock" and older(path, age)
    ]


def leftovers(folder: Path, age: float) -> list[Path]:
    """Unfinished files of processes that were killed, also of those of earlier versions."""
    patterns = (f"{STAGING}*", f"*/{STAGING}*", "*/.part-*", "*.making-*")
    found = [path for pattern in patterns for path in folder.glob(pattern)]
    return sorted(path for path in set(found) if older(path, age))


def older(path: Path, age: float) -> bool:
    """Whether a file, or the newest file of a folder, was last used so many seconds ago."""
    try:
        inside = [inner.stat().st_mtime for inner in path.glob("*")] if path.is_dir() else []
        return time.time() - max([path.stat().st_mtime, *inside]) >= age
    except FileNotFoundError:
        return False  # removed meanwhile


def picture_names(table: Path, pictures: Path) -> Iterator[str]:
    """The unpacked pictures that the rows of a prepared table show."""
    try:
        column = RowTable(table).dataset.data.column("images")
    except (OSError, ValueError, pyarrow.ArrowException):
        return  # damaged: it is made anew, with its pictures
    for chunk in column.chunks:
        for name in chunk.flatten().to_pylist():
            if name.startswith(str(pictures)):
                yield name


def remove(path: Path) -> None:
    """Removes a file or folder."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
