"""Feature rows as the classifiers see them: checked, split, normalised, on one device.

A feature row has the encoder's joint image-text embedding in its first columns, as wide as the
class features; any further columns are image-only features.

Legend: n samples, N classes, C joint width, C' image width.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

TINY = 1e-6  # lengths below this are too near to what `normalize` takes for nothing


@dataclass
class Samples:
    """Checked, normalised samples.

    Attributes:
        joint: Unit rows in the image-text space, (n, C).
        image: Unit rows in the cache's space, (n, C').
        zero_shot: Zero-shot logits, (n, N); zeros without class features.
        labels: Class indices, (n,); empty when they are unknown.
        weights: How much each sample counts in learning, (n,); None for all alike.
        mean_view: The mean of each sample's raw augmented views, where there are views. Tip-Adapter
            caches it.
        views: The samples once for each augmented view.
    """

    joint: Tensor
    image: Tensor
    zero_shot: Tensor
    labels: Tensor
    weights: Tensor | None = None
    mean_view: "Samples | None" = None
    views: tuple["Samples", ...] = ()

    def __len__(self) -> int:
        return len(self.joint)

    def __getitem__(self, index: Tensor) -> "Samples":
        return Samples(
            self.joint[index],
            self.image[index],
            self.zero_shot[index],
            self.labels[index],
            None if self.weights is None else self.weights[index],
            None if self.mean_view is None else self.mean_view[index],
            tuple(view[index] for view in self.views),
        )

    def among(self, kept: Tensor) -> "Samples":
        """The samples of the kept classes (N,), with logits and labels among those."""
        if kept.all():
            return self
        return self[kept[self.labels]]._renumbered(kept)

    def _renumbered(self, kept: Tensor) -> "Samples":
        return replace(
            self,
            zero_shot=self.zero_shot[:, kept],
            labels=(kept.cumsum(0) - 1)[self.labels],
            mean_view=None if self.mean_view is None else self.mean_view._renumbered(kept),
            views=tuple(view._renumbered(kept) for view in self.views),
        )

    @property
    def counts(self) -> Tensor:
        """The summed weight of the samples of each class, (N,)."""
        return torch.bincount(
            self.labels, self.weights, minlength=self.zero_shot.shape[1]
        ).to(self.image.dtype)  # fmt: skip


def whole_and_views(shots: Samples) -> Tensor:
    """Unit rows (n, C'): each image counts as much as the mean of its views, if it has any.

    Queries are seen whole, never cropped or flipped; keys of views alone are a little off.
    """
    views = shots if shots.mean_view is None else shots.mean_view
    return normalize(shots.image + views.image, dim=1)


def mean_rows(rows: Tensor, labels: Tensor, n_classes: int, weights: Tensor | None) -> Tensor:
    """Weighted mean of the rows (n, C') of each class, (N, C'); a class without rows gets zeros."""
    if weights is not None:
        weights = weights.to(rows.dtype)
        rows = rows * weights[:, None]
    counts = torch.bincount(labels, weights, minlength=n_classes).to(rows.dtype)
    sums = rows.new_zeros(n_classes, rows.shape[1]).index_add(0, labels, rows)
    return sums / torch.where(counts > 0, counts, 1)[:, None]


def within_class_scatter(shots: Samples, n_classes: int) -> tuple[Tensor, Tensor, float]:
    """Class means (N, C'), scatter around them (C', C') and the rows' weight, over all views."""
    parts = shots.views or (shots,)
    rows, labels = torch.cat([p.image for p in parts]), torch.cat([p.labels for p in parts])
    weights = None if shots.weights is None else shots.weights.to(rows.dtype).repeat(len(parts))
    means = mean_rows(rows, labels, n_classes, weights)
    rest = rows - means[labels]
    total = len(rows) if weights is None else float(weights.sum())
    return means, rest.T @ (rest if weights is None else rest * weights[:, None]), total


def spread_within_classes(shots: Samples) -> float:
    """Trace of the covariance within classes, over all views; 0 where no class has two rows."""
    _, scatter, total = within_class_scatter(shots, shots.zero_shot.shape[1])
    return float(scatter.trace() / total)


def unit_rows(rows: Tensor) -> Tensor:
    """Rows of length 1; rows of zeros stay so, and no length is too small or too large."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    if not rows.shape[1] or bool(((norms > TINY) & norms.isfinite()).all()):
        return normalize(rows, dim=1)
    largest = rows.abs().amax(1, keepdim=True)
    return normalize(rows / torch.where(largest > 0, largest, 1), dim=1)


def as_array(values: Any) -> Any:
    """Tensors of any device and precision as arrays; other input as it is."""
    if not isinstance(values, Tensor):
        return values
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def tensor_like(array: NDArray[Any], like: Tensor) -> Tensor:
    """A stored array on the device, and floats in the precision, of a tensor."""
    tensor = torch.from_numpy(array)
    return (
        tensor.to(like.device, like.dtype) if tensor.is_floating_point() else tensor.to(like.device)
    )


def placed(tensor: Tensor, device: str | None) -> Tensor:
    """A tensor on a device; Apple's devices (mps) have no float64, so it becomes float32 there."""
    if device is None:
        return tensor
    if torch.device(device).type == "mps" and tensor.dtype == torch.float64:
        tensor = tensor.float()
    return tensor.to(device)
