"""A run's folder belongs to one run: one process at a time, one set of settings, nothing foreign.

`run.yaml` is written before anything else. It holds the options of the run, so that it can be given
as `--config`, and what the run saw of its rows. Once the run has left something, every later
command into the folder is compared with it.
"""

import hashlib
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from crome.errors import InputError
from crome.images import View, load_image
from crome.rows import Row
from crome.storage import locked, write_text
from crome.version import __version__

RECORD, LOCK = "run.yaml", "run.lock"
WRITTEN = ("model.safetensors", "config.json", "adapter", "log.jsonl", "samples.jsonl", "best")
"""What a run writes, beside its checkpoints."""
FREE = frozenset({
    "out", "crome_version", "epochs", "max_steps", "batch_size", "gradient_accumulation_steps",
    "save_steps", "save_total_limit", "log_steps", "sample_steps", "workers", "device",
    "compile_layers", "check_images", "on_bad_row", "image_root", "cache", "tracking",
    "device_map", "shard", "activation_checkpointing", "first_rows",
})  # fmt: skip
"""What may change when a run goes on: its length, how its batches are shared, where things lie. The
rows themselves are compared, so it does not matter which options they come from."""
GIVEN = ("settings", "trainer")
"""Options whose names are the user's: one that is absent is another setting, and no older version.
"""
ROWS_COMPARED = 32
SAMPLE = 1 << 16
"""Bytes of a picture's file that are compared, beside its size."""
_mine: set[Path] = set()


@contextmanager
def owned(out: Path) -> Iterator[None]:
    """Holds a run's folder for this process; a process that is killed lets go of it.

    Of several processes of one run, the first holds it.

    Args:
        out: The folder, made if absent.

    Raises:
        InputError: Another run is writing there.
    """
    path = out.absolute()
    if path in _mine or int(os.environ.get("RANK", 0)) > 0:
        yield
        return
    with locked(out / LOCK, f"another run is writing to {out}; wait, or give another --out."):
        _mine.add(path)
        try:
            yield
        finally:
            _mine.discard(path)


def check_folder(out: Path) -> None:
    """Refuses a folder that cannot be used, before anything takes its time.

    Raises:
        InputError: With what is in the way: a file, a folder that cannot be written, another run
            that is writing, or files that no run has written.
    """
    place = next(p for p in (out, *out.absolute().parents) if os.path.lexists(p))
    if not place.is_dir():
        raise InputError(f"{place} is a file; give --out a folder.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"{place} cannot be written; give --out another folder.")
    if (out / LOCK).exists():
        with owned(out):
            pass
    if (out / RECORD).exists():
        return
    if found := written(out):
        raise InputError(
            f"{out} holds {', '.join(found[:3])} and no {RECORD}: a run did not write this. Give "
            "another --out."
        )


def written(out: Path) -> list[str]:
    """Names of what a run has left in a folder; a log without a line is nothing."""
    found = [name for name in WRITTEN if (out / name).exists() and (out / name).stat().st_size]
    return found + sorted(path.name for path in out.glob("checkpoint-*"))


def claim(out: Path, record: dict[str, Any], write: bool) -> None:
    """Compares a folder's run with this one, and writes down this one.

    Args:
        out: The folder, which this process owns.
        record: Settings and facts of this run.
        write: Whether this process is the one that writes.

    Raises:
        InputError: The folder belongs to another run.
    """
    check_folder(out)
    path = out / RECORD
    before = read_record(path) if path.exists() else None
    if before is not None and written(out):  # a run that failed before it began keeps no folder
        compare(path, before, record)
    if write:
        out.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump({"crome_version": __version__, **record}, sort_keys=False)
        write_text(path, text)


def read_record(path: Path) -> dict[str, Any]:
    """What a run wrote of itself.

    Raises:
        InputError: The file is damaged.
    """
    try:
        record = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        record = None
    if not isinstance(record, dict):
        raise InputError(
            f"{path} is damaged, so it cannot be told whose run this is. Give another --out, or "
            "put the file back."
        )
    return record


def compare(path: Path, before: dict[str, Any], record: dict[str, Any]) -> None:
    """Refuses to go on with a run under other settings than its own.

    Args:
        path: Path of the record, for the message.
        before: What the run wrote of itself.
        record: What is wanted now.

    Raises:
        InputError: The message says what differs.
    """
    absent = sorted(record.keys() - before.keys())
    if absent and before.get("crome_version") == __version__:
        raise InputError(
            f"{path} is damaged, or of another command: it says nothing of "
            f"{', '.join(absent[:3])}. Give another --out, or put the file back."
        )
    started, now = flat(before), flat(record)
    free = set(FREE)
    if started.get("data_fingerprint") and now.get("data_fingerprint"):
        free.add("data")  # the same bytes at another place are the same data
    else:
        free.add("data_fingerprint")  # of a version that did not look into files
    different = [
        f"{key} was {started[key]!r} and is {now[key]!r}"
        for key in now.keys() & started.keys() - free
        if started[key] != now[key]
    ]
    rows = [str(part.get("first_rows") or "").split() for part in (before, record)]
    if any(a != b for a, b in zip(*rows, strict=False)):
        different.append("its first rows are others, or show other pictures")
    if different:
        raise InputError(
            f"{path.parent} holds a run with other settings: {'; '.join(sorted(different))}. Give "
            "the same to go on with it, or another --out."
        )


def flat(record: dict[str, Any]) -> dict[str, Any]:
    """A record with the settings of its groups beside the others; free groups are left out."""
    given = {name: record.get(name) or {} for name in GIVEN}
    groups = [v for k, v in record.items() if isinstance(v, dict) and k not in FREE | given.keys()]
    parts = (record, *groups)
    return {k: v for part in parts for k, v in part.items() if not isinstance(v, dict)} | given


def first_rows(rows: Sequence[Row]) -> str:
    """A short hash of each of a run's first rows: their text and what they show."""
    return " ".join(digest(row) for row in islice(rows, ROWS_COMPARED))


def digest(row: Row) -> str:
    """Eight characters that stand for a row's text and media."""
    text = repr((row.history, row.question, row.answer, row.system))
    media = [glimpse(one) for items in row.media.values() for one in items]
    return hashlib.sha256(repr((text, media)).encode()).hexdigest()[:8]


def glimpse(medium: Any) -> tuple[int, int] | str:
    """Size and checksum of the beginning of a picture, video or recording."""
    if isinstance(medium, View):
        medium = medium.path
    if isinstance(medium, Image.Image):
        content = load_image(medium).tobytes()  # with its palette
        return len(content), zlib.crc32(content[:SAMPLE])
    if not isinstance(medium, Path):
        return repr([glimpse(frame) for frame in medium])
    try:
        with medium.open("rb") as file:
            return medium.stat().st_size, zlib.crc32(file.read(SAMPLE))
    except OSError:
        return "unreadable"
