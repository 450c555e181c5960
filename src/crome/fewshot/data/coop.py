"""The 11 benchmark sets and 4 domain-shift sets of the few-shot CLIP papers, in CoOp's layout.

Folder and file names are those of CoOp's data instructions, so that a folder prepared for CoOp,
Tip-Adapter or their relatives reads as it is. Templates are the hand-made ones those papers share.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from crome.errors import InputError
from crome.fewshot.data.sets import DEFAULT_TEMPLATES, ImageSet, Item
from crome.fewshot.pictures import SUFFIXES

IMAGENET_TEMPLATES = (
    "itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.",
    "a {} in a video game.", "art of the {}.", "a photo of the small {}.",
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """Where a set with a split file keeps its parts.

    Attributes:
        folder: Under the data root.
        images: Folder under ``folder`` that the split's paths are relative to.
        split: Split file under ``folder``.
        template: Prompt.
    """

    folder: str
    images: str
    split: str
    template: str = DEFAULT_TEMPLATES[0]


LAYOUTS = {
    "caltech101": Layout("caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json"),
    "oxford_pets": Layout(
        "oxford_pets", "images", "split_zhou_OxfordPets.json", "a photo of a {}, a type of pet."
    ),
    "stanford_cars": Layout("stanford_cars", "", "split_zhou_StanfordCars.json"),
    "oxford_flowers": Layout(
        "oxford_flowers",
        "jpg",
        "split_zhou_OxfordFlowers.json",
        "a photo of a {}, a type of flower.",
    ),
    "food101": Layout(
        "food-101", "images", "split_zhou_Food101.json", "a photo of {}, a type of food."
    ),
    "sun397": Layout("sun397", "SUN397", "split_zhou_SUN397.json"),
    "dtd": Layout("dtd", "images", "split_zhou_DescribableTextures.json", "{} texture."),
    "eurosat": Layout(
        "eurosat", "2750", "split_zhou_EuroSAT.json", "a centered satellite photo of {}."
    ),
    "ucf101": Layout(
        "ucf101", "UCF-101-midframes", "split_zhou_UCF101.json", "a photo of a person doing {}."
    ),
}


def read_benchmark(name: str, root: Path) -> ImageSet:
    """Read one of the published sets.

    Args:
        name: A key of ``BENCHMARKS``.
        root: Data folder that holds the sets' own folders.

    Raises:
        InputError: Unknown name, a missing file (named), or a malformed split.
    """
    if name not in BENCHMARKS:
        raise InputError(f"data set {name!r}; expected one of {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name](root)


def read_split(layout: Layout, root: Path, name: str) -> ImageSet:
    """Read a set whose split is a JSON file of [path, label, class name] rows."""
    folder = root / layout.folder
    split = _need(folder / layout.split)
    try:
        parts = json.loads(split.read_text(encoding="utf-8-sig"))
        rows = {part: parts[part] for part in ("train", "val", "test")}
        names = {int(label): str(text) for part in rows.values() for _, label, text in part}
        paths = {part: [Path(path) for path, _, _ in rows[part]] for part in rows}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{split} is not a split file: {error!r}; expected train, val and test with rows "
            "[path, label, class name]."
        ) from error
    if sorted(names) != list(range(len(names))):
        raise InputError(
            f"{split} has labels {sorted(names)[:5]}…; expected 0 to {len(names) - 1}."
        )
    images = _need(folder / layout.images)
    items = {
        part: [
            Item(images / path, int(label))
            for path, (_, label, _) in zip(paths[part], rows[part], strict=True)
        ]
        for part in rows
    }
    for item in items["test"][:1] + items["train"][:1]:
        _need(item.path)
    classes = [names[i].replace("_", " ") for i in range(len(names))]
    return ImageSet(name, classes, items["train"], items["val"], items["test"], (layout.template,))


def read_aircraft(root: Path) -> ImageSet:
    """FGVC Aircraft: rows ``image-id variant name``, labels by line of variants.txt."""
    folder = root / "fgvc_aircraft"
    classes = _need(folder / "variants.txt").read_text().splitlines()
    index = {name: i for i, name in enumerate(classes)}
    parts: dict[str, list[Item]] = {}
    for part in ("train", "val", "test"):
        file = _need(folder / f"images_variant_{part}.txt")
        parts[part] = []
        for number, line in enumerate(file.read_text().splitlines(), 1):
            image, _, variant = line.partition(" ")
            if variant not in index:
                raise InputError(f"{file}, line {number}: {variant!r} is not in variants.txt.")
            parts[part].append(Item(folder / "images" / f"{image}.jpg", index[variant]))
    template = "a photo of a {}, a type of aircraft."
    return ImageSet(
        "fgvc_aircraft", classes, parts["train"], parts["val"], parts["test"], (template,)
    )


def read_imagenet(root: Path) -> ImageSet:
    """ImageNet: the 50,000 validation images are the test part; there is no validation part."""
    folder = root / "imagenet"
    ids, names = _classnames(folder)
    return ImageSet(
        "imagenet", names, _by_id(folder / "images" / "train", ids),
        test=_by_id(folder / "images" / "val", ids), templates=IMAGENET_TEMPLATES, ids=ids,
    )  # fmt: skip


def read_shift(folder: str, images: str, *, numeric: bool, name: str, root: Path) -> ImageSet:
    """A domain-shift set of ImageNet: test images only, classes by WordNet id.

    Args:
        folder: Under the data root.
        images: Folder of class folders under it.
        numeric: Whether class folders are line numbers of classnames.txt, not ids.
        name: What tables call it.
        root: Data folder.
    """
    ids, names = _classnames(root / folder)
    where = root / folder / images
    if numeric:
        return ImageSet(
            name, names, [], test=_by_id(where, [str(i) for i in range(len(ids))]),
            templates=IMAGENET_TEMPLATES, ids=ids,
        )  # fmt: skip
    present = sorted(p.name for p in _need(where).iterdir() if p.is_dir())
    if unknown := set(present) - set(ids):
        raise InputError(f"{where} has the folder {min(unknown)}, which classnames.txt lacks.")
    kept = [names[ids.index(wnid)] for wnid in present]
    return ImageSet(
        name, kept, [], test=_by_id(where, present), templates=IMAGENET_TEMPLATES, ids=present
    )


def _classnames(folder: Path) -> tuple[list[str], list[str]]:
    lines = _need(folder / "classnames.txt").read_text().splitlines()
    pairs = [line.strip().split(" ", 1) for line in lines if line.strip()]
    return [wnid for wnid, _ in pairs], [name for _, name in pairs]


def _by_id(root: Path, folders: Sequence[str]) -> list[Item]:
    _need(root)
    return [
        Item(path, label)
        for label, folder in enumerate(folders)
        for path in sorted((root / folder).glob("*"))
        if path.suffix.lower() in SUFFIXES
    ]


def _need(path: Path) -> Path:
    if not path.exists():
        raise InputError(f"{path} is missing; the layout is that of CoOp's data instructions.")
    return path


def _split_reader(name: str) -> Callable[[Path], ImageSet]:
    return lambda root: read_split(LAYOUTS[name], root, name)


def _shift_reader(
    name: str, folder: str, images: str, numeric: bool = False
) -> Callable[[Path], ImageSet]:
    return lambda root: read_shift(folder, images, numeric=numeric, name=name, root=root)


BENCHMARKS: dict[str, Callable[[Path], ImageSet]] = {
    "imagenet": read_imagenet,
    **{name: _split_reader(name) for name in LAYOUTS},
    "fgvc_aircraft": read_aircraft,
    "imagenetv2": _shift_reader(
        "imagenetv2", "imagenetv2", "imagenetv2-matched-frequency-format-val", numeric=True
    ),
    "imagenet_sketch": _shift_reader("imagenet_sketch", "imagenet-sketch", "images"),
    "imagenet_a": _shift_reader("imagenet_a", "imagenet-adversarial", "imagenet-a"),
    "imagenet_r": _shift_reader("imagenet_r", "imagenet-rendition", "imagenet-r"),
}
