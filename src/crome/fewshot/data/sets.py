"""Image sets: a folder per class, or a CSV file; shots drawn from them; checks against leaks.

CoOp's layouts of the published benchmark sets are in ``coop.py``.
"""

import csv
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crome.errors import InputError, not_negative, positive
from crome.fewshot.encoders import content_hash

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
DEFAULT_TEMPLATES = ("a photo of a {}.",)


@dataclass(frozen=True)
class Item:
    """One labelled image: its file and the index of its class."""

    path: Path
    label: int


@dataclass
class ImageSet:
    """Labelled images in up to three parts.

    Attributes:
        name: What tables call it.
        classes: Name of each class by index; names may repeat, indices tell classes apart.
        train: Images from which shots are drawn.
        val: Official validation images, if any.
        test: Official test images, if any; else whatever is not drawn is tested on.
        templates: Prompts for the class names.
        ids: A stable id per class where names repeat, such as WordNet ids.
    """

    name: str
    classes: list[str]
    train: list[Item]
    val: list[Item] = field(default_factory=list)
    test: list[Item] = field(default_factory=list)
    templates: Sequence[str] = DEFAULT_TEMPLATES
    ids: list[str] = field(default_factory=list)


@dataclass
class Draw:
    """K shots per class, the validation images and the test images of one run.

    Attributes:
        train: Shots.
        val: At most 4 per class, or the whole validation part.
        test: Official test part, or the images left over.
    """

    train: list[Item]
    val: list[Item]
    test: list[Item]

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that name the drawn files."""
        parts = [[item.path.name, item.label] for item in (*self.train, *self.val, *self.test)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]


def read_images(source: Path, templates: Sequence[str] = DEFAULT_TEMPLATES) -> ImageSet:
    """Read a folder with one folder per class, or a CSV file.

    A folder may have ``train``, ``val`` and ``test`` folders above the class folders. A CSV file
    has the columns ``image`` (relative to the file) and ``label``, and optionally ``split``.
    Hidden files and folders are left out.

    Args:
        source: The folder or file.
        templates: Prompts for the class names.

    Raises:
        InputError: Nothing there, no classes, an empty class, or a malformed row.
    """
    if source.is_dir():
        rows = _folder_rows(source)
    elif source.is_file():
        rows = _csv_rows(source)
    else:
        raise InputError(f"no folder or CSV file at {source}.")
    classes = sorted({label for _, label, _ in rows})
    if len(classes) < 2:
        raise InputError(
            f"{source} holds {len(classes)} class(es); expected at least 2: one folder per class "
            "with its images, or a CSV file with the columns image,label."
        )
    index = {name: i for i, name in enumerate(classes)}
    parts: dict[str, list[Item]] = defaultdict(list)
    for path, label, split in rows:
        parts[split].append(Item(path, index[label]))
    return ImageSet(source.stem, classes, parts["train"], parts["val"], parts["test"], templates)


def _folder_rows(root: Path) -> list[tuple[Path, str, str]]:
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    parts = [folder for folder in folders if folder.name.lower() in SPLITS]
    if parts and len(parts) == len(folders):
        return [
            (path, label, SPLITS[folder.name.lower()])
            for folder in folders
            for path, label, _ in _folder_rows(folder)
        ]
    if any(child.is_dir() for folder in parts for child in folder.iterdir()):
        other = next(folder for folder in folders if folder not in parts)
        raise InputError(
            f"{root} has the parts {', '.join(p.name for p in parts)} and beside them the folder "
            f"{other.name}, which is neither train, val nor test; move it out."
        )
    rows = []
    for folder in folders:
        images = image_files(folder)
        if not images:
            raise InputError(
                f"the class folder {folder} has no images; add some or remove the folder. Image "
                f"files end in {', '.join(sorted(SUFFIXES))}."
            )
        rows += [(path, folder.name, "train") for path in images]
    return rows


def image_files(folder: Path) -> list[Path]:
    """Image files under a folder, sorted, without hidden ones such as ``._photo.jpg``."""
    files = []
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(where, name) for name in names if not name.startswith(".")]
    return sorted(file for file in files if file.suffix.lower() in SUFFIXES)


def _csv_rows(file: Path) -> list[tuple[Path, str, str]]:
    try:
        return _read_csv(file)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{file} is not a CSV file in UTF-8 ({error}); expected one with the columns "
            "image,label, or a folder with one folder per class."
        ) from error


def _read_csv(file: Path) -> list[tuple[Path, str, str]]:
    with file.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream, skipinitialspace=True)
        if not {"image", "label"} <= set(reader.fieldnames or ()):
            raise InputError(
                f"{file} has the columns {reader.fieldnames}; expected image and label, and "
                "optionally split."
            )
        rows = []
        for row in reader:
            line = reader.line_num
            split = (row.get("split") or "train").lower()
            if not row["image"] or not row["label"] or split not in SPLITS:
                raise InputError(
                    f"{file}, line {line}: image={row['image']!r}, label={row['label']!r}, "
                    f"split={split!r}; expected a path, a label and train, val or test."
                )
            path = file.parent / row["image"]
            if not path.is_file():
                raise InputError(f"{file}, line {line}: no image {path}.")
            rows.append((path, row["label"], SPLITS[split]))
    return rows


def draw_shots(
    images: ImageSet,
    shots: int,
    seed: int,
    *,
    val: str = "few",
    test_per_class: int | None = None,
    short: str = "warn",
) -> Draw:
    """Draw shots per class without replacement, and validation and test images beside them.

    Args:
        images: The set.
        shots: K.
        seed: Of the draw.
        val: ``few``: min(K, 4) images per class, from the validation part or else from the
            training images not drawn. ``full``: the whole validation part, the protocol of
            Tip-Adapter's and XMAdapter's tables. ``none``.
        test_per_class: Upper bound on test images per class, for sets without a test part.
        short: ``warn`` takes what a class has when it has fewer than K images; ``refuse`` raises.

    Returns:
        The draw. Without a test part, the images that were not drawn are the test images; a class
        with too few keeps at least one for the test while it can.

    Raises:
        InputError: A class has no image, or fewer than K with ``short="refuse"``, or
            ``val="full"`` and there is no validation part.
    """
    if shots < 1:
        raise InputError(f"shots={shots}; expected at least 1 image per class.")
    not_negative(seed=seed)
    positive(test_per_class=test_per_class)
    rng = np.random.default_rng(seed)
    pools = _by_class(images.train, len(images.classes), rng)
    missing = [images.classes[c] for c, pool in enumerate(pools) if not pool]
    if missing:
        raise InputError(f"no training image of {', '.join(map(repr, missing[:5]))}.")
    if short == "refuse":
        for c, pool in enumerate(pools):
            if len(pool) < shots:
                raise InputError(
                    f"class {images.classes[c]!r} has {len(pool)} training images, fewer than "
                    f"shots={shots}; add images or ask for fewer shots."
                )
    train, left = [], []
    for pool in pools:
        spare = 0 if images.test or len(pool) < 3 else 1 + (val == "few" and not images.val)
        take = min(shots, len(pool) - spare)
        train += pool[:take]
        left.append(pool[take:])
    if val == "full":
        if not images.val:
            raise InputError(f"val='full', and {images.name} has no validation part.")
        return Draw(train, list(images.val), list(images.test) or _flat(left, test_per_class))
    few = min(shots, 4) if val == "few" else 0
    if images.val:
        validation = [i for p in _by_class(images.val, len(pools), rng) for i in p[:few]]
    else:
        take_val = [min(few, max(0, len(rest) - (0 if images.test else 1))) for rest in left]
        validation = [i for rest, n in zip(left, take_val, strict=True) for i in rest[:n]]
        left = [rest[n:] for rest, n in zip(left, take_val, strict=True)]
    return Draw(train, validation, list(images.test) or _flat(left, test_per_class))


def find_leaks(draw: Draw) -> list[tuple[Path, Path]]:
    """Pairs (training file, validation file) and (either, test file) with the same bytes."""
    seen = {content_hash(item.path): item.path for item in draw.train}
    pairs = []
    for part in (draw.val, draw.test):
        hashed = [(content_hash(item.path), item.path) for item in part]
        pairs += [(seen[digest], path) for digest, path in hashed if digest in seen]
        seen |= dict(hashed)
    return pairs


def find_contradiction(items: Sequence[Item]) -> tuple[Path, Path] | None:
    """Two files with the same bytes and different labels, if there are any."""
    seen: dict[str, Item] = {}
    for item in items:
        first = seen.setdefault(content_hash(item.path), item)
        if first.label != item.label:
            return first.path, item.path
    return None


def write_draw(draw: Draw, images: ImageSet, file: Path) -> None:
    """Write a draw as JSON: parts of rows [path, label, class name]."""
    parts = {
        part: [[str(i.path), i.label, images.classes[i.label]] for i in getattr(draw, part)]
        for part in ("train", "val", "test")
    }
    file.write_text(json.dumps(parts, indent=1))


def read_draw(file: Path, images: ImageSet) -> Draw:
    """Read what ``write_draw`` wrote.

    Raises:
        InputError: The file is not such a draw, or of a set with other classes.
    """
    try:
        parts = json.loads(file.read_text())
        rows = {k: [(Path(p), int(c), n) for p, c, n in parts[k]] for k in ("train", "val", "test")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is not a draw: {error}.") from error
    known = dict(enumerate(images.classes))
    for path, label, name in (row for part in rows.values() for row in part):
        if known.get(label) != name:
            raise InputError(
                f"{file} has {path} as class {label}, {name!r}, which in {images.name} is "
                f"{known.get(label)!r}: the draw is of another set. Remove it, or name another."
            )
    return Draw(*([Item(path, label) for path, label, _ in part] for part in rows.values()))


def labels_of(items: Sequence[Item]) -> NDArray[np.intp]:
    """Class indices, (n,)."""
    return np.array([item.label for item in items], dtype=np.intp)


def _by_class(items: Sequence[Item], n: int, rng: np.random.Generator) -> list[list[Item]]:
    pools: list[list[Item]] = [[] for _ in range(n)]
    for item in items:
        pools[item.label].append(item)
    return [[pool[i] for i in rng.permutation(len(pool))] for pool in pools]


def _flat(pools: list[list[Item]], limit: int | None) -> list[Item]:
    return [item for pool in pools for item in pool[:limit]]
