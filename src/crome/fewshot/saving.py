"""One safetensors file per classifier: arrays as tensors, everything else as JSON beside them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

import crome.fewshot
from crome.errors import InputError, JobError
from crome.fewshot.base import FewShotClassifier
from crome.version import __version__

FORMAT = "crome-fewshot-1"


def save_classifier(
    classifier: FewShotClassifier, file: Path | str, extra: dict[str, Any] | None = None
) -> None:
    """Write a fitted classifier, without pickle.

    Args:
        classifier: Fitted.
        file: Target, by custom ending in ``.safetensors``.
        extra: JSON values to keep with it, such as the encoder's fingerprint and class names.
    """
    state = {k: v for k, v in vars(classifier).items() if k.endswith("_")}
    params = classifier.get_params()
    arrays: dict[str, Any] = {}
    plain: dict[str, dict[str, Any]] = {"params": {}, "state": {}}
    for where, values in (("params", params), ("state", state)):
        for name, value in values.items():
            many = isinstance(value, (list, tuple, range)) or hasattr(value, "__array__")
            array = np.asarray(value) if many else None
            if array is not None and array.ndim and array.dtype.kind in "fiub":
                arrays[f"{where}.{name}"] = np.ascontiguousarray(array)
            else:
                plain[where][name] = array.tolist() if array is not None else value
    about = {
        "format": FORMAT,
        "version": __version__,
        "classifier": type(classifier).__name__,
        "extra": extra or {},
        **plain,
    }
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        save_file(arrays, file, {"crome": json.dumps(about)})
    except (OSError, SafetensorError) as error:
        raise JobError(f"cannot write {file}: {error}.") from error


def load_classifier(file: Path | str) -> tuple[FewShotClassifier, dict[str, Any]]:
    """Read a classifier and the extra values stored with it.

    Raises:
        InputError: The file is missing or not one of ``save_classifier``'s.
    """
    try:
        with safe_open(file, "numpy") as stored:
            about = json.loads((stored.metadata() or {}).get("crome", "{}"))
            arrays = {key: stored.get_tensor(key) for key in stored.keys()}
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read a classifier from {file}: {error}") from error
    if about.get("format") != FORMAT:
        raise InputError(
            f"{file} has the format {about.get('format')!r}, expected {FORMAT!r}: it was not "
            "written by `crome fewshot fit`, or by a version with another format."
        )
    values: dict[str, dict[str, Any]] = {"params": about["params"], "state": about["state"]}
    for key, array in arrays.items():
        where, name = key.split(".", 1)
        values[where][name] = array
    kind: type[FewShotClassifier] = getattr(crome.fewshot, about["classifier"])
    classifier = kind(**{k: v for k, v in values["params"].items()})
    for name, value in values["state"].items():
        setattr(classifier, name, np.asarray(value) if isinstance(value, list) else value)
    return classifier, about["extra"]
