"""Entries of data files, read one after the other.

A file is JSON lines, one JSON list (or an object that holds one, as `{"data": […]}`), CSV or
Parquet; a folder is one of `Dataset.save_to_disk`; and a name such as `org/name` is a data set of
the hub. None is ever in memory as a whole: a list of several gigabytes costs as much as its longest
entry.

Lists are read by the decoder of Python's `json`, piece by piece. A streaming parser such as ijson
reads the same files, but loses halves of surrogate pairs, gives no line of an error, and takes all
memory for a hundred thousand opening brackets.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from crome.data.problems import Problem, show
from crome.data.tables import (
    TABLES,
    csv_entries,
    hub_entries,
    hub_name,
    parquet_entries,
    saved_entries,
)
from crome.errors import InputError

CHUNK = 2**20  # characters of a list read at a time
LONGEST = 2**26  # characters of one entry; more is a file that is no list of rows
NEAR_END = 16  # an error so near the end of what was read may be the cut, not the file
LISTS = ("data", "rows", "examples", "samples", "train")
"""Keys of an object that may hold the list of rows."""

OTHER_FORMS = {
    b"\xff\xfe\0\0": "text in UTF-32; save it as UTF-8",
    b"\xff\xfe": "text in UTF-16; save it as UTF-8",
    b"\xfe\xff": "text in UTF-16; save it as UTF-8",
    b"\x1f\x8b": "compressed; unpack it with gunzip",
    b"BZh": "compressed; unpack it with bunzip2",
    b"\xfd7zXZ": "compressed; unpack it with unxz",
    b"\x28\xb5\x2f\xfd": "compressed; unpack it with unzstd",
    b"7z\xbc\xaf": "compressed; unpack it with 7z",
    b"\x04\x22\x4d\x18": "compressed; unpack it with unlz4",
    b"\x80\x04\x95": "a pickle of Python; save it as Parquet or JSON",
    b"version https://git-lfs": "a pointer of Git LFS; git lfs pull",
    b"<": "a web page or XML; fetch the data file itself",
    b"PK\x03\x04": "a zip file or a spreadsheet; unpack it, or save it as CSV",
}
"""How files begin that are no data files, and what to do with them."""

FORMS = "JSON lines, a JSON list, CSV or Parquet"


def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; Python would keep the last of equal keys and lose the others.

    Raises:
        ValueError: It has a key twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
        raise ValueError(f"the key {show(twice)} is there twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=once_each)


def entries(path: Path) -> Iterator[tuple[str, object]]:
    """Yield (place, decoded entry) of a file; a line that cannot be decoded comes as a `Problem`.

    Args:
        path: A file, a folder of `Dataset.save_to_disk`, or the name of a hub data set: `org/name`,
            `org/name:split` or `org/name:config:split`.

    Raises:
        InputError: There is no such file, or it is of another form, or a list or table that cannot
            be decoded.
        JobError: The hub cannot be reached.
    """
    if path.is_dir():
        return saved_entries(path)
    if not path.is_file():
        if (name := hub_name(path)) is not None:
            return hub_entries(name)
        raise InputError(f"no data file {path}; expected {FORMS}.")
    with path.open("rb") as file:
        head = file.read(1024)
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if head.startswith(b"PAR1"):
        return parquet_entries(path)
    if found := other_form(head):
        raise InputError(f"{path} is {found}.")
    if path.suffix.lower() in TABLES:
        return csv_entries(path)
    if start == b"[" or (start == b"{" and holds_list(path)):
        return list_entries(path)
    return line_entries(path)


def other_form(head: bytes) -> str | None:
    """What a file is that is no text; None if it may be one."""
    for start, found in OTHER_FORMS.items():
        if head.startswith(start):
            return found
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it, or name it under `shards:` in a YAML file"
    if b"\0" in head:
        return f"no text (it starts with {head[:8]!r}); expected {FORMS}"
    return None


def holds_list(path: Path) -> bool:
    """Whether a file is one JSON object with the list of rows under a key.

    Raises:
        InputError: It is an object over several lines that has no such key.
    """
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        text = ListText(path, file)
        try:
            if text.to_list():
                return True
        except InputError:
            return False  # broken before a list: whoever reads the lines says where
        text.peek()
    with path.open("rb") as lines:
        first = next((line for line in lines if line.strip(b"\xef\xbb\xbf \t\r\n")), b"")
    if first.removeprefix(b"\xef\xbb\xbf").strip() == b"{":
        raise InputError(
            f"{path} is JSON objects over several lines; expected one a line (`jq -c .` writes "
            f"them so), one JSON list, or one under a key such as {LISTS[0]!r}."
        )
    return False


def line_entries(path: Path) -> Iterator[tuple[str, object]]:
    """Yield (place, entry) of a file of JSON lines; blank lines are passed over."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"line {number}", decode(line, f"line {number}")


def list_entries(path: Path) -> Iterator[tuple[str, object]]:
    """Yield (place, entry) of a file that is one JSON list."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        text = ListText(path, file)
        whole = text.skip("[") or not text.to_list()  # the latter moves to the list
        number = 0
        while not text.skip("]"):
            if number and not text.skip(","):
                text.fail("Expecting ',' delimiter", text.at)
            number += 1
            yield f"row {number}", text.value()
        if whole and text.peek():
            text.fail("Extra data", text.at)


class ListText:
    """The text of a JSON list, of which only what is being decoded is in memory.

    Args:
        path: Path of the file, for messages.
        file: The file, opened as text.
    """

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path, self.file = path, file
        self.text, self.at = "", 0
        self.lines, self.column = 0, 0  # before `text`
        self.whole = False

    def more(self) -> None:
        """Drops what was decoded and reads on."""
        lines = self.text.count("\n", 0, self.at)
        self.column = (
            self.at - self.text.rfind("\n", 0, self.at) - 1 + (0 if lines else self.column)
        )
        self.lines += lines
        try:
            chunk = self.file.read(CHUNK)
        except UnicodeDecodeError as error:
            found = f"the byte 0x{error.object[error.start]:02x}"
            raise InputError(f"{self.path}, encoding: found {found}; expected UTF-8.") from error
        self.text, self.at, self.whole = self.text[self.at :] + chunk, 0, not chunk

    def peek(self) -> str:
        """The next character that is not white space, "" at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text) or self.whole:
                return self.text[self.at : self.at + 1]
            self.more()

    def skip(self, character: str) -> bool:
        """Whether this character comes next; if so it is passed over."""
        if self.peek() != character:
            return False
        self.at += 1
        return True

    def value(self) -> object:
        """The next value."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or (
                    error.pos > len(self.text) - NEAR_END
                )
                if self.whole or not cut or len(self.text) - self.at > LONGEST:
                    self.fail(error.msg, error.pos)
            except (ValueError, RecursionError) as error:  # a number or a nesting without bounds
                raise InputError(f"{self.path}: JSON that cannot be read ({error}).") from error
            else:
                if end < len(self.text) or self.whole:  # else a number may go on
                    self.at = end
                    return value
            self.more()

    def to_list(self) -> bool:
        """Moves into the first list of objects under one of `LISTS`; whether there is one."""
        if not self.skip("{"):
            return False
        while self.peek() == '"':
            key = self.value()
            if not self.skip(":"):
                self.fail("Expecting ':' delimiter", self.at)
            if key in LISTS and self.skip("["):
                return True
            self.value()
            if not self.skip(","):
                break
        return False

    def fail(self, message: str, at: int) -> None:
        """Refuses the file, with the place.

        Raises:
            InputError: Always.
        """
        lines = self.text.count("\n", 0, at)
        column = at - self.text.rfind("\n", 0, at) + (0 if lines else self.column)
        line = self.lines + lines + 1
        place = f"line {line}, column {column}" if line > 1 else f"column {column}"
        raise InputError(
            f"{self.path}, row: found invalid JSON at {place} ({message}); expected one JSON "
            "object a line, or one JSON list."
        )


def decode(data: bytes, place: str, decoder: json.JSONDecoder = _DECODER) -> object:
    """Decode UTF-8 JSON, with or without byte-order mark, to its value or to a `Problem`."""
    try:
        return decoder.decode(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        found = f"the byte 0x{data[error.start]:02x} at position {error.start}"
        return Problem(place, "encoding", found, "UTF-8")
    except json.JSONDecodeError as error:
        found = f"invalid JSON at column {error.colno} ({error.msg})"
        return Problem(place, "row", found, "one JSON object a line, or one JSON list")
    except (ValueError, RecursionError) as error:  # a number or a nesting without bounds
        return Problem(place, "row", f"JSON that cannot be read ({error})", "a plain JSON object")


def read_json(path: Path) -> Any:
    """A whole JSON file of a published data set.

    Raises:
        InputError: There is none, or it cannot be decoded.
    """
    if not path.is_file():
        raise InputError(f"no file {path}; expected JSON.")
    decoded = decode(path.read_bytes(), str(path), json.JSONDecoder())  # some repeat a key
    if isinstance(decoded, Problem):
        raise InputError(f"{decoded}.")
    return decoded
