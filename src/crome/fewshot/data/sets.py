"""A set of labelled pictures, and the names of its classes."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crome.fewshot.text import printable

DEFAULT_TEMPLATES = ("a photo of a {}.",)
WHOLE_NUMBER = re.compile(r"([+-]?\d+)\.0+")


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


def labels_of(items: Sequence[Item]) -> NDArray[np.intp]:
    """Class indices, (n,)."""
    return np.array([item.label for item in items], dtype=np.intp)


def clean_label(text: str) -> str:
    """A label without what cannot be seen: NFC, single spaces, none at the ends."""
    characters = unicodedata.normalize("NFC", printable(text))
    visible = "".join(c for c in characters if unicodedata.category(c) != "Cf")
    return " ".join(visible.split())


def label_key(text: str) -> str:
    """What two spellings of one label have in common: ``clean_label``, and ``1`` for ``1.0``.

    Spreadsheets and tables write whole numbers either way.
    """
    clean = clean_label(text)
    whole = WHOLE_NUMBER.fullmatch(clean)
    return whole[1] if whole else clean
