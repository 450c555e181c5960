"""How well each class is recognised: precision, recall, F1, and the confusion matrix."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOP = (1, 3, 5)


@dataclass(frozen=True)
class ClassScore:
    """One class. A share of nothing is None.

    Attributes:
        name: Of the class.
        precision: Share of the images taken for the class that are of it.
        recall: Share of its images that are taken for it.
        f1: Harmonic mean of both.
        support: Its images.
        predicted: Images taken for it.
        taken_for: The class that most of its other images are taken for, and how many.
    """

    name: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int
    predicted: int
    taken_for: tuple[str, int] | None


@dataclass(frozen=True)
class Report:
    """All classes.

    Attributes:
        right: Images whose most likely class is the right one.
        classes: One score per class.
        confusion: Counts, (N, N): rows are the true classes, columns what they are taken for.
        top: Share of images whose class is among the k likeliest, by k.
    """

    right: int
    classes: list[ClassScore]
    confusion: NDArray[np.intp]
    top: dict[int, float]

    @property
    def macro_f1(self) -> float | None:
        """Mean F1 of the classes that have images; one that is never recognised counts as 0."""
        scores = [score.f1 or 0.0 for score in self.classes if score.support]
        return sum(scores) / len(scores) if scores else None

    def as_json(self) -> dict[str, Any]:
        """The numbers under the names that the JSON file has for them."""
        return {
            "top": {str(k): share for k, share in self.top.items()},
            "macro_f1": self.macro_f1,
            "labels": [score.name for score in self.classes],
            "by_class": [asdict(score) for score in self.classes],
            "confusion": self.confusion.tolist(),
        }


def class_report(
    probabilities: NDArray[np.floating], y: NDArray[np.integer], names: Sequence[str]
) -> Report:
    """Score predictions class by class.

    Args:
        probabilities: (n, N).
        y: Column of the true class, (n,).
        names: Of the classes, N.
    """
    order = probabilities.argsort(1)[:, ::-1]
    confusion = np.zeros((len(names), len(names)), dtype=np.intp)
    np.add.at(confusion, (y, order[:, 0]), 1)
    hits = order == y[:, None]
    top = {k: float(hits[:, :k].any(1).mean()) for k in TOP if k < len(names) or k == 1}
    classes = [_score(confusion, place, names) for place in range(len(names))]
    return Report(int(confusion.trace()), classes, confusion, top)


def _score(confusion: NDArray[np.intp], place: int, names: Sequence[str]) -> ClassScore:
    right = int(confusion[place, place])
    support, predicted = int(confusion[place].sum()), int(confusion[:, place].sum())
    wrong = confusion[place].copy()
    wrong[place] = 0
    other = int(wrong.argmax())
    return ClassScore(
        names[place],
        right / predicted if predicted else None,
        right / support if support else None,
        2 * right / (support + predicted) if support + predicted else None,
        support,
        predicted,
        (names[other], int(wrong[other])) if wrong[other] else None,
    )
