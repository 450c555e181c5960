"""Reading the files that benchmarks are published in, into plain rows."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crome.errors import InputError, JobError

Row = dict[str, Any]


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


def folder_of(source: str) -> Path:
    """The folder of a source: itself, or the one its file is in."""
    path, _ = _split_off(source)
    return path if path.is_dir() else path.parent


def parse_json(text: bytes, where: str) -> Any:
    """Parses JSON and names the place when it is none.

    Raises:
        InputError: It is not JSON, as after an interrupted run.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        shown = text[:60].decode(errors="replace")
        remedy = (
            "A file of one object a line is named .jsonl."
            if "Extra data" in str(error)
            else "If it is the last line of an interrupted run, run the same command again to "
            "resume it."
        )
        raise InputError(f"{where}: not JSON ({error}): {shown!r}. {remedy}") from None


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
        InputError: There is none.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file.")
    return path.read_text(encoding="utf-8")


def unique(records: list[Row], source: str) -> list[Row]:
    """Records by "id", exact repetitions dropped.

    Raises:
        InputError: There are none, or two records share an id and differ.
    """
    seen: dict[str, Row] = {}
    for record in records:
        if seen.setdefault(record["id"], record) != record:
            raise InputError(f"{source}: two different records have the id {record['id']!r}.")
    if not seen:
        raise InputError(f"{source}: it holds no records.")
    return list(seen.values())


def need(row: Row, fields: tuple[str, ...], source: str) -> None:
    """Checks that a row has the fields its layout promises.

    Raises:
        InputError: One is absent.
    """
    absent = [name for name in fields if name not in row]
    if absent:
        raise InputError(
            f"{source}: a row lacks {', '.join(absent)}; it has {', '.join(map(str, row))}."
        )


def images_in(*cells: Any) -> tuple[str | bytes, ...]:
    """The images of a row: of each cell the path, or the encoded file that parquet rows carry."""
    images: list[str | bytes] = []
    for cell in cells:
        if isinstance(cell, list):
            images += images_in(*cell)
        elif isinstance(cell, dict):
            images += images_in(cell.get("bytes") or cell.get("path"))
        elif isinstance(cell, str | bytes) and cell:
            images.append(cell)
    return tuple(images)


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
    match path.suffix:
        case ".json":
            return _json(path)
        case ".jsonl":
            lines = enumerate(path.read_bytes().split(b"\n"), start=1)
            return [parse_json(line, f"{path}:{n}") for n, line in lines if line.strip()]
        case ".parquet":
            return _parquet(path)
        case ".tsv" | ".csv":
            return _table(path, "\t" if path.suffix == ".tsv" else ",")
    raise InputError(f"{path}: expected .json, .jsonl, .tsv, .csv or .parquet.")


def _json(path: Path) -> list[Row]:
    content = parse_json(path.read_bytes(), str(path))
    if isinstance(content, dict):
        for key in ("questions", "annotations"):  # SEED-Bench, VQAv2: rows beside a header
            if isinstance(content.get(key), list):
                return content[key]
        return [{"id": key, **_object(value, path)} for key, value in content.items()]
    return [_object(row, path) for row in content]


def _object(value: Any, path: Path) -> Row:
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected an object per record, found {str(value)[:40]!r}.")
    return value


def _table(path: Path, delimiter: str) -> list[Row]:
    csv.field_size_limit(2**31 - 1)  # benchmark tables carry images as base64 in a cell
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def _parquet(path: Path) -> list[Row]:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


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
