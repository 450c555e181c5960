"""The checkpoints of a run on disk: which there are, which is whole, and the seal that says so."""

import json
import os
import zlib
from pathlib import Path

from crome.errors import InputError
from crome.storage import read_object
from crome.training.progress import console

SEAL = "files.json"
CHUNK = 1 << 22


def seal(folder: Path) -> None:
    """Forces a checkpoint's files to disk and writes size and checksum of each beside them."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != SEAL]
    sums = {path.relative_to(folder).as_posix(): checksum(path, sync=True) for path in files}
    with (folder / SEAL).open("w") as file:
        file.write(json.dumps(sums, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())


def damage(folder: Path) -> str | None:
    """Says what is damaged in a checkpoint; None for an intact one."""
    try:
        sums = read_object(folder / SEAL)
    except FileNotFoundError:
        return f"{SEAL} is missing"
    except (OSError, ValueError):
        return f"{SEAL} is cut off"
    if not sums:
        return f"{SEAL} is not as it was written"
    for name, expected in sums.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if checksum(folder / name) != expected:
            return f"{name} is not as it was written"
    return None


def checksum(path: Path, sync: bool = False) -> list[int]:
    """Size and CRC-32 of a file, which is first forced to disk if wanted."""
    crc = size = 0
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        while chunk := file.read(CHUNK):
            crc, size = zlib.crc32(chunk, crc), size + len(chunk)
    return [size, crc]


def checkpoint_folders(output: Path) -> list[Path]:
    """Checkpoint folders of a run, whole or not, oldest first."""
    found = [p for p in output.glob("checkpoint-*") if is_step(p.name.removeprefix("checkpoint-"))]
    return sorted((p for p in found if p.is_dir()), key=steps_done)


def is_step(text: str) -> bool:
    """Whether a text is a number of steps; `²` is a digit and no number."""
    return text.isascii() and text.isdigit()


def steps_done(folder: Path) -> int:
    """The step after which a checkpoint was saved."""
    return int(folder.name.removeprefix("checkpoint-"))


def last_checkpoint(output: Path) -> Path | None:
    """The newest whole checkpoint of a run, None for a new run; damaged ones are named.

    Raises:
        InputError: The folder is a file, or all its checkpoints are damaged.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; give --out a folder.")
    damaged: list[str] = []
    for folder in reversed(checkpoint_folders(output)):
        wrong = damage(folder)
        if wrong is None:
            for line in damaged:
                console.print(
                    f"{line}; going on from {folder.name}.",
                    style="yellow", markup=False, soft_wrap=True,
                )  # fmt: skip
            return folder
        damaged.append(f"{folder} is damaged ({wrong})")
    if damaged:
        raise InputError(f"{'; '.join(damaged)}. Remove it to start anew, or give another --out.")
    return None
