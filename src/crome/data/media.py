"""The pictures, videos and recordings that an entry names, as files.

A name is a path, from the data file's folder or wherever it says, also as `file://…` or with
Windows' backslashes. What stands in the entry itself (bytes, as `datasets` writes them, `data:…`,
or bare base64) is put into the user's cache folder under a name that stands for its content, and is
a file from then on.
"""

import base64
import os
import re
import time
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import unquote

from PIL import Image

from crome.data.problems import show, show_path
from crome.rows import Medium, Picture, Video
from crome.storage import cache_folder, mark_used, replaced

Report = Callable[[str, str, str], None]
"""(field, what was found, what was expected) of something that is wrong."""

SUFFIXES: dict[Medium, frozenset[str]] = {
    "image": frozenset(
        ".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .tif .tiff .jp2 .ppm .pgm .heic .avif"
        " .svg".split()
    ),
    "video": frozenset(".mp4 .mov .avi .mkv .webm .mpg .mpeg .m4v .flv .wmv".split()),
    "audio": frozenset(".wav .mp3 .flac .ogg .opus .m4a .aac .wma".split()),
}
_FILE = r"(?:_?(?:path|file|name|url|uri|src|base64|bytes|list|\d+)s?)*"
_KEYS: dict[Medium, re.Pattern[str]] = {
    "image": re.compile(
        rf"(?:.*_)?(?:image|img|picture|pic|photo|figure|screenshot)s?{_FILE}|file_?(?:name|path)s?"
    ),
    "video": re.compile(rf"(?:.*_)?(?:video|clip|movie|film|frame)s?{_FILE}"),
    "audio": re.compile(rf"(?:.*_)?(?:audio|sound|speech|wav|recording|voice)s?{_FILE}"),
}
# How base64 of JPEG, PNG, GIF, WebP, TIFF and JPEG 2000 begins; too long to be the name of a file.
_BASE64 = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "SUkqA", "TU0AK", "AAAADGpQ")
_BYTES = tuple(base64.b64decode(start[: len(start) // 4 * 4]) for start in _BASE64)
NAMES = ("url", "image_url", "path", "image", "file_name")
"""Keys of an object that names a file."""
LONGEST_NAME = 4096
SHORTEST = 60
"""Characters of a picture in base64, at least."""
DAY = 24 * 3600.0
ADDRESS = "a file: fetch it first"
EXPECTED = {
    "image": "a file name or a list of them",
    "video": "a file name, or a list of the frames' file names",
    "audio": "a file name or a list of them",
}


class Finder:
    """Finds the files that entries name.

    Args:
        folder: Where relative names start.
        look: Whether a file that does not exist is a problem.
        report: Takes up what is wrong.
    """

    def __init__(self, folder: Path, look: bool, report: Report) -> None:
        self.folder, self.look, self.report = folder, look, report
        self._path = lru_cache(maxsize=2**16)(self._existing)  # rows on one picture are neighbours

    def all(self, medium: Medium, value: Any) -> list[Any]:
        """The files of the pictures, videos or recordings under a key of an entry."""
        if value is None:
            return []
        values = value if isinstance(value, list | tuple) else [value]
        if medium == "video" and values and all(map(is_picture, values)):
            values = [list(values)]  # the frames of one video
        found = [self.one(medium, source) for source in values]
        return [item for item in found if item is not None]

    def one(self, medium: Medium, source: Any) -> Picture | Video | None:
        """The file of one of them; None, and a report, where there is none."""
        if medium == "video" and isinstance(source, list | tuple):
            frames = [self.one("image", frame) for frame in source]
            files = tuple(frame for frame in frames if isinstance(frame, Path))
            if files and len(files) == len(source):
                return files
            self._refuse(medium, source)
            return None
        if isinstance(source, Image.Image) and medium == "image":
            return source
        if content := content_of(source):
            name = source.get("path") if isinstance(source, dict) else None
            return unpacked(content, suffix_of(medium, name))
        name = name_in(source)
        if name is None or not encodable(name):
            self._refuse(medium, source)
            return None
        if name[:5].lower() == "data:":
            return self._inline(medium, name)
        return self._named(medium, name)

    def _refuse(self, medium: Medium, source: Any) -> Picture | Video | None:
        self.report(medium, show(source), EXPECTED[medium])
        return None

    def _named(self, medium: Medium, name: str) -> Path | None:
        if len(name) <= LONGEST_NAME and (found := self._path(name)) is not None:
            return found
        if medium == "image" and name.startswith(_BASE64) and (content := decoded(name)):
            return unpacked(content)
        if "://" in name and not name.lower().startswith("file:"):
            self.report(medium, f"the address {show(name)}", ADDRESS)
        elif name.lower().startswith("file:"):
            self.report(medium, f"no file {show_path(local_path(name))}", "an existing file")
        else:
            self.report(medium, f"no file {show_path(self.folder / name)}", "an existing file")
        return None

    def _existing(self, name: str) -> Path | None:
        path = self.folder / (local_path(name) if name.lower().startswith("file:") else name)
        if not self.look or os.path.isfile(path):  # no for absurd names too
            return path
        for written in spellings(name):
            if os.path.isfile(path := self.folder / written):
                return path
        return None

    def _inline(self, medium: Medium, address: str) -> Path | None:
        """The file of what is written out in the entry, as chat APIs take it."""
        head, _, content = address.partition(",")
        if head.lower().endswith(";base64") and (found := decoded(content)):
            ending = "" if medium == "image" else f".{head[5:].partition(';')[0].split('/')[-1]}"
            return unpacked(found, suffix_of(medium, ending))
        self.report(medium, show(address), f"data:{medium}/…;base64, and the content in base64")
        return None


def media_key(key: str, value: Any) -> Medium | None:
    """Which medium a key speaks of that no reader uses, from its name or from what it names."""
    if not value or not isinstance(value, str | bytes | list | tuple | dict):
        return None
    name = key.lower().replace("-", "_")
    by_name = next((kind for kind, form in _KEYS.items() if form.fullmatch(name)), None)
    return medium_in(value) or by_name


def medium_in(value: Any, depth: int = 3) -> Medium | None:
    """Which medium a value names by the ending of a file, or holds; lists go by their first."""
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    if isinstance(value, dict) and depth:
        return next(filter(None, (medium_in(inner, depth - 1) for inner in value.values())), None)
    if isinstance(value, bytes):
        return "image" if value.startswith(_BYTES) else None
    if not isinstance(value, str):
        return None
    if len(value) > SHORTEST and value.startswith((*_BASE64, "data:image/")):
        return "image"
    suffix = PurePath(value).suffix.lower() if len(value) < LONGEST_NAME else ""
    return next((kind for kind, known in SUFFIXES.items() if suffix in known), None)


def is_picture(source: Any) -> bool:
    """Whether a name is that of a picture: a list of such under `video` are frames."""
    return isinstance(source, str) and PurePath(source).suffix.lower() in SUFFIXES["image"]


def content_of(source: Any) -> bytes | None:
    """The bytes of a file that an entry has: its own, or in `{"bytes", "path"}` (`datasets`).

    In JSON they are base64 or numbers; some chat APIs call them `data`.
    """
    content = source
    if isinstance(source, dict):
        content = next((source[k] for k in ("bytes", "data", "base64") if source.get(k)), None)
    elif not isinstance(source, bytes):
        return None
    if isinstance(content, str):
        return decoded(content)
    try:
        return bytes(content) if isinstance(content, list | bytes) else None
    except (TypeError, ValueError):  # other numbers than those of bytes
        return None


def name_in(source: Any) -> str | None:
    """The name of a file, which may stand in an object under one of several keys."""
    for _ in range(3):  # {"image_url": {"url": "a.png"}}
        if isinstance(source, dict):
            source = next((source[key] for key in NAMES if source.get(key) is not None), None)
    return source if isinstance(source, str) and source else None


def spellings(name: str) -> tuple[str, ...]:
    """Other ways in which a file's name may be written in an entry.

    On Windows with backslashes, in the other normal form of Unicode (that of macOS), or encoded as
    in an address.
    """
    forms = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    return name.replace("\\", "/"), *forms, unquote(name)


def local_path(address: str) -> str:
    """The path of a `file:` address; Windows' drives keep their letter."""
    path = address.partition(":")[2]
    if path.startswith("//"):  # and a host
        path = f"/{path[2:].partition('/')[2]}"
    path = unquote(path)
    return path[1:] if re.match(r"/[A-Za-z]:", path) else path


def suffix_of(medium: Medium, name: Any) -> str:
    """The ending that a recording or video keeps, since decoders go by it; none for a picture."""
    suffix = PurePath(name if "." not in name[:1] else f"x{name}").suffix.lower() if name else ""
    return suffix if medium != "image" and suffix in SUFFIXES[medium] else ""


def decoded(text: str) -> bytes | None:
    """What a text in base64 says; None where it is no base64."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        return None


def unpacked(content: bytes, suffix: str = "") -> Path:
    """The file in the user's cache folder that holds a picture of a data file."""
    name = blake2b(content, digest_size=16).hexdigest() + suffix
    path = cache_folder() / "pictures" / name[:2] / name
    if not path.is_file() or path.stat().st_size != len(content):  # absent, or cut
        with replaced(path, durable=False) as temporary:
            temporary.write_bytes(content)
    elif time.time() - path.stat().st_mtime > DAY:
        mark_used(path)
    return path


def encodable(text: str) -> bool:
    """Whether a text is valid Unicode: JSON escapes can write halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
