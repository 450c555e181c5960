"""A saved classifier, its names and its encoder; the pictures that a verb is given."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crome.errors import InputError
from crome.fewshot.commands.terminal import warn, warnings_as_lines

if TYPE_CHECKING:
    from crome.fewshot.classifier import FewShotClassifier
    from crome.fewshot.encoders import Encoder


@dataclass
class Saved:
    """A classifier ready to be used.

    Attributes:
        model: The estimator.
        extra: What was kept with it.
        encoder: What makes its features.
        names: Class name of each label that the model may give.
    """

    model: "FewShotClassifier"
    extra: dict[str, Any]
    encoder: "Encoder"
    names: dict[Any, str]


def open_saved(file: Path, encoder: str | None, device: str | None, dtype: str | None) -> Saved:
    """Load a classifier and the encoder that it was fitted with, by default where it was.

    Raises:
        InputError: The file is no classifier, or its encoder is gone or another one now.
    """
    from crome.fewshot.encoders import load_encoder
    from crome.fewshot.saving import load_classifier

    model, extra = load_classifier(file)
    if device is not None:
        model.device = device
    name = encoder or extra.get("encoder")
    if not isinstance(name, str):
        raise InputError(
            f"{file} does not say which encoder it belongs to; name it with --encoder."
        )
    if encoder is None and Path(name).is_absolute() and not Path(name).exists():
        raise InputError(
            f"{file} was fitted with the encoder in {name}, which is gone; name its folder with "
            "--encoder."
        )
    towers = load_encoder(name, device=device, dtype=dtype or extra.get("dtype"))
    check_encoder(file, extra, towers)
    return Saved(model, extra, towers, class_names(file, model, extra))


def class_names(file: Path | str, model: "FewShotClassifier", extra: dict[str, Any]) -> dict:
    """The name of each label that a saved classifier may give; labels are their own by default."""
    labels = extra.get("class_names")
    if not isinstance(labels, list):
        names = {label: str(label) for label in model.classes_.tolist()}
    else:
        names = dict(enumerate(map(str, labels)))
    if unnamed := set(model.classes_.tolist()) - set(names):
        raise InputError(f"{file} has no name for the class {sorted(unnamed)[0]!r}. Fit again.")
    return names


def check_encoder(file: Path | str, extra: dict[str, Any], encoder: "Encoder") -> None:
    """Refuse an encoder whose features are not those that a classifier was fitted on."""
    fitted = extra.get("fingerprint")
    known = (encoder.fingerprint, *getattr(encoder, "formerly", ()))
    # The part before the last hyphen is the name of its folder, which may have changed.
    if fitted is not None and str(fitted).rpartition("-")[2] not in {
        name.rpartition("-")[2] for name in known
    }:
        raise InputError(
            f"{file} was fitted on features of {fitted}, and {encoder.name!r} is now "
            f"{encoder.fingerprint}: other weights, preprocessing or precision. Fit again."
        )


def expand(paths: Sequence[Path]) -> list[Path]:
    """Files, and the pictures in folders; to have none is refused."""
    from crome.fewshot.data.reading import warn_of_others
    from crome.fewshot.pictures import list_pictures

    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        pictures, others = list_pictures(path)
        files += pictures
        with warnings_as_lines():
            warn_of_others(path, others)
    if not files:
        raise InputError(f"no image in {', '.join(map(str, paths))}.")
    return files


def encode_readable(encoder: "Encoder", files: Sequence[Path]) -> tuple[Any, list[Path]]:
    """Features of the pictures that can be read, and these; the others are named as warnings.

    To have none is refused.
    """
    from crome.fewshot.features import check_readable, readable_features

    encoded = readable_features(encoder, files, quiet=False)
    if not encoded.kept:
        check_readable(encoded)
    for error in encoded.errors.values():
        warn(f"left out: {error}")
    return encoded.rows[:, 0], [files[place] for place in encoded.kept]
