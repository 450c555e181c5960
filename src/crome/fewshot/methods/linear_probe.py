"""Logistic regression on image features: the baseline that ignores what classes are called."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from crome.fewshot.classifier import FewShotClassifier
from crome.fewshot.folds import splits
from crome.fewshot.samples import Samples, tensor_like


@dataclass(repr=False, eq=False, kw_only=True)
class LinearProbeClassifier(FewShotClassifier):
    """scikit-learn's logistic regression on unit image features; C chosen on validation images.

    Args:
        class_features: Accepted for symmetry; only their number is used.
        classes: Labels, when some have no images.
        logit_scale: Unused, for symmetry.
        Cs: Inverse penalties to try.
        random_state: Seed of the folds.
        device: The device to predict on, such as ``cuda``; by default the CPU, where it learns.

    Attributes:
        classes_: Sorted labels.
        coef_: Coefficients of the classes with images, (n_seen, width); others are never predicted.
        intercept_: (n_seen,).
        C_: Chosen inverse penalty.
        temperature_: Divides the logits in ``predict_proba``.
        validation_accuracy_: Accuracy of the chosen penalty; NaN without validation images.
    """

    Cs: Sequence[float] = (1.0, 10.0, 100.0)
    random_state: int | np.random.RandomState | None = 0

    def _learn(self, shots: Samples, val: Samples | None) -> None:
        n = int(self.seen_.sum())
        pairs = [
            (split.train(), split.test())
            for split in splits(shots, val, cross=True, seed=self.seed_)
        ]
        self.C_, self.validation_accuracy_, self.temperature_ = 10.0, float("nan"), 1.0
        labels = torch.cat([test.labels for _, test in pairs] or [shots.labels])
        best = -1.0
        for C in self.Cs if pairs else ():
            held_out = []
            for train, test in pairs:
                # The same C as for all images, as scikit-learn's own search has it: a penalty that
                # is the same per image measured a little worse.
                coef, intercept = _regress(train, n, C)
                held_out.append(test.image @ coef.T + intercept)
            logits = torch.cat(held_out)
            accuracy = float((logits.argmax(1) == labels).double().mean())
            if accuracy > best:
                best, self.C_, self.validation_accuracy_ = accuracy, C, accuracy
                self._calibrate(torch.zeros_like(logits), logits, labels)
        coef, intercept = _regress(shots, n, self.C_)
        self.coef_, self.intercept_ = coef.contiguous().cpu().numpy(), intercept.cpu().numpy()

    def logits(self, samples: Samples) -> Tensor:
        """Log-odds, (n, N); minus infinity for classes without images."""
        coef = tensor_like(self.coef_, samples.image)
        logits = coef.new_full((len(samples), len(self.classes_)), -torch.inf)
        intercept = tensor_like(self.intercept_, coef)
        logits[:, tensor_like(self.seen_, coef)] = samples.image @ coef.T + intercept
        return logits


def _regress(shots: Samples, n_classes: int, C: float) -> tuple[Tensor, Tensor]:
    """Coefficients (S, C') and intercepts (S,)."""
    rows = shots.image
    if n_classes == 1:
        return rows.new_zeros(1, rows.shape[1]), rows.new_zeros(1)
    weights = None if shots.weights is None else shots.weights.cpu().numpy()
    model = LogisticRegression(C=float(C), max_iter=300)
    model.fit(rows.cpu().numpy(), shots.labels.cpu().numpy(), weights)
    coef, intercept = tensor_like(model.coef_, rows), tensor_like(model.intercept_, rows)
    if n_classes == 2:  # scikit-learn keeps one row for two classes
        coef, intercept = torch.cat([-coef, coef]) / 2, torch.cat([-intercept, intercept]) / 2
    return coef, intercept
