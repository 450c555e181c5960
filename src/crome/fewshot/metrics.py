"""How well each class is recognised: precision, recall, F1, and the confusion matrix."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

TOP = (1, 3, 5)


@dataclass(frozen=True)
class ClassScore:
    """One class. A share of nothing is None.

    Attributes:
        name: Name of the class.
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
    """Score predictions (n, N) class by class; ``y`` has the column of the true class, (n,)."""
    order, labels = probabilities.argsort(1)[:, ::-1], np.arange(len(names))
    confusion = confusion_matrix(y, order[:, 0], labels=labels)
    hits = order == y[:, None]
    top = {k: float(hits[:, :k].any(1).mean()) for k in TOP if k < len(names) or k == 1}
    scores = precision_recall_fscore_support(y, order[:, 0], labels=labels, zero_division=np.nan)
    wrong = confusion - np.diag(confusion.diagonal())
    classes = []
    for place, name in enumerate(names):
        precision, recall, f1 = (
            None if np.isnan(values[place]) else float(values[place]) for values in scores[:3]
        )
        other = int(wrong[place].argmax())
        taken_for = (names[other], int(wrong[place, other])) if wrong[place].any() else None
        support, predicted = int(scores[3][place]), int(confusion[:, place].sum())
        classes.append(ClassScore(name, precision, recall, f1, support, predicted, taken_for))
    return Report(int(confusion.trace()), classes, confusion, top)
