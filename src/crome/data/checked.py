"""Which pictures were decoded before: a record in the user's cache folder.

A picture is known by its path, size and time of change, so that a run that starts again does not
decode all of them again. The record is SQLite's, which any number of processes may use at once. It
only saves time: where it cannot be read or written, every picture is decoded.
"""

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import PIL
from filelock import FileLock

from crome.storage import cache_folder, mark_used

FORMAT = 1
"""Of the record; raise it when other pictures are refused than before."""
JUST_NOW = 2_000_000_000
"""Nanoseconds: a file that changed so lately may change again without another time of change."""


def record_path() -> Path:
    """The record of this version of Pillow, whose decoders decide what can be read."""
    return cache_folder() / "checked" / f"pictures-{FORMAT}-{PIL.__version__}.sqlite"


def known(pictures: Iterable[Path]) -> set[Path]:
    """The pictures that were decoded before and have not changed since."""
    found: set[Path] = set()
    with suppress(OSError, sqlite3.OperationalError), opened() as record:
        for picture in pictures:
            row = record.execute("SELECT size, time FROM pictures WHERE path = ?", (key(picture),))
            if (now := stamp(picture)) and row.fetchone() == now:
                found.add(picture)
        mark_used(record_path())
    return found


def remember(pictures: Iterable[Path]) -> None:
    """Notes that pictures were decoded."""
    latest = time.time_ns() - JUST_NOW
    with suppress(OSError, sqlite3.OperationalError), opened() as record:
        stamps = ((key(picture), stamp(picture)) for picture in pictures)
        rows = ((name, *found) for name, found in stamps if found and found[1] < latest)
        record.executemany("INSERT OR REPLACE INTO pictures VALUES (?, ?, ?)", rows)


@contextmanager
def opened() -> Iterator[sqlite3.Connection]:
    """The record, made if absent; a damaged one is removed.

    Raises:
        OSError: It cannot be made.
        sqlite3.OperationalError: It cannot be read or written, or is damaged.
    """
    path = record_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with closing(sqlite3.connect(path, timeout=60)) as record, record:
            record.execute(
                "CREATE TABLE IF NOT EXISTS pictures "
                "(path BLOB PRIMARY KEY, size INTEGER, time INTEGER) WITHOUT ROWID"
            )
            yield record
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        path.unlink(missing_ok=True)
        raise sqlite3.OperationalError(f"{path} is damaged") from error


def key(picture: Path) -> bytes:
    """A picture's name in the record."""
    return os.fsencode(picture.absolute())


def stamp(picture: Path) -> tuple[int, int] | None:
    """Size and time of change of a file; None where there is none."""
    try:
        status = picture.stat()
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


@contextmanager
def first_process() -> Iterator[None]:
    """A block that the processes of one run go through one by one.

    The first decodes the pictures; the others find them in the record. A run of one process does
    not wait for other runs.
    """
    lock = None
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        with suppress(OSError):  # without a folder to write to, each decodes
            record_path().parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(record_path().with_suffix(".lock"))
            lock.acquire()
    try:
        yield
    finally:
        if lock is not None:
            lock.release()
