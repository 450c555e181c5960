"""Reading the files that benchmarks are published in, into plain rows."""

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from crome.errors import InputError, JobError

Row = dict[str, Any]
_SURROGATE = re.compile("[\ud800-\udfff]")
# What careless access to a row of an unknown layout raises.
LAYOUT_ERRORS = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, SyntaxError, csv.Error,
)  # fmt: skip


def read_rows(source: str) -> list[Row]:
    """Reads rows from wherever a benchmark keeps them.

    Args:
        source: A .json, .jsonl, .tsv, .csv or .parquet file; a folder of parquet files, such as a
            data set cloned from the hub, or one written by `datasets`' `save_to_disk`, with
            `:split` behind it where it holds several; or a hub id `owner/name[:config]:split`.

    Returns:
        One dict per row; images of parquet files stay encoded ({"bytes", "path"}). A JSON object
        of objects becomes rows with its keys under "id".

    Raises:
        InputError: There is nothing to read there, or it cannot be read.
        JobError: The hub could not be reached.
    """
    path, split = _split_off(source)
    if path.is_dir():
        return _folder(path, split)
    if path.is_file():
        return _file(path)
    if source.count("/") == 1 and ":" in source:
        return _hub(source)
    raise InputError(
        f"{source}: no such file or folder. A hub data set is named owner/name[:config]:split."
    )


def records_from(
    source: str,
    make: Callable[[Row, int], Row | None],
    rows: Callable[[str], Iterable[Row]] = read_rows,
) -> list[Row]:
    """Makes records of rows, each with a unique "id"; exact repetitions are dropped.

    Args:
        source: File, folder or hub id of the rows.
        make: From a row and its number, counted from 0, to a record; None leaves the row out.
        rows: Reads the rows of the source.

    Raises:
        InputError: There are no rows, one is no record of the benchmark, or two records share an
            id and differ.
    """
    records: dict[str, Row] = {}
    number = 0
    for number, row in enumerate(rows(source), start=1):
        where = f"{source}, record {number}"
        try:
            record = make(row, number - 1)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        except KeyError as error:
            raise InputError(
                f"{where}: it lacks {error.args[0]}; it has {', '.join(map(str, row))}."
            ) from None
        except LAYOUT_ERRORS as error:
            raise InputError(
                f"{where}: not in a layout that is known here ({type(error).__name__}: {error})."
            ) from error
        if record is not None and records.setdefault(record["id"], record) != record:
            raise InputError(f"{source}: two different records have the id {record['id']!r}.")
    if not number:
        raise InputError(f"{source}: it holds no records.")
    return list(records.values())


def folder_of(source: str) -> Path:
    """The folder of a source: itself, or the one its file is in."""
    path, _ = _split_off(source)
    return path if path.is_dir() else path.parent


def parse_json(text: bytes, where: str, *, cut: bool = False) -> Any:
    """Parses JSON and names the place when it is none.

    Args:
        text: What should be JSON.
        where: The file and the line.
        cut: Whether it is the end of a file of lines, without its line break.

    Raises:
        InputError: It is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        start = text[:60].decode(errors="replace")
        remedy = ""
        if "Extra data" in str(error):
            remedy = " A file of one object a line is named .jsonl."
        elif cut:
            remedy = (
                " It is the last line and has no line break, as after an interrupted run: the same "
                "command again resumes it."
            )
        raise InputError(f"{where}: not JSON ({error}): {start!r}.{remedy}") from None


def parse_lines(path: Path) -> list[tuple[str, Any]]:
    """(place, value) of each line of a JSON-lines file; empty lines are passed over.

    Raises:
        InputError: A line is not JSON.
    """
    lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return [
        (f"{path}:{number}", parse_json(line, f"{path}:{number}", cut=number == len(lines)))
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def without_surrogates(value: Any) -> Any:
    """The same JSON value with U+FFFD for each half of a surrogate pair, which no file can hold."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [without_surrogates(element) for element in value]
    if isinstance(value, dict):
        return {without_surrogates(k): without_surrogates(v) for k, v in value.items()}
    return value


def fingerprint(text: str) -> str:
    """A short digest of a text."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def json_object(path: str | Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        InputError: The file is absent or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file.")
    content = parse_json(path.read_bytes(), str(path))
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(content).__name__}.")
    return content


def text_file(path: str | Path) -> str:
    """Reads a text file.

    Raises:
        InputError: There is none, or it is not UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error}).") from None


def need(row: Row, fields: tuple[str, ...], source: str = "") -> None:
    """Checks that a row has the fields its layout promises.

    Raises:
        InputError: One is absent.
    """
    absent = [name for name in fields if name not in row]
    if absent:
        raise InputError(
            f"{source + ': ' if source else ''}a row lacks {', '.join(absent)}; it has "
            f"{', '.join(map(str, row))}."
        )


def _split_off(source: str) -> tuple[Path, str | None]:
    """`folder:split` → both; anything else is a path without a split."""
    head, _, split = source.rpartition(":")
    if head and Path(head).is_dir() and not Path(source).exists():
        return Path(head), split
    return Path(source), None


def _folder(path: Path, split: str | None) -> list[Row]:
    saved = path / "dataset_dict.json"  # several splits, each in a folder of its name
    if saved.exists():
        path = path / _one_split(path, json_object(saved).get("splits", []), split)
    if (path / "dataset_info.json").exists():
        import datasets

        return _encoded(datasets.load_from_disk(str(path)))
    files: dict[str, list[Path]] = {}
    for file in sorted(path.rglob("*.parquet")):
        files.setdefault(_split_of(file), []).append(file)
    if not files:
        raise InputError(f"{path}: the folder holds no parquet files.")
    return [row for file in files[_one_split(path, list(files), split)] for row in _parquet(file)]


def _split_of(file: Path) -> str:
    """The split of a parquet file as the hub names them: `test-00000-of-00002`, `test/0000`."""
    if found := re.match(r"(.+)-\d+-of-\d+", file.stem):
        return found[1]
    return file.parent.name if file.stem.isdigit() else file.stem


def _one_split(path: Path, splits: Sequence[str], wanted: str | None) -> str:
    if wanted is None and len(splits) == 1:
        return splits[0]
    if wanted is None or wanted not in splits:
        raise InputError(
            f"{path} holds {', '.join(splits) or 'no split'}: name one behind it, as {path}:"
            f"{splits[0] if splits else 'test'}."
        )
    return wanted


def _file(path: Path) -> list[Row]:
    match path.suffix.lower():
        case ".json":
            return _json(path)
        case ".jsonl":
            return [_object(value, where) for where, value in parse_lines(path)]
        case ".parquet":
            return _parquet(path)
        case ".tsv" | ".csv":
            return _table(path, "\t" if path.suffix.lower() == ".tsv" else ",")
        case ".xlsx":
            return _sheet(path)
    raise InputError(f"{path}: expected .json, .jsonl, .tsv, .csv, .xlsx or .parquet.")


def _json(path: Path) -> list[Row]:
    text = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if _holds_lines(text):
        return [_object(value, where) for where, value in parse_lines(path)]
    content = parse_json(text, str(path))
    if isinstance(content, dict):
        for key in ("questions", "annotations", "data"):  # rows beside a header
            if isinstance(content.get(key), list):
                return [_object(row, str(path)) for row in content[key]]
        return [
            _object({"id": key, **_object(v, str(path))}, str(path)) for key, v in content.items()
        ]
    if not isinstance(content, list):
        raise InputError(f"{path}: expected a list or an object, found {str(content)[:40]!r}.")
    return [_object(row, str(path)) for row in content]


def _holds_lines(text: bytes) -> bool:
    """Whether a file named .json has an object a line, as some releases do."""
    first, line_break, rest = text.partition(b"\n")
    if not line_break or not rest.lstrip().startswith(b"{"):
        return False
    try:
        return isinstance(json.loads(first), dict)
    except ValueError:
        return False


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object per record, found {str(value)[:40]!r}.")
    return dict(without_surrogates(value))


def _table(path: Path, delimiter: str) -> list[Row]:
    csv.field_size_limit(2**31 - 1)  # benchmark tables carry images as base64 in a cell
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        rows = []
        try:
            for row in reader:
                if None in row:
                    raise InputError(
                        f"{path}:{reader.line_num}: {len(row) - 1 + len(row[None])} cells under "
                        f"{len(row) - 1} columns ({', '.join(reader.fieldnames or ())}); a cell "
                        "with the separator in it is written in quotes."
                    )
                rows.append(row)
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(
                f"{path}: line {reader.line_num + 1} cannot be read as UTF-8 text: {error}."
            ) from None
    return rows


def _sheet(path: Path) -> list[Row]:
    """The first sheet of a workbook, whose first row names the columns."""
    try:
        from openpyxl import load_workbook
    except ImportError as error:
        raise InputError(
            f"{path}: reading spreadsheets needs openpyxl (pip install 'crome[sheets]'); or save "
            "it as .csv."
        ) from error
    try:
        book = load_workbook(path, read_only=True, data_only=True)
    except Exception as error:  # whatever a broken archive makes the library trip over
        raise InputError(f"{path}: not a workbook that can be read ({error}).") from None
    lines = book.worksheets[0].iter_rows(values_only=True)
    header = next(lines, ())
    rows = [
        {str(name): cell for name, cell in zip(header, line, strict=False) if name is not None}
        for line in lines
    ]
    return [row for row in rows if any(cell is not None for cell in row.values())]


def _parquet(path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: not a Parquet file that can be read ({error}).") from None


def _hub(source: str) -> list[Row]:
    import datasets

    name, *config, split = source.split(":")
    try:
        return _encoded(datasets.load_dataset(name, *config, split=split))
    except (OSError, ValueError) as error:
        raise JobError(f"{source}: could not be loaded from the hub: {error}") from error


def _encoded(dataset: Any) -> list[Row]:
    import datasets

    for name, feature in dataset.features.items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
    return list(dataset)
