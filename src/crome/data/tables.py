"""Entries of tables: CSV, Parquet, saved datasets and data sets of the hub."""

import csv
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from crome.data.problems import Problem, show
from crome.errors import InputError, JobError

TABLES = (".csv", ".tsv")
FILES = (*TABLES, ".json", ".jsonl", ".parquet", ".yaml", ".yml", ".txt", ".tar", ".arrow")
"""Endings of data files: a name with one is no hub data set."""

TOGETHER = 100  # rows of Arrow decoded at a time: each may hold a picture
LONGEST = 2**26  # characters of one cell, as of one entry of JSON
SEPARATORS = ",\t;|"
HUB = re.compile(
    r"(?P<id>[\w][\w.-]*/[\w][\w.-]*)(?::(?P<config>[\w.-]+))??(?::(?P<split>[\w.-]+))?"
)


def csv_entries(path: Path) -> Iterator[tuple[str, object]]:
    """Yield (place, entry) of a table of text with a header; an empty cell is an absent key.

    A cell that is a list of texts or of objects in JSON is read so: choices, several pictures, a
    conversation.

    Raises:
        InputError: It is no UTF-8, has a column twice, or quotes that do not close.
    """
    csv.field_size_limit(LONGEST)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=separator(path, file), strict=True)
            columns = reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            if twice := [name for name in columns if columns.count(name) > 1]:
                raise InputError(f"{path} has the column {show(twice[0])} twice; rename one.")
            for cells in reader:
                place = f"line {reader.line_num}"
                if None in cells or None in cells.values():
                    found = "more cells" if None in cells else "fewer cells"
                    expected = f"{len(columns)} cells, as the header has"
                    yield place, Problem(place, "row", found, expected)
                else:
                    yield place, {k: cell(v) for k, v in cells.items() if v.strip()}
    except UnicodeDecodeError as error:
        found = f"the byte 0x{error.object[error.start]:02x}"
        raise InputError(f"{path}, encoding: found {found}; expected UTF-8.") from error
    except csv.Error as error:
        raise InputError(f"{path} cannot be read as a table: {error}.") from error


def separator(path: Path, file: TextIO) -> str:
    """What stands between the cells of a table, whose header is read next afterwards.

    Spreadsheets may say it in a line before the header (`sep=;`).
    """
    start, header = file.tell(), file.readline()
    if len(header.rstrip("\r\n")) == 5 and header.startswith("sep="):
        return header[4]
    file.seek(start)
    if path.suffix.lower() != ".csv":
        return "\t"
    return max(SEPARATORS, key=lambda mark: cells_of(header, mark))


def cells_of(header: str, mark: str) -> int:
    """How many cells a header has if a mark separates them; none where its quotes make no sense."""
    try:
        return len(next(csv.reader([header], delimiter=mark, strict=True), []))
    except csv.Error:
        return 0


def cell(text: str) -> Any:
    """What a cell says: a list of texts or of objects in JSON, else its text.

    `[10, 20, 30, 40]` and `{"total": 12}` are answers of rows, and texts.
    """
    if text.lstrip().startswith("["):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return text  # that begins so
        if value and all(isinstance(one, str | dict | list) for one in value):
            return value
    return text


def parquet_entries(path: Path) -> Iterator[tuple[str, object]]:
    """Yield (place, entry) of a Parquet file whose columns are named as the fields of rows.

    Raises:
        InputError: It is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        yield from arrow_entries(pyarrow.parquet.ParquetFile(path).iter_batches(TOGETHER))
    # A damaged page makes a decoder fail with any of these.
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
        raise InputError(f"{path} cannot be read as Parquet: {reason}.") from error


def saved_entries(folder: Path) -> Iterator[tuple[str, object]]:
    """Yield (place, entry) of a folder that `datasets.Dataset.save_to_disk` wrote.

    Raises:
        InputError: It is no such folder, or damaged.
    """
    import datasets

    if (folder / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(str(p.parent) for p in folder.glob("*/state.json")))
        raise InputError(f"{folder} holds several splits; name one of {splits}.")
    if not (folder / "state.json").is_file():
        raise InputError(
            f"{folder} is a folder; expected JSON lines, a JSON list, CSV or Parquet, or a folder "
            "that Dataset.save_to_disk wrote."
        )
    try:
        saved = datasets.load_from_disk(folder)
        yield from dataset_entries(saved)
    # The library raises whatever a damaged file makes it trip over (ArrowInvalid is a ValueError).
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(f"{folder} cannot be read as a saved dataset: {reason}.") from error


def hub_name(path: Path) -> re.Match[str] | None:
    """The parts of the name of a hub data set; None for what is rather a file that is absent.

    Names are `org/name`, `org/name:split` and `org/name:config:split`.
    """
    if path.suffix.lower() in FILES or path.parent.is_dir():
        return None
    return HUB.fullmatch(path.as_posix())


def hub_entries(name: re.Match[str]) -> Iterator[tuple[str, object]]:
    """Yield (place, entry) of a data set of the Hugging Face hub, by default of its split train.

    It is downloaded once into the library's own cache.

    Raises:
        InputError: There is no such data set, configuration or split.
        JobError: The hub cannot be reached.
    """
    import datasets

    called = name.string
    try:
        found = datasets.load_dataset(name["id"], name["config"], split=name["split"] or "train")
    except (ConnectionError, TimeoutError) as error:
        raise JobError(
            f"there is no data file {called}, and the hub, where it may be a data set, cannot be "
            f"reached: {brief(error)}."
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(
            f"no data file {called}, and it cannot be read as a hub data set: {brief(error)}."
        ) from error
    yield from dataset_entries(found)


def dataset_entries(dataset: Any) -> Iterator[tuple[str, object]]:
    """Yield (place, entry) of a `datasets.Dataset`, with pictures as their bytes."""
    yield from arrow_entries(dataset.with_format("arrow").iter(TOGETHER))


def arrow_entries(batches: Iterable[Any]) -> Iterator[tuple[str, object]]:
    """Yield (place, entry) of Arrow batches; an entry has no key where its column has no value."""
    number = 0
    for batch in batches:
        for entry in batch.to_pylist():
            number += 1
            yield f"row {number}", {k: v for k, v in entry.items() if v is not None}


def brief(error: Exception) -> str:
    """The first line of an error, short enough for a message."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return show(lines[0].rstrip("."))[1:-1]
