"""Gaussian discriminant analysis beside the zero-shot classifier (GDA-CLIP, ICLR 2024).

Needs no training and one inverse: the baseline that a trained cache has to beat at 8 to 16 shots.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crome.fewshot.classifier import FewShotClassifier
from crome.fewshot.folds import splits
from crome.fewshot.problems import FixedProblem
from crome.fewshot.samples import Samples, spread_within_classes, tensor_like, within_class_scatter
from crome.fewshot.search import Choice, Selection, held_out, search


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
        device: The device to compute on, such as ``cuda``; by default the CPU.

    Attributes:
        classes_: Sorted labels.
        weights_: Pμ of the classes with images, (n_seen, width).
        offsets_: −½ μ·Pμ, (n_seen,).
        alpha_: Chosen weight.
        temperature_: Divides the logits in ``predict_proba``.
        validation_accuracy_: Accuracy of the chosen weight; NaN without validation images.
    """

    alphas: Sequence[float] | None = None
    selection: Selection = "log_loss"
    random_state: int | np.random.RandomState | None = 0

    def _learn(self, shots: Samples, val: Samples | None) -> None:
        n = int(self.seen_.sum())
        problems = []
        for split in splits(shots, val, cross=True, seed=self.seed_):
            train, test = split.train(), split.test()
            weights, offsets = gaussians(
                train, n, size=rows_weight(shots), spread=spread_within_classes(shots)
            )
            evidence = test.image @ weights.T + offsets
            problems.append(FixedProblem(test.zero_shot, evidence, test.labels))
        choice = Choice((0.0, 0.0), 1.0, float("nan"))
        if problems:
            choice = search(problems, [choice.sharpness], self.alphas, self.selection)
        self.alpha_, self.validation_accuracy_ = choice.alpha, choice.accuracy
        weights, offsets = gaussians(shots, n)
        self.weights_, self.offsets_ = weights.cpu().numpy(), offsets.cpu().numpy()
        self._calibrate(*held_out(problems, choice))

    def evidence(self, samples: Samples) -> Tensor:
        """The Gaussians' evidence for each class, (n, S)."""
        weights = tensor_like(self.weights_, samples.image)
        return samples.image @ weights.T + tensor_like(self.offsets_, weights)


def rows_weight(shots: Samples) -> float:
    """The summed weight of the rows behind the Gaussians; every view of an image is a row."""
    weight = len(shots) if shots.weights is None else float(shots.weights.sum())
    return weight * max(1, len(shots.views))


def gaussians(
    shots: Samples, n_classes: int, size: float | None = None, spread: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Weights Pμ (N, C') and offsets −½ μ·Pμ (N,) of Gaussians with one covariance.

    All views of an image count as images, as in the published code. ``size`` is the n of the
    published estimate. The size of the evidence and the strength of the ridge depend on it, so a
    fold is given the n of all images, and its settings then suit the whole classifier. ``spread``
    replaces the trace of the covariance within classes; 0 keeps that of the shots. A fold needs it
    where its few images show no spread within classes, or only that of the views of one image.
    """
    means, scatter, n = within_class_scatter(shots, n_classes)
    width = scatter.shape[0]
    trace = scatter.trace() / max(n - 1, 1)
    if spread > 0 and trace > 0:  # few images show less spread, views of one image hardly any
        scatter, trace = scatter * (spread / trace), torch.full_like(trace, spread)
    if size is not None:
        scatter = scatter * (max(size - 1, 1) / max(n - 1, 1))
    if trace <= 0:  # one image per class: nothing to learn about spread
        trace = torch.full_like(trace, spread or width)
    ridge = scatter + trace * torch.eye(width, dtype=scatter.dtype, device=scatter.device)
    weights = width * torch.linalg.solve(ridge, means.T).T
    return weights, -(means * weights).sum(1) / 2
