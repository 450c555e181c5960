"""Which row of the class features belongs to which label.

Plain arrays are positional: rows follow the sorted labels, or ``classes=``. Input that carries
labels of its own, a pandas table or a mapping, is matched by them.
"""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom
from sklearn.utils.validation import check_array
from torch import Tensor

from crome.errors import InputError
from crome.fewshot.samples import Samples, as_array, unit_rows

CHANCE = 0.05  # probability at which text is taken to say nothing about the images
ENOUGH = 16  # images: fewer cannot show that
CIRCLE = 8  # images: with fewer, a circle of exchanged classes arises by chance
AGREEMENT = 0.8


def align_classes(
    class_features: Any, classes: ArrayLike | None, y: NDArray[Any], width: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The sorted classes and a unit row of text features for each.

    Args:
        class_features: One row per class: an array, a table with labels as its index, a mapping
            from label to row, or None.
        classes: The label of each row; by default the index of a labelled input, or the sorted
            labels of ``y``.
        y: Labels of the training images.
        width: Columns of the training images' features.

    Returns:
        Sorted labels (N,), and unit rows (N, C); (N, 0) without class features.

    Raises:
        InputError: Labels, classes and class features do not match.
    """
    present = sorted_labels(y, "y")
    names, rows = _labels_and_rows(class_features)
    if names is not None and classes is not None:
        sorted_labels(classes, "classes=")
        rows, names = _reordered(rows, names, np.asarray(classes)), None
    named = present if classes is None else np.asarray(classes)
    named = named if names is None else names
    known = sorted_labels(named, "classes=")
    if len(known) < len(named):
        twice = next(label for label in known.tolist() if named.tolist().count(label) > 1)
        raise InputError(f"classes= names {twice!r} more than once.")
    if extra := set(present.tolist()) - set(known.tolist()):
        where = (
            f"classes=[{_some(known)}]"
            if names is None
            else f"the index of class_features, {_some(known)}"
        )
        raise InputError(f"labels {sorted(extra)} are not in {where}.")
    if rows is None:
        if absent := set(known.tolist()) - set(present.tolist()):
            raise InputError(
                f"class {sorted(absent)[0]!r} has no training image and, without class_features, "
                "no text; give either."
            )
        return known, np.zeros((len(known), 0))
    try:
        text = check_array(rows, dtype=[np.float64, np.float32], input_name="class_features")
    except TypeError as error:
        raise InputError(f"class_features has no rows of numbers: {error}.") from error
    _check_shape(text, known, width)
    if classes is not None or names is not None:
        text = text[np.argsort(named)]
    return known, unit_rows(torch.from_numpy(np.ascontiguousarray(text))).numpy()


def sorted_labels(labels: Any, name: str) -> NDArray[Any]:
    """The distinct labels, sorted.

    Raises:
        InputError: They are of kinds that have no common order, or one is missing.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise InputError(f"{name} has the shape {labels.shape}; expected a list of labels.")
    if labels.dtype.kind == "O":
        missing = [label for label in labels.tolist() if label is None or label != label]
        if missing:
            raise InputError(f"{name} has the missing value {missing[0]!r}; expected a label.")
    try:
        return np.unique(labels)
    except TypeError as error:
        kinds = sorted({type(label).__name__ for label in labels.tolist()})
        raise InputError(
            f"{name} has labels of the kinds {' and '.join(kinds)}; expected one kind."
        ) from error


def plain_labels(y: NDArray[Any]) -> NDArray[Any]:
    """Labels that are numbers kept as objects, as in a column of pandas, as an array of numbers."""
    plain = np.array(y.tolist()) if y.dtype.kind == "O" else y
    return plain if plain.dtype.kind in "biuf" else y


def check_same_index(X: Any, y: Any) -> None:
    """Refuse tables whose rows are labelled alike and stand in different orders."""
    one, other = _index(X), _index(y)
    if one is None or other is None or len(one) != len(other) or list(one) == list(other):
        return
    if set(one) == set(other):
        raise InputError(
            "X and y have the same index in different orders; reorder one, as in y.loc[X.index]."
        )


def warn_of_text(samples: Samples, classes: NDArray[Any], *, wider: bool) -> None:
    """Warn where the class features of training images seem misplaced, or of another encoder.

    The second is looked for where images are ``wider``: where they have more columns than the class
    features, and nothing tells that both come from one encoder.
    """
    pairs = misplaced(samples.zero_shot, samples.labels)
    if pairs:
        label, row = (classes.tolist()[i] for i in pairs[0])
        warnings.warn(
            f"class_features may be in another order than the labels: nearly all images of "
            f"{label!r} are nearest to the row of {row!r} ({len(pairs)} classes like this). "
            "Rows must follow the sorted labels, or classes=.",
            stacklevel=4,
        )
    elif wider and len(samples) >= ENOUGH:
        right = int((samples.zero_shot.argmax(1) == samples.labels).sum())
        if binom.sf(right - 1, len(samples), 1 / len(classes)) > CHANCE:
            warnings.warn(
                f"the first {samples.joint.shape[1]} of X's columns are compared with "
                f"class_features and classify {right} of {len(samples)} training images, which is "
                "chance: do both come from the same encoder?",
                stacklevel=4,
            )


def misplaced(zero_shot: Tensor, labels: Tensor) -> list[tuple[int, int]]:
    """Pairs (class, row of class features that its images are nearest to) that form circles.

    Where rows do not follow the sorted labels, a common and silent mistake, the zero-shot
    classifier (n, N) takes nearly all images of one class for a second one, those of the second for
    a third, and so on in a circle. None where the order is right or cannot be told.
    """
    n = zero_shot.shape[1]
    votes = torch.bincount(labels * n + zero_shot.argmax(1), minlength=n * n).view(n, n)
    most = votes.max(1)
    moved = (most.indices != torch.arange(n, device=labels.device)) & (most.values > 0)
    images = int(votes[moved].sum())
    if images < CIRCLE or most.values[moved].sum() < AGREEMENT * images:
        return []
    sources, targets = torch.nonzero(moved)[:, 0].tolist(), most.indices[moved].tolist()
    return list(zip(sources, targets, strict=True)) if sorted(targets) == sources else []


def _labels_and_rows(given: Any) -> tuple[NDArray[Any] | None, Any]:
    """The labels that an input carries, if any, and its rows."""
    if isinstance(given, Mapping):
        if not given:
            raise InputError("class_features is empty; expected a row per class.")
        return np.array(list(given)), _stacked(given.values())
    names = _index(given)
    if getattr(given, "ndim", 2) == 1 and hasattr(given, "to_numpy"):  # a column of rows
        given = _stacked(given)
    return names, as_array(given)


def _stacked(rows: Iterable[Any]) -> NDArray[Any]:
    try:
        return np.stack([np.asarray(as_array(row)) for row in rows])
    except ValueError as error:
        raise InputError(f"class_features has rows of several widths: {error}.") from error


def _index(table: Any) -> NDArray[Any] | None:
    """The index of a pandas object; None for other input, and for rows numbered from 0."""
    index = getattr(table, "index", None)
    if index is None or callable(index) or not hasattr(index, "to_numpy"):
        return None
    labels = np.array(index.tolist()) if index.nlevels == 1 else np.asarray(index)
    return None if labels.tolist() == list(range(len(labels))) else labels


def _reordered(rows: Any, names: NDArray[Any], classes: NDArray[Any]) -> NDArray[Any]:
    """The rows of a labelled input in the order of ``classes``."""
    place = {name: i for i, name in enumerate(names.tolist())}
    wanted = classes.tolist()
    if len(place) < len(names) or set(place) != set(wanted):
        raise InputError(
            f"class_features is labelled {_some(names)}, and classes= names {_some(classes)}; "
            "expected the same labels, or only one of the two."
        )
    return np.asarray(rows)[[place[name] for name in wanted]]


def _check_shape(text: NDArray[Any], classes: NDArray[Any], width: int) -> None:
    if len(text) != len(classes):
        raise InputError(
            f"class_features has {len(text)} rows, and there are {len(classes)} classes: "
            f"{_some(classes)}. Give one row per class in sorted label order, or name the row "
            "order in classes=, which also allows classes without images."
        )
    if text.shape[1] > width:
        raise InputError(
            f"class_features has {text.shape[1]} columns and X only {width}: they must come from "
            "the same encoder."
        )


def _some(labels: NDArray[Any]) -> str:
    return ", ".join(str(label) for label in labels[:5]) + (", …" if len(labels) > 5 else "")
