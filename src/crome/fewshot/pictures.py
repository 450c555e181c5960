"""Pictures as people have them: files, opened pictures, arrays, tables of paths; and their names.

A file is known by the hash of its bytes, so that a copy or a renamed file is the same picture and a
replaced one is not.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crome.errors import InputError
from crome.images import load_image

SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm",
    ".pgm", ".jp2",
}  # fmt: skip
NO_PICTURES = {"thumbs.db", "desktop.ini"}
MAGIC = (
    b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"P5", b"P6",
    b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51",
)  # fmt: skip

Picture = Path | Image.Image


def content_hash(path: Path | str) -> str:
    """SHA-256 of a file's bytes, 32 hexadecimal digits; a file that has not changed is read once.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        about = os.stat(path)
        return _hash_file(os.fspath(path), about.st_size, about.st_mtime_ns, about.st_ino)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from error


def picture_hash(picture: Picture) -> str:
    """``content_hash`` of a file; of an opened picture the same of its size and what it shows.

    Raises:
        InputError: It cannot be read.
    """
    if isinstance(picture, Path):
        return content_hash(picture)
    shown = load_image(picture)  # its palette and its orientation are part of it
    about = f"{shown.mode} {shown.size}".encode()
    return hashlib.sha256(about + shown.tobytes()).hexdigest()[:32]


def each_picture(images: Any) -> Iterator[Picture]:
    """Yield a path or an opened picture for each of what people call pictures.

    Args:
        images: One picture or any iterable of them. A picture is a path, an opened picture of
            Pillow, or an array of uint8, (height, width) or (height, width, 1, 3 or 4). Arrays of
            one more dimension, and columns of tables, are many.

    Raises:
        InputError: Something is none of these.
    """
    if isinstance(images, str | os.PathLike | Image.Image):
        yield _one(images)
    elif isinstance(images, np.ndarray) and images.dtype.kind not in "OUST":
        many = images.ndim == 4 or (images.ndim == 3 and images.shape[2] not in (1, 3, 4))
        yield from map(_one, images if many else [images])
    elif isinstance(images, np.ndarray):
        yield from map(_one, images.ravel().tolist())
    elif hasattr(images, "to_numpy"):  # a table or one of its columns
        yield from each_picture(images.to_numpy())
    elif isinstance(images, Iterable) and not isinstance(images, bytes | dict):
        yield from map(_one, images)
    else:
        raise _no_picture(images)


def list_pictures(folder: Path) -> tuple[list[Path], list[Path]]:
    """The picture files under a folder, sorted, and the other files.

    Hidden files and folders are left out. A file is a picture by its ending or else by its first
    bytes. Linked folders are followed, each once.
    """
    pictures, others = [], []
    for path in _files(folder, set()):
        if not path.exists():
            others.append(path)
        elif path.suffix.lower() in SUFFIXES or _looks_like_one(path):
            pictures.append(path)
        elif path.name.lower() not in NO_PICTURES:
            others.append(path)
    return sorted(pictures), sorted(others)


def is_hidden(path: Path) -> bool:
    """Whether a file or folder is hidden, or made by an archiver or a file server beside others."""
    return path.name.startswith(".") or path.name in {"__MACOSX", "@eaDir"}


def _files(folder: Path, seen: set[Path]) -> Iterator[Path]:
    real = folder.resolve()
    if real in seen:
        return
    seen.add(real)
    for path in sorted(folder.iterdir()):
        if is_hidden(path):
            continue
        if path.is_dir():
            yield from _files(path, seen)
        elif path.is_file() or path.is_symlink():  # a link to nothing is named, as unreadable
            yield path


def _looks_like_one(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return head.startswith(MAGIC) or (head[:4] == b"RIFF" and head[8:] == b"WEBP")


def _one(image: Any) -> Picture:
    if isinstance(image, str | os.PathLike):
        if not os.fspath(image):
            raise InputError("a path is empty; expected a picture file.")
        return Path(image)
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, list | tuple) and len(image) == 1:  # a row of a table of one column
        return _one(image[0])
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        flat = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
        if flat.size and (flat.ndim == 2 or flat.shape[2] in (3, 4)):
            return Image.fromarray(np.ascontiguousarray(flat))
    raise _no_picture(image)


def _no_picture(image: Any) -> InputError:
    found = type(image).__name__
    if isinstance(image, np.ndarray):
        found = f"an array of {image.dtype}, {image.shape}"
    return InputError(
        f"found {found} in place of a picture; expected a path, a picture of Pillow, or an array "
        "of uint8, (height, width) or (height, width, 3)."
    )


@lru_cache(maxsize=1 << 20)
def _hash_file(path: str, size: int, changed: int, inode: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]
