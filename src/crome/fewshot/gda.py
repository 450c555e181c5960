"""Gaussian discriminant analysis beside the zero-shot classifier (GDA-CLIP, ICLR 2024).

Needs no training and one inverse: the baseline that a trained cache has to beat at 8 to 16 shots.
"""

from collections.abc import Sequence

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from crome.fewshot.base import FewShotClassifier, Samples, folds
from crome.fewshot.search import choose_alpha

ALPHAS = tuple(1e-3 * 1.15**i for i in range(100))  # 0.001 to 1,020


class GDAClassifier(FewShotClassifier):
    """Zero-shot logits + α × the logits of Gaussians that share one covariance.

    With class means μ and the precision P of the pooled within-class covariance, class c's
    evidence is f·Pμ_c − ½ μ_c·Pμ_c. P is the published ridge estimate
    C' ((n − 1) Σ + tr(Σ) I)⁻¹, well defined with a single image per class.

    Args:
        class_features: Text features, (n_classes, width), rows in sorted label order, or None.
        classes: Label of each row of ``class_features``.
        logit_scale: Factor on the image-text cosine.
        alphas: Weights of the Gaussian evidence to try.
        random_state: Seed of the folds.

    Attributes:
        classes_: Sorted labels.
        weights_: Pμ, (n_classes, width).
        offsets_: −½ μ·Pμ, (n_classes,).
        alpha_: Chosen weight.
        temperature_: Divides the logits in ``predict_proba``.
        validation_accuracy_: Of the chosen weight; NaN without validation images.
    """

    def __init__(
        self,
        class_features: ArrayLike | None = None,
        *,
        classes: ArrayLike | None = None,
        logit_scale: float = 100.0,
        alphas: Sequence[float] = ALPHAS,
        random_state: int = 0,
    ) -> None:
        self.class_features = class_features
        self.classes = classes
        self.logit_scale = logit_scale
        self.alphas = alphas
        self.random_state = random_state

    def _learn(self, shots: Samples, val: Samples | None) -> None:
        n = len(self.classes_)
        splits = [(shots, val)] if val is not None else [
            (shots[train], shots[test]) for train, test in folds(shots.labels, self.random_state)
        ]
        problems = []
        for train, test in splits:
            weights, offsets = gaussians(train, n)
            problems.append((test.zero_shot, test.image @ weights.T + offsets, test.labels))
        self.alpha_, self.validation_accuracy_ = 1.0, float("nan")
        if problems and self.text_.shape[1]:
            self.alpha_, self.validation_accuracy_ = choose_alpha(problems, self.alphas)
        weights, offsets = gaussians(shots, n)
        self.weights_, self.offsets_ = weights.numpy(), offsets.numpy()
        if problems:
            zero_shot, evidence, labels = map(torch.cat, zip(*problems, strict=True))
            self._calibrate(zero_shot + self.alpha_ * evidence, labels)
        else:
            self.temperature_ = 1.0

    def _evidence(self, samples: Samples) -> Tensor:
        weights = torch.from_numpy(self.weights_).to(samples.image.dtype)
        return samples.image @ weights.T + torch.from_numpy(self.offsets_).to(weights.dtype)


def gaussians(shots: Samples, n_classes: int) -> tuple[Tensor, Tensor]:
    """Weights Pμ (N, C') and offsets −½ μ·Pμ (N,) of Gaussians with one covariance.

    All views of an image count as images, as in the published code. A class without images gets
    zero weights.
    """
    parts = shots.views[1:] or (shots,)
    rows, labels = torch.cat([p.image for p in parts]), torch.cat([p.labels for p in parts])
    counts = torch.bincount(labels, minlength=n_classes).clamp_min(1)[:, None]
    means = rows.new_zeros(n_classes, rows.shape[1]).index_add(0, labels, rows) / counts
    scatter = (rows - means[labels]).T @ (rows - means[labels])
    width, total = rows.shape[1], max(len(rows) - 1, 1)
    trace = scatter.trace() / total
    if trace <= 0:  # one image per class: nothing to learn about spread
        trace, scatter = means.new_ones(()) * width, torch.zeros_like(scatter)
    ridge = scatter + trace * torch.eye(width, dtype=rows.dtype)
    weights = width * torch.linalg.solve(ridge, means.T).T
    return weights, -(means * weights).sum(1) / 2
