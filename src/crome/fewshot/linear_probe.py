"""Logistic regression on image features: the baseline that ignores what classes are called."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from crome.fewshot.base import FewShotClassifier, Samples, splits


@dataclass(repr=False, eq=False, kw_only=True)
class LinearProbeClassifier(FewShotClassifier):
    """scikit-learn's logistic regression on unit image features; C chosen on validation images.

    Args:
        class_features: Accepted for symmetry; only their number is used.
        classes: Labels, when some have no images.
        logit_scale: Unused, for symmetry.
        Cs: Inverse penalties to try.
        random_state: Seed of the folds.

    Attributes:
        classes_: Sorted labels.
        coef_: (n_classes, width).
        intercept_: (n_classes,).
        C_: Chosen inverse penalty.
        temperature_: Divides the logits in ``predict_proba``.
        validation_accuracy_: Of the chosen penalty; NaN without validation images.
    """

    Cs: Sequence[float] = (1.0, 10.0, 100.0)
    random_state: int = 0

    def _learn(self, shots: Samples, val: Samples | None) -> None:
        n = len(self.classes_)
        pairs = splits(shots, val, cross=True, seed=self.random_state)
        self.C_, self.validation_accuracy_, self.temperature_ = 10.0, float("nan"), 1.0
        labels = torch.cat([test.labels for _, test in pairs] or [shots.labels])
        best = -1.0
        for C in self.Cs if pairs else ():
            held_out = []
            for train, test in pairs:
                coef, intercept = _regress(train, n, C)
                held_out.append(test.image @ coef.T + intercept)
            logits = torch.cat(held_out)
            accuracy = float((logits.argmax(1) == labels).double().mean())
            if accuracy > best:
                best, self.C_, self.validation_accuracy_ = accuracy, C, accuracy
                self._calibrate([logits], [labels])
        coef, intercept = _regress(shots, n, self.C_)
        self.coef_, self.intercept_ = coef.numpy(), intercept.numpy()

    def _logits(self, samples: Samples) -> Tensor:
        coef = torch.from_numpy(self.coef_).to(samples.image.dtype)
        return samples.image @ coef.T + torch.from_numpy(self.intercept_).to(coef.dtype)


def _regress(shots: Samples, n_classes: int, C: float) -> tuple[Tensor, Tensor]:
    """Coefficients (N, C') and intercepts (N,); classes without images get −10 and zeros."""
    rows, labels = shots.image, shots.labels.numpy()
    coef, intercept = rows.new_zeros(n_classes, rows.shape[1]), rows.new_full((n_classes,), -10.0)
    present = np.unique(labels)
    if len(present) == 1:
        intercept[present] = 0.0
        return coef, intercept
    model = LogisticRegression(C=C, max_iter=300).fit(rows.numpy(), labels)
    fitted, offsets = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
    if len(present) == 2:  # scikit-learn keeps one row for two classes
        fitted, offsets = torch.cat([-fitted, fitted]) / 2, torch.cat([-offsets, offsets]) / 2
    coef[present], intercept[present] = fitted.to(rows.dtype), offsets.to(rows.dtype)
    return coef, intercept
