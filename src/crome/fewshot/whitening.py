"""Image features in units of their spread within classes. Not part of the paper."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from crome.fewshot.samples import Samples, mean_rows, whole_and_views, within_class_scatter


@dataclass(frozen=True)
class Whitening:
    """Image features in units of their spread within classes, as unit rows.

    Directions in which images of one class differ say little about the class; the inverse
    covariance of discriminant analysis discounts them, a cosine does not. With Σ the pooled
    within-class covariance and τ its mean variance, rows x become L⁻¹(x − g), normalised, for
    LLᵀ = Σ + τI and g the mean of the class means.

    Attributes:
        mean: g, (C',).
        factor: L, (C', C'), lower triangular.
    """

    mean: Tensor
    factor: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """Whiten rows (n, C'), as unit rows."""
        return normalize(self.coordinates(rows), dim=1)

    def coordinates(self, rows: Tensor) -> Tensor:
        """Whiten rows (n, C') and keep their lengths."""
        factor = self.factor.to(rows.dtype)
        centred = (rows - self.mean.to(rows.dtype)).T
        return torch.linalg.solve_triangular(factor, centred, upper=False).T


def fit_whitening(shots: Samples, n_classes: int, spread: float = 0.0) -> tuple[Whitening, Tensor]:
    """The spread within classes over all views of the shots, and whitened class means (N, C').

    ``spread`` is the trace of the covariance within classes, for shots that show none: one view of
    one image per class, as in a fold of two images per class. 0 for unknown.
    """
    means = mean_rows(whole_and_views(shots), shots.labels, n_classes, shots.weights)
    _, scatter, total = within_class_scatter(shots, n_classes)
    width = scatter.shape[0]
    covariance = scatter / total
    ridge = covariance.trace() / width
    if ridge <= 0:
        ridge = torch.full_like(ridge, spread / width or 1.0)
    eye = torch.eye(width, dtype=scatter.dtype, device=scatter.device)
    whitening = Whitening(means.mean(0), torch.linalg.cholesky(covariance + ridge * eye))
    return whitening, whitening.coordinates(means)
