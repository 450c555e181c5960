"""Entries of data files, read one after the other, and what was wrong with them.

A file is JSON lines, one JSON list, or Parquet; a folder is one of `Dataset.save_to_disk`. None is
ever in memory as a whole: a list of several gigabytes costs as much as its longest entry.
"""

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from crome.errors import InputError

CHUNK = 2**20  # characters of a list read at a time
LONGEST = 2**26  # characters of one entry; more is a file that is no list of rows
TOGETHER = 100  # rows of Arrow decoded at a time: each may hold a picture
NEAR_END = 16  # an error so near the end of what was read may be the cut, not the file
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Problem:
    """What is wrong with one field of one row."""

    place: str
    field: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.place}, {self.field}: found {self.found}; expected {self.expected}"


@dataclass
class Problems:
    """The first problems of a file whole, and all of them counted.

    Attributes:
        keep: How many to keep whole: a file may be wrong in millions of places.
        first: Those.
        reasons: How many there are of each kind.
    """

    keep: int = 50
    first: list[Problem] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, problem: Problem) -> None:
        """Counts a problem, and keeps it if it is among the first."""
        place = re.sub(r"\[\d+\]", "", problem.field)
        self.reasons[f"{place} is not {problem.expected}"] += 1
        if len(self.first) < self.keep:
            self.first.append(problem)

    def __len__(self) -> int:
        return self.reasons.total()

    def told(self) -> str:
        """The kinds with their numbers, the most frequent first."""
        return "; ".join(f"{number:,} × {reason}" for reason, number in self.reasons.most_common())


def entries(path: Path) -> Iterator[tuple[str, object]]:
    """Yield (place, decoded entry) of a file; a line that cannot be decoded comes as a `Problem`.

    Raises:
        InputError: There is no such file, or it is of another form, or a JSON list or Parquet file
            that cannot be decoded.
    """
    if path.is_dir():
        yield from saved_entries(path)
        return
    if not path.is_file():
        raise InputError(f"no data file {path}; expected JSON lines, a JSON list or Parquet.")
    with path.open("rb") as file:
        head = file.read(1024)
    if head.startswith(b"PAR1"):
        yield from parquet_entries(path)
    elif head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        yield from list_entries(path)
    elif found := other_form(path, head):
        raise InputError(f"{path} is {found}.")
    else:
        yield from line_entries(path)


def other_form(path: Path, head: bytes) -> str | None:
    """What a file is that has no lines of JSON, and how to make some of it; None if it may have."""
    if path.suffix.lower() in (".csv", ".tsv"):
        separator = ", sep='\\t'" if path.suffix.lower() == ".tsv" else ""
        return (
            f"a table; expected JSON lines: pandas.read_csv('{path.name}', dtype=str{separator})"
            f".to_json('{path.stem}.jsonl', orient='records', lines=True)"
        )
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "text in UTF-16; save it as UTF-8"
    if head.startswith(b"\x1f\x8b"):
        return "compressed; unpack it with gunzip"
    if b"\0" in head:
        return f"no text (it starts with {head[:8]!r}); expected JSON lines, a JSON list or Parquet"
    if head.removeprefix(b"\xef\xbb\xbf").strip().partition(b"\n")[0].strip() == b"{":
        return (
            "JSON objects over several lines; expected one a line (`jq -c .` writes them so), or "
            "one JSON list"
        )
    return None


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
        text.skip("[")
        number = 0
        while not text.skip("]"):
            if number and not text.skip(","):
                text.fail("Expecting ',' delimiter", text.at)
            number += 1
            yield f"row {number}", text.value()
        if text.peek():
            text.fail("Extra data", text.at)


class ListText:
    """The text of a JSON list, of which only what is being decoded is in memory.

    Args:
        path: Of the file, for messages.
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


def parquet_entries(path: Path) -> Iterator[tuple[str, object]]:
    """Yield (place, entry) of a Parquet file whose columns are named as the fields of rows."""
    import pyarrow
    import pyarrow.parquet

    try:
        yield from arrow_entries(pyarrow.parquet.ParquetFile(path).iter_batches(TOGETHER))
    except pyarrow.ArrowException as error:
        told = str(error).split(". ")[0].rstrip(".")
        raise InputError(f"{path} cannot be read as Parquet: {told}.") from error


def saved_entries(folder: Path) -> Iterator[tuple[str, object]]:
    """Yield (place, entry) of a folder that `datasets.Dataset.save_to_disk` wrote."""
    import datasets

    if (folder / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(str(p.parent) for p in folder.glob("*/state.json")))
        raise InputError(f"{folder} holds several splits; name one of {splits}.")
    if not (folder / "state.json").is_file():
        raise InputError(
            f"{folder} is a folder; expected JSON lines, a JSON list or Parquet, or a folder that "
            "Dataset.save_to_disk wrote."
        )
    try:
        saved = datasets.load_from_disk(folder).with_format("arrow")
        yield from arrow_entries(saved.iter(TOGETHER))
    except (OSError, ValueError, KeyError) as error:
        told = " ".join(str(error).split()).rstrip(".")
        raise InputError(f"{folder} cannot be read as a saved dataset: {told}.") from error


def arrow_entries(batches: Iterable[Any]) -> Iterator[tuple[str, object]]:
    """Yield (place, entry) of Arrow batches; an entry has no key where its column has no value."""
    number = 0
    for batch in batches:
        for entry in batch.to_pylist():
            number += 1
            yield f"row {number}", {k: v for k, v in entry.items() if v is not None}


def decode(data: bytes, place: str) -> object:
    """Decode UTF-8 JSON, with or without byte-order mark, to its value or to a `Problem`."""
    try:
        return json.loads(data.decode("utf-8-sig"))
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
    decoded = decode(path.read_bytes(), str(path))
    if isinstance(decoded, Problem):
        raise InputError(f"{decoded}.")
    return decoded


def show(value: object) -> str:
    """A value as found in a file, short enough for a message."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def unknown_keys(given: dict[Any, Any], known: Iterable[str]) -> list[str]:
    """A line about each key that is none of the known ones."""
    return [
        f"unknown key {key!r}{instead(str(key), known)}" for key in given if key not in set(known)
    ]


def instead(key: str, known: Iterable[str]) -> str:
    """What a misspelt key may have meant, and what there is."""
    names = list(known)
    near = difflib.get_close_matches(key, names, 1)
    meant = f", meant {near[0]!r}?" if near else ""
    return f"{meant} (there are {', '.join(names)})"
