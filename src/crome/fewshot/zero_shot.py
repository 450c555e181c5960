"""The classifier that needs no image: the class whose text is most similar."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from crome.fewshot.base import FewShotClassifier, Samples, mean_rows


@dataclass(repr=False, eq=False, kw_only=True)
class ZeroShotClassifier(FewShotClassifier):
    """Cosine to class features; with none, to the mean of each class's images (nearest centroid).

    Args:
        class_features: Text features, (n_classes, width), rows in sorted label order, or None.
        classes: Label of each row of ``class_features``.
        logit_scale: Factor on the cosine; 100 is CLIP's.

    Attributes:
        classes_: Sorted labels.
        temperature_: Divides the logits in ``predict_proba``; fitted on validation images.
    """

    def _learn(self, shots: Samples, val: Samples | None) -> None:
        self.centroids_ = class_centroids(shots.image, shots.labels, int(self.seen_.sum())).numpy()
        held_out = shots if val is None else val
        self._calibrate(held_out.zero_shot, self.logits(held_out), held_out.labels)

    def logits(self, samples: Samples) -> Tensor:
        """Cosines, scaled, (n, N)."""
        if self.text_.shape[1]:
            return samples.zero_shot
        centroids = torch.from_numpy(self.centroids_).to(samples.image.dtype)
        return self.logit_scale * samples.image @ centroids.T


def class_centroids(rows: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """Normalised class means (N, C) of unit rows (n, C); a class without rows gets zeros."""
    return normalize(mean_rows(rows, labels, n_classes), dim=1)
