"""A finished checkpoint carries the checksums of its files, so that damage is seen before use."""

import json
import os
import zlib
from pathlib import Path

SEAL = "files.json"
CHUNK = 1 << 22


def seal(folder: Path) -> None:
    """Forces a checkpoint's files to disk and writes size and checksum of each beside them."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != SEAL]
    sums = {path.relative_to(folder).as_posix(): checksum(path, sync=True) for path in files}
    (folder / SEAL).write_text(json.dumps(sums, indent=2) + "\n")


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed checkpoint; None where nothing is, or where there is no seal."""
    if not (folder / SEAL).exists():
        return None
    try:
        sums: dict[str, list[int]] = json.loads((folder / SEAL).read_text())
    except ValueError:
        return f"{SEAL} is cut off"
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
