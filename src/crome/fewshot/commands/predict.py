"""``crome fewshot predict``: the classes of pictures."""

import csv
import io
from pathlib import Path
from typing import Any

from crome.errors import InputError, positive
from crome.fewshot.commands.saved import Saved, encode_readable, expand, open_saved
from crome.fewshot.commands.terminal import Precision, show

NONE_OF_THESE = "none of these"


def predict(
    classifier: Path,
    images: list[Path],
    out: Path | None = None,
    top: int = 3,
    none_below: float | None = None,
    encoder: str | None = None,
    device: str | None = None,
    dtype: Precision | None = None,
) -> None:
    """Classify images. Pictures that cannot be read are named, and the others classified.

    Args:
        classifier: File written by `crome fewshot fit`.
        images: Image files, or folders of images.
        out: CSV file with image, label, probability, and label_2, probability_2 and so on up to
            top; by default a line per image is printed.
        top: Labels shown per image.
        none_below: Say "none of these" of a picture that is less usual than this share of the
            training pictures, such as 0.05; about so many pictures of the classes are lost by it.
        encoder: Where the encoder is now, if its folder was moved.
        device: See `crome fewshot fit`.
        dtype: See `crome fewshot fit`; by default the type of the fit.
    """
    positive(top=top)
    if none_below is not None and not 0 < none_below < 1:
        raise InputError(f"none_below is {none_below}; expected a share between 0 and 1.")
    files = expand(images)
    saved = open_saved(classifier, encoder, device, dtype)
    X, files = encode_readable(saved.encoder, files)
    guesses = _guesses(saved, X, top, none_below)
    if out is None:
        for path, row in zip(files, guesses, strict=True):
            show(f"{path}  " + ", ".join(f"{name} {share:.2f}" for name, share in row))
    else:
        _write(out, files, guesses)


def _guesses(
    saved: Saved, X: Any, top: int, none_below: float | None
) -> list[list[tuple[str, float]]]:
    """Names and probabilities of each picture's likeliest classes.

    "None of these" comes first where it is said; its number is then how usual the picture is.
    """
    labels = [saved.names[label] for label in saved.model.classes_.tolist()]
    found = []
    for row in saved.model.predict_proba(X):
        best = row.argsort()[::-1][:top].tolist()
        found.append([(labels[i], float(row[i])) for i in best])
    if none_below is not None:
        for row, usual in zip(found, saved.model.familiarity(X).tolist(), strict=True):
            if usual < none_below:
                row.insert(0, (NONE_OF_THESE, usual))
                del row[top:]
    return found


def _write(out: Path, files: list[Path], guesses: list[list[tuple[str, float]]]) -> None:
    from crome.storage import replaced

    most = max(map(len, guesses))
    header = ["image", "label", "probability"]
    for place in range(2, most + 1):
        header += [f"label_{place}", f"probability_{place}"]
    lines = io.StringIO()
    writer = csv.writer(lines)
    writer.writerow(header)
    for path, row in zip(files, guesses, strict=True):
        cells = [cell for name, share in row for cell in (name, f"{share:.6f}")]
        writer.writerow([path, *cells])
    with replaced(out) as partial:
        partial.write_bytes(lines.getvalue().encode("utf-8", "surrogateescape"))
