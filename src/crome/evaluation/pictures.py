"""From a record's image to a file: paths, paths under another ending, and encoded images."""

import hashlib
import unicodedata
from functools import lru_cache
from pathlib import Path

from crome.storage import replaced

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def image_file(image: str | bytes, root: Path, kept: Path) -> Path:
    """The file of a record's image.

    A path may differ from the file's in case, in the form of its accents, and in its ending:
    benchmarks are handed on with their images as JPEG.

    Args:
        image: A path, or an encoded image, which is written.
        root: Folder that paths start from.
        kept: Folder for encoded images, each written once.
    """
    if isinstance(image, bytes):
        path = kept / hashlib.sha256(image).hexdigest()[:24]
        if not path.exists():
            with replaced(path, durable=False) as temporary:  # several processes may write it
                temporary.write_bytes(image)
        return path
    path = root / image
    if path.is_file() or not path.parent.is_dir():
        return path
    names = _names(path.parent)
    wanted = [_key(path.name), *(_key(path.stem + suffix) for suffix in IMAGE_SUFFIXES)]
    return next((path.parent / names[name] for name in wanted if name in names), path)


@lru_cache(maxsize=64)
def _names(folder: Path) -> dict[str, str]:
    return {_key(found.name): found.name for found in folder.iterdir() if found.is_file()}


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
