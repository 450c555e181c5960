"""Files that are written whole or not at all, locks, and the user's cache folder.

A file is written under a random name beside its place, brought to the disk, and moved there, so
that a full disk or a killed process leaves what was there before. Random names, unlike process
numbers, never meet the leftovers of an earlier process. A folder that is built whole is sealed: its
seal lists its files, so that a truncated or missing one is noticed and the folder built again.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from crome.errors import InputError, JobError

STAGING = ".staging-"
"""How the names of unfinished files and folders begin; what a killed process left is removed."""

SEAL = ".sealed.json"
"""Lists the files of a folder that was built whole, in it."""

ABANDONED = 24 * 3600.0
"""Seconds after which an unfinished file is taken to be of a process that was killed."""

ENDS = 1 << 16  # bytes of each end of a file that its seal stands for


def cache_folder() -> Path:
    """`crome` in the user's cache folder (`XDG_CACHE_HOME`, or `~/.cache`)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crome"


@contextmanager
def replaced(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary file that takes the place of `path` when the block ends well.

    Args:
        path: The file to be.
        durable: Whether the file is forced to the disk first. Files that are checked when they
            are read and quickly made again can do without.

    Raises:
        JobError: The disk does not take it; what was there before is intact.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if durable:
            remove_leftovers(path.parent, path.name, ABANDONED)
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


def append_line(path: Path, value: Any) -> None:
    """Adds a line of JSON to a file; what a kill leaves of a line is for the reader to drop.

    Raises:
        JobError: The disk does not take it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(json.dumps(value).encode() + b"\n")
    except OSError as error:
        raise JobError(f"could not write {path}: {error}. Its earlier lines stay.") from error


@contextmanager
def library_writes(place: Path) -> Iterator[None]:
    """Says that it was the disk, where a library that writes to it raises an error of its own.

    Raises:
        JobError: The disk does not take it.
    """
    try:
        yield
    except JobError:
        raise
    except Exception as error:
        # Rust's libraries raise plain exceptions, PyTorch a RuntimeError.
        full = any(words in str(error) for words in ("os error", "No space left", "file write"))
        if not full and not isinstance(error, OSError):
            raise
        cause = error if isinstance(error, OSError) else OSError(errno.ENOSPC, str(error))
        reason = " ".join(str(error).split()).rstrip(".")
        raise JobError(f"could not write {place}: {reason}.") from cause


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds no JSON, or JSON that is no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"found a JSON {type(value).__name__}; expected an object")
    return value


def build_folder(folder: Path, build: Callable[[Path], None]) -> None:
    """Fills a folder under a random name, seals it and moves it into place, for an older one.

    What killed processes left of the same folder is removed first.

    Args:
        folder: Its place. Hold a lock of it where several processes may build it.
        build: Fills the empty folder it is given.

    Raises:
        JobError: The disk does not take it.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder.parent, folder.name)
        staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{STAGING}{folder.name}."))
        try:
            build(staging)
            seal(staging)
            staging.chmod(0o755)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise JobError(f"could not write {folder}: {error}.") from error


def seal(folder: Path) -> None:
    """Brings the files of a folder to the disk and lists them in it."""
    bring_to_disk(folder)
    listed = {name: list(print_of(folder / name)) for name in file_names(folder)}
    write_text(folder / SEAL, json.dumps(listed))


def bring_to_disk(folder: Path) -> None:
    """Waits until all files below a folder are on the disk."""
    for name in file_names(folder):
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())


def is_whole(folder: Path) -> bool:
    """Whether a folder has a seal and its files are as the seal says.

    Sizes are compared, and the first and last 64 KiB of each file; what lies between is not read.
    """
    try:
        listed = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        return isinstance(listed, dict) and listed == {
            name: list(print_of(folder / name)) for name in file_names(folder)
        }
    except (OSError, ValueError, RecursionError):
        return False


def file_names(folder: Path) -> list[str]:
    """Names of the files below a folder, but for its seal."""
    names = [
        os.path.relpath(os.path.join(parent, name), folder).replace(os.sep, "/")
        for parent, _, files in os.walk(folder)  # pathlib is slow with thousands of files
        for name in files
    ]
    return sorted(name for name in names if name != SEAL)


def print_of(path: Path) -> tuple[int, str]:
    """Size of a file, and a digest of its two ends."""
    size = path.stat().st_size
    with path.open("rb") as file:
        ends = file.read(ENDS)
        if size > ENDS:
            file.seek(max(ENDS, size - ENDS))
            ends += file.read(ENDS)
    return size, hashlib.blake2b(ends, digest_size=16).hexdigest()


def remove_leftovers(folder: Path, name: str = "", age: float = 0.0) -> None:
    """Removes what killed processes left unfinished in a folder.

    Args:
        folder: The folder; hold its lock meanwhile, or give an age.
        name: The name that the finished file or folder was to have; "" for any.
        age: Least age in seconds, because living processes have unfinished files, too.
    """
    for path in folder.glob(f"{STAGING}{escape(name)}{'.' if name else ''}*"):
        try:
            if age and time.time() - path.stat().st_mtime < age:
                continue
        except FileNotFoundError:
            continue  # finished or removed meanwhile
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def mark_used(path: Path) -> None:
    """Notes on a file or folder of a cache that it was used just now, for `crome cache prune`."""
    with suppress(OSError):  # gone, or of another user
        os.utime(path)


def folder_bytes(folder: Path) -> int:
    """Size of all files below a folder; one that vanishes meanwhile counts nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


@contextmanager
def locked(path: Path, message: str) -> Iterator[None]:
    """Holds a lock file for one process; a killed process lets go of it.

    Args:
        path: Path of the lock file.
        message: Message of the error, where another process holds it.

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
