"""What the studies share: a run is a file that is not made again, and answers are right or not."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crome.errors import InputError
from crome.evaluation.answers import METRICS
from crome.evaluation.predict import Sight, answers
from crome.model.hub import locate
from crome.model.pretrained import BRIDGE_FILE
from crome.rows import Row
from crome.storage import read_object

ALL = "all"


def exact_matches(
    model: Any, processor: Any, rows: Sequence[Row], sight: Sight = "shown"
) -> list[float]:
    """1 for each row that a model answers as it should, else 0."""
    return scored(answers(model, processor, rows, sight=sight), rows)


def scored(texts: Sequence[str], rows: Sequence[Row]) -> list[float]:
    """Exact match of each answer."""
    return [METRICS["exact_match"](text, row.answer) for text, row in zip(texts, rows, strict=True)]


def by_kind(right: Sequence[float], kinds: Sequence[str | None]) -> dict[str, float]:
    """Accuracy over all questions and by kind."""
    groups: dict[str, list[float]] = {ALL: list(right)}
    for value, kind in zip(right, kinds, strict=True):
        if kind is not None:
            groups.setdefault(kind, []).append(value)
    return {name: float(np.mean(values)) for name, values in sorted(groups.items())}


def weights(checkpoint: str) -> str:
    """A short digest of a base's file: a name may come to mean other weights."""
    return hashlib.sha256((locate(checkpoint) / BRIDGE_FILE).read_bytes()).hexdigest()[:16]


def device_settings(device: torch.device) -> dict[str, str]:
    """What a run's settings say of the device; those of a CPU have always said nothing."""
    return {} if device.type == "cpu" else {"device": device.type}


def finished(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """An earlier run's result under the same settings.

    Raises:
        InputError: The folder holds a result of other settings.
    """
    if not path.exists():
        return None
    try:
        found = read_object(path)
        was = dict(found["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} holds no result of this study ({error}): remove it, or give another --out."
        ) from error
    wrong = [f"{k} was {was.get(k)!r}, now {v!r}" for k, v in settings.items() if was.get(k) != v]
    if wrong:
        raise InputError(f"{path} was made with {'; '.join(wrong)}: give another --out.")
    return found
