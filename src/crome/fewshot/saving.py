"""One safetensors file per classifier: arrays as tensors, everything else as JSON beside them."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from crome.errors import InputError, JobError
from crome.fewshot import CLASSIFIERS
from crome.fewshot.classifier import FewShotClassifier
from crome.storage import replaced
from crome.version import __version__

FORMAT = "crome-fewshot-1"


def save_classifier(
    classifier: FewShotClassifier, file: Path | str, extra: dict[str, Any] | None = None
) -> None:
    """Write a fitted classifier, without pickle.

    Args:
        classifier: Fitted.
        file: File to write, whole or not at all; its name usually ends in ``.safetensors``.
        extra: JSON values and arrays to keep with it, such as the encoder's fingerprint and class
            names.

    Raises:
        JobError: The file cannot be written.
    """
    state = {k: v for k, v in vars(classifier).items() if k.endswith("_")}
    params = classifier.get_params() | {"device": None}  # another machine may not have it
    arrays: dict[str, Any] = {}
    plain: dict[str, dict[str, Any]] = {"params": {}, "state": {}, "extra": {}}
    for name, value in (extra or {}).items():
        if isinstance(value, np.ndarray):
            arrays[f"extra.{name}"] = np.ascontiguousarray(value)
        else:
            plain["extra"][name] = value
    for where, values in (("params", params), ("state", state)):
        for name, value in values.items():
            array = _as_array(value)
            if array is not None and array.ndim and array.dtype.kind in "fiub":
                arrays[f"{where}.{name}"] = np.ascontiguousarray(array)
            else:
                plain[where][name] = _plain(value) if array is None else array.tolist()
    about = {
        "format": FORMAT,
        "version": __version__,
        "classifier": type(classifier).__name__,
        **plain,
    }
    try:
        with replaced(Path(file)) as partial:
            save_file(arrays, partial, {"crome": json.dumps(about)})
    except (JobError, SafetensorError) as error:
        raise JobError(f"cannot write {file}: {error}") from error


def load_classifier(file: Path | str) -> tuple[FewShotClassifier, dict[str, Any]]:
    """Read a classifier and the extra values stored with it.

    Raises:
        InputError: The file is missing, not one of ``save_classifier``'s, or damaged.
    """
    try:
        with safe_open(file, "numpy") as stored:
            about = json.loads((stored.metadata() or {}).get("crome", "{}"))
            arrays = {key: stored.get_tensor(key) for key in stored.keys()}
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read a classifier from {file}: {error}") from error
    found = about.get("format") if isinstance(about, dict) else about
    if found != FORMAT:
        raise InputError(
            f"{file} has the format {found!r}, expected {FORMAT!r}: it was not written by `crome "
            "fewshot fit`, or by a version with another format."
        )
    try:
        return _rebuild(about, arrays)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, MemoryError) as error:
        raise InputError(
            f"{file} is no classifier that this version knows: {type(error).__name__}, {error}. "
            "Fit it again, or ask whoever made it."
        ) from error


def _rebuild(
    about: dict[str, Any], arrays: dict[str, Any]
) -> tuple[FewShotClassifier, dict[str, Any]]:
    name = about["classifier"]
    if name not in CLASSIFIERS:  # a name in a file must not choose what is imported
        raise ValueError(f"the classifier {name!r} is none of {', '.join(sorted(CLASSIFIERS))}")
    values = {where: dict(about[where]) for where in ("params", "state", "extra")}
    for key, array in arrays.items():
        where, _, part = key.partition(".")
        values[where][part] = array
    kind: type[FewShotClassifier] = getattr(
        import_module(f"crome.fewshot.{CLASSIFIERS[name]}"), name
    )
    classifier = kind(**values["params"])
    for part, value in values["state"].items():
        if not part.endswith("_") or part.startswith("_") or not part.isidentifier():
            raise ValueError(f"{part!r} is no part of a fitted classifier")
        setattr(classifier, part, np.asarray(value) if isinstance(value, list) else value)
    # A part that is missing or does not fit the others shows here, and not when it is used.
    one = np.zeros((1, int(classifier.n_features_in_)), np.float32)
    if classifier.predict_proba(one).shape != (1, *np.shape(classifier.classes_)):
        raise ValueError("classes and probabilities do not match")
    return classifier, values["extra"]


def _as_array(value: Any) -> Any:
    """Lists, arrays, tables and tensors as an array; None for anything else."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    if isinstance(value, (list, tuple, range)) or hasattr(value, "__array__"):
        return np.asarray(value)
    return None


def _plain(value: Any) -> Any:
    """A value that JSON knows: random generators and labelled rows are not kept."""
    return value if isinstance(value, (str, int, float, bool, type(None))) else None
