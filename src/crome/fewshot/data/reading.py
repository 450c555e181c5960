"""Folders with a folder per class, and tables of pictures and labels."""

import csv
import re
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from crome.errors import InputError
from crome.fewshot.data.sets import (
    DEFAULT_TEMPLATES,
    ImageSet,
    Item,
    clean_label,
    label_key,
)
from crome.fewshot.pictures import SUFFIXES, is_hidden, list_pictures
from crome.fewshot.text import printable

SPLIT = re.compile(
    r"((?P<train>train(ing)?)|(?P<val>val(id(ation)?)?|dev)|(?P<test>test(ing)?))"
    r"([ _-]?(set|split|data|images))?"
)
DELIMITERS = ",;\t"


class Labelled(NamedTuple):
    """A picture as it is listed: its file, its label as written, and its part."""

    path: Path
    label: str
    part: str


def read_images(source: Path, templates: Sequence[str] = DEFAULT_TEMPLATES) -> ImageSet:
    """Read a folder with one folder per class, or a table.

    A folder may have ``train``, ``val`` and ``test`` folders above the class folders. A table, CSV
    with commas, semicolons or tabs, has the columns ``image`` (relative to the file) and ``label``,
    and optionally ``split``. Hidden files and folders are left out. Labels that look the same are
    the same: spaces at the ends, Unicode forms and ``1`` beside ``1.0`` make no difference. A
    picture that is listed twice with one label counts once.

    Args:
        source: The folder or file.
        templates: Prompts for the class names.

    Raises:
        InputError: Nothing there, no classes, an empty class, or a malformed row.
    """
    if source.is_dir():
        rows, name = _folder_rows(source), printable(source.resolve().name)
    elif source.is_file():
        rows, name = _table_rows(source), printable(source.stem)
    else:
        raise InputError(f"no folder or CSV file at {source}.")
    names: dict[str, str] = {}
    for row in rows:
        names.setdefault(label_key(row.label), clean_label(row.label))
    if len(names) < 2:
        raise InputError(
            f"{source} holds {len(names)} class(es); expected at least 2: one folder per class "
            "with its images, or a CSV file with the columns image,label."
        )
    _warn_of_case(source, list(names.values()))
    keys = sorted(names, key=lambda key: names[key])
    index = {key: i for i, key in enumerate(keys)}
    parts: dict[str, dict[Item, None]] = defaultdict(dict)
    for row in rows:
        parts[row.part][Item(row.path, index[label_key(row.label)])] = None
    classes = [names[key] for key in keys]
    train, val, test = (list(parts[part]) for part in ("train", "val", "test"))
    return ImageSet(name, classes, train, val, test, templates)


def _folder_rows(root: Path) -> list[Labelled]:
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not is_hidden(p))
    parts = {folder: part for folder in folders if (part := split_part(folder.name))}
    if parts and len(parts) == len(folders):
        return [row._replace(part=parts[f]) for f in folders for row in _folder_rows(f)]
    if any(child.is_dir() for folder in parts for child in folder.iterdir()):
        other = next(folder for folder in folders if folder not in parts)
        raise InputError(
            f"{root} has the parts {', '.join(p.name for p in parts)} and beside them the folder "
            f"{other.name}, which is neither train, val nor test; move it out."
        )
    rows, left_out = [], []
    for folder in folders:
        images, others = list_pictures(folder)
        left_out += others
        if not images:
            raise InputError(
                f"the class folder {folder} has no images; add some or remove the folder. Image "
                f"files end in {', '.join(sorted(SUFFIXES))}."
            )
        rows += [Labelled(path, folder.name, "train") for path in images]
    warn_of_others(root, left_out)
    loose = [p for p in sorted(root.iterdir()) if p.suffix.lower() in SUFFIXES and p.is_file()]
    if loose and folders:
        warnings.warn(
            f"{len(loose)} picture(s) are in {root} itself, in no class folder, and are left out, "
            f"such as {loose[0].name}",
            stacklevel=2,
        )
    return rows


def split_part(name: str) -> str | None:
    """The part (train, val or test) that a folder or cell names, as in ``Test`` or ``dev_set``."""
    found = SPLIT.fullmatch(name.strip().lower())
    return next(part for part, text in found.groupdict().items() if text) if found else None


def warn_of_others(root: Path, others: Sequence[Path]) -> None:
    """Say which files among pictures are none that can be read."""
    if others:
        warnings.warn(
            f"{len(others)} file(s) under {root} are no pictures that can be read and are left "
            f"out, such as {others[0]}",
            stacklevel=2,
        )


def _warn_of_case(source: Path, names: Sequence[str]) -> None:
    known: dict[str, str] = {}
    for name in names:
        first = known.setdefault(name.casefold(), name)
        if first != name:
            warnings.warn(
                f"{source} has the classes {first!r} and {name!r}, which differ in case only; "
                "they are taken for two classes",
                stacklevel=3,
            )


def _table_rows(file: Path) -> list[Labelled]:
    try:
        return _read_table(file)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{file} is not a CSV file in UTF-8 ({error}); expected one with the columns "
            "image,label, or a folder with one folder per class."
        ) from error


def _read_table(file: Path) -> list[Labelled]:
    with file.open(newline="", encoding="utf-8-sig") as stream:
        skipped, start, first = 0, 0, stream.readline()
        while first and not first.strip():
            skipped, start, first = skipped + 1, stream.tell(), stream.readline()
        tries = [(delimiter, _columns(first, delimiter)) for delimiter in DELIMITERS]
        delimiter, columns = max(tries, key=lambda each: len({"image", "label"} & set(each[1])))
        if [columns.count(name) for name in ("image", "label")] != [1, 1] or (
            columns.count("split") > 1
        ):
            raise InputError(
                f"{file} has the columns {columns}; expected image and label, "
                "and optionally split, once each."
            )
        stream.seek(start)
        reader = csv.DictReader(stream, delimiter=delimiter, skipinitialspace=True)
        reader.fieldnames = columns
        next(reader)
        return [
            _check_row(file, skipped + reader.line_num, row)
            for row in reader
            if any(isinstance(cell, str) and cell.strip() for cell in row.values())
        ]


def _columns(line: str, delimiter: str) -> list[str]:
    cells = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
    return [clean_label(cell).lower() for cell in cells]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or has a zero in it
        return False


def _check_row(file: Path, line: int, row: dict[str, str]) -> Labelled:
    image, label = (row[name] or "" for name in ("image", "label"))
    split = row.get("split") or ""
    part = split_part(split) if split.strip() else "train"
    if not image.strip() or not clean_label(label) or part is None:
        raise InputError(
            f"{file}, line {line}: image={image!r}, label={label!r}, split={split!r}; expected a "
            "path, a label and train, val or test."
        )
    if None in row:
        raise InputError(
            f"{file}, line {line} has more cells than the header; quote cells with commas."
        )
    for name in (image, image.strip()):
        path = file.parent / name
        if _is_file(path):
            return Labelled(path, label, part)
    raise InputError(f"{file}, line {line}: no image {file.parent / image}.")
