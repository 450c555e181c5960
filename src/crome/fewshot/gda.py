"""Gaussian discriminant analysis beside the zero-shot classifier (GDA-CLIP, ICLR 2024).

Needs no training and one inverse: the baseline that a trained cache has to beat at 8 to 16 shots.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crome.fewshot.base import FewShotClassifier, Samples, splits, within_class_scatter
from crome.fewshot.search import (
    Choice,
    FixedProblem,
    Selection,
    held_out,
    search,
)

UNSEARCHED = Choice((0.0, 0.0), 1.0, float("nan"))


@dataclass(repr=False, eq=False, kw_only=True)
class GDAClassifier(FewShotClassifier):
    """Zero-shot logits + α × the logits of Gaussians that share one covariance.

    With class means μ and the precision P of the pooled within-class covariance, class c's
    evidence is f·Pμ_c − ½ μ_c·Pμ_c. P is the published ridge estimate
    C' ((n − 1) Σ + tr(Σ) I)⁻¹, well defined with a single image per class.

    Args:
        class_features: Text features, (n_classes, width), rows in sorted label order, or None.
        classes: Label of each row of ``class_features``.
        logit_scale: Factor on the image-text cosine.
        alphas: Weights of the Gaussian evidence to try; by default a range relative to its spread.
        selection: ``log_loss`` or, as published, ``accuracy`` on the validation images.
        random_state: Seed of the folds.

    Attributes:
        classes_: Sorted labels.
        weights_: Pμ of the classes with images, (n_seen, width).
        offsets_: −½ μ·Pμ, (n_seen,).
        alpha_: Chosen weight.
        temperature_: Divides the logits in ``predict_proba``.
        validation_accuracy_: Of the chosen weight; NaN without validation images.
    """

    alphas: Sequence[float] | None = None
    selection: Selection = "log_loss"
    random_state: int = 0

    def _learn(self, shots: Samples, val: Samples | None) -> None:
        n = int(self.seen_.sum())
        problems = []
        for train, test in splits(shots, val, cross=True, seed=self.random_state):
            weights, offsets = gaussians(train, n)
            evidence = test.image @ weights.T + offsets
            problems.append(FixedProblem(test.zero_shot, evidence, test.labels))
        choice = (
            search(problems, [(0.0, 0.0)], self.alphas, self.selection) if problems else UNSEARCHED
        )
        self.alpha_, self.validation_accuracy_ = choice.alpha, choice.accuracy
        weights, offsets = gaussians(shots, n)
        self.weights_, self.offsets_ = weights.numpy(), offsets.numpy()
        self._calibrate(*held_out(problems, choice))

    def evidence(self, samples: Samples) -> Tensor:
        """What the Gaussians say, (n, S)."""
        weights = torch.from_numpy(self.weights_).to(samples.image.dtype)
        return samples.image @ weights.T + torch.from_numpy(self.offsets_).to(weights.dtype)


def gaussians(shots: Samples, n_classes: int) -> tuple[Tensor, Tensor]:
    """Weights Pμ (N, C') and offsets −½ μ·Pμ (N,) of Gaussians with one covariance.

    All views of an image count as images, as in the published code.
    """
    means, scatter, n = within_class_scatter(shots, n_classes)
    width = scatter.shape[0]
    trace = scatter.trace() / max(n - 1, 1)
    if trace <= 0:  # one image per class: nothing to learn about spread
        trace = torch.full_like(trace, width)
    ridge = scatter + trace * torch.eye(width, dtype=scatter.dtype)
    weights = width * torch.linalg.solve(ridge, means.T).T
    return weights, -(means * weights).sum(1) / 2
