"""Files that are written whole or not at all, locks, and the user's cache folder.

A file is written under a random name beside its place, brought to the disk, and moved there, so
that a full disk or a killed process leaves what was there before. Random names, unlike process
numbers, never meet the leftovers of an earlier process.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from crome.errors import InputError, JobError

STAGING = ".staging-"
"""How the names of unfinished files and folders begin; what a killed process left is removed."""


def cache_folder() -> Path:
    """`crome` in the user's cache folder (`XDG_CACHE_HOME`, or `~/.cache`)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crome"


@contextmanager
def replaced(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary file that takes the place of `path` when the block ends well.

    Args:
        path: The file to be.
        durable: Whether it is on the disk before it takes its place; false for what is checked
            when it is read, and soon made anew.

    Raises:
        JobError: The disk does not take it; what was there before is intact.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{STAGING}{path.name}.")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o644)  # a temporary file belongs to its owner alone; results are shared
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise JobError(
            f"could not write {path}: {error}. What was there before is intact."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON whole or not at all; what JSON does not know is written as text."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def build_folder(folder: Path, build: Callable[[Path], None]) -> None:
    """Fills a folder under a random name and moves it into place, replacing an older one.

    Args:
        folder: Its place. Hold a lock of it where several processes may build it.
        build: Fills the empty folder it is given.

    Raises:
        JobError: The disk does not take it.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{STAGING}{folder.name}."))
        try:
            build(staging)
            staging.chmod(0o755)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise JobError(f"could not write {folder}: {error}.") from error


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes left unfinished in a folder; hold its lock meanwhile."""
    for path in folder.glob(f"{STAGING}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, message: str) -> Iterator[None]:
    """Holds a lock file for one process; a killed process lets go of it.

    Args:
        path: Of the lock file.
        message: Of the error, where another process holds it.

    Raises:
        InputError: Another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(message) from error
    try:
        yield
    finally:
        lock.release()
