"""``crome fewshot evaluate``: a saved classifier on labelled pictures."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from crome.errors import InputError
from crome.fewshot.commands.saved import Saved, encode_readable, open_saved
from crome.fewshot.commands.terminal import (
    Precision,
    describe_accuracy,
    show,
    warn,
    warnings_as_lines,
)
from crome.intervals import wilson
from crome.storage import write_text

if TYPE_CHECKING:
    from crome.fewshot.data.sets import ImageSet, Item
    from crome.fewshot.metrics import Report

MOST_LISTED = 30


def evaluate(
    classifier: Path,
    images: Path,
    part: Literal["train", "val", "test"] = "test",
    json_out: Path | None = None,
    encoder: str | None = None,
    device: str | None = None,
    dtype: Precision | None = None,
) -> None:
    """Measure a saved classifier on labelled images; those it was fitted on are left out.

    Prints accuracy, calibration, and precision, recall and F1 of each class; the JSON file has the
    confusion matrix as well.

    Args:
        classifier: File written by `crome fewshot fit`.
        images: Folder per class or CSV file, with the class names of the classifier.
        part: train, val or test; a set without parts is used whole.
        json_out: File for the numbers as JSON, besides the table that is printed.
        encoder: Where the encoder is now, if its folder was moved.
        device: See `crome fewshot fit`.
        dtype: See `crome fewshot fit`; by default the type of the fit.
    """
    import numpy as np

    from crome.fewshot.calibration import expected_calibration_error
    from crome.fewshot.data.reading import read_images
    from crome.fewshot.metrics import class_report

    saved = open_saved(classifier, encoder, device, dtype)
    with warnings_as_lines():
        data = read_images(images)
    items = _unseen(classifier, images, data, part, saved.extra)
    places = _places(classifier, images, data, saved)
    X, read = encode_readable(saved.encoder, [item.path for item in items])
    left = set(read)
    y = np.array([places[item.label] for item in items if item.path in left])
    probabilities = saved.model.predict_proba(X)
    names = [saved.names[label] for label in saved.model.classes_.tolist()]
    report = class_report(probabilities, y, names)
    error = expected_calibration_error(probabilities, y)
    show(f"{describe_accuracy(report.right, len(y))}, calibration error {error:.3f}")
    _list_classes(report)
    if json_out is not None:
        low, high = wilson(report.right, len(y))
        numbers = {
            "accuracy": report.right / len(y), "low": low, "high": high, "n": len(y), "ece": error,
            "draw": saved.extra.get("draw"), "method": saved.extra.get("method"),
            "encoder": saved.extra.get("encoder"), "dtype": getattr(saved.encoder, "dtype", None),
            **report.as_json(),
        }  # fmt: skip
        write_text(json_out, json.dumps(numbers, indent=1, allow_nan=False))


def _unseen(
    classifier: Path, images: Path, data: "ImageSet", part: str, extra: dict[str, Any]
) -> list["Item"]:
    """The images of a part that the classifier was not fitted on, not even as copies."""
    import numpy as np

    from crome.fewshot.data.draws import identity
    from crome.fewshot.data.leaks import nearest_copies, signatures

    every: list[Item] = data.train if not (data.val or data.test) else getattr(data, part)
    if not every:
        raise InputError(f"{images} has no {part} part; name another with --part.")
    used = set(extra.get("used", ()))
    items = [item for item in every if identity(item.path) not in used]
    known = extra.get("used_signatures")
    if items and isinstance(known, np.ndarray) and len(known):
        copies = nearest_copies(known, signatures([item.path for item in items]))
        items = [item for item, place in zip(items, copies.tolist(), strict=True) if place < 0]
    if not items:
        raise InputError(f"{classifier} was fitted on every image of {images}: none is left.")
    if seen := len(every) - len(items):
        warn(f"{seen} of {len(every)} images were used in fitting; they are left out")
    return items


def _places(classifier: Path, images: Path, data: "ImageSet", saved: Saved) -> list[int]:
    """The column of the classifier's probabilities that each class of a set stands for."""
    from crome.fewshot.data.sets import label_key

    labels = saved.model.classes_.tolist()
    column = {label_key(saved.names[label]): place for place, label in enumerate(labels)}
    if unknown := sorted(name for name in data.classes if label_key(name) not in column):
        some = ", ".join([saved.names[label] for label in labels][:8])
        raise InputError(
            f"{images} has the class {unknown[0]!r}, which {classifier} does not know: {some}. "
            "Fit again, or rename the folder."
        )
    return [column[label_key(name)] for name in data.classes]


def _list_classes(report: "Report") -> None:
    rows: Sequence[Any] = [row for row in report.classes if row.support or row.predicted]
    if len(rows) > MOST_LISTED:
        rows = sorted(rows, key=lambda row: row.f1 or 0.0)[:MOST_LISTED]
        show(f"the {MOST_LISTED} classes with the least F1 of {len(report.classes)}:")
    width = max(len(row.name) for row in rows)
    show(f"  {'class':{width}s}  precision  recall     F1     n  most often taken for")
    for row in rows:
        numbers = [row.precision, row.recall, row.f1]
        cells = [f"{100 * n:.1f}" if n is not None else "–" for n in numbers]
        taken = f"{row.taken_for[0]} ({row.taken_for[1]})" if row.taken_for else ""
        line = f"{cells[0]:>9s}  {cells[1]:>6s} {cells[2]:>6s} {row.support:5d}  {taken}"
        show(f"  {row.name:{width}s}  {line}".rstrip())
