"""The classifier that needs no image: the class whose text is most similar."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from crome.fewshot.classifier import FewShotClassifier
from crome.fewshot.familiarity import leave_one_out_cosines
from crome.fewshot.samples import Samples, mean_rows, tensor_like


@dataclass(repr=False, eq=False, kw_only=True)
class ZeroShotClassifier(FewShotClassifier):
    """Cosine to class features; with none, to the mean of each class's images (nearest centroid).

    Args:
        class_features: Text features, (n_classes, width), rows in sorted label order, or None.
        classes: Label of each row of ``class_features``.
        logit_scale: Factor on the cosine; 100 is CLIP's.
        device: The device to compute on, such as ``cuda``; by default the CPU.

    Attributes:
        classes_: Sorted labels.
        temperature_: Divides the logits in ``predict_proba``; fitted on validation images.
    """

    def _learn(self, shots: Samples, val: Samples | None) -> None:
        n = int(self.seen_.sum())
        centroids = class_centroids(shots.image, shots.labels, n, shots.weights)
        self.centroids_ = centroids.cpu().numpy()
        if val is None and not self.text_.shape[1]:
            # The shots made the centroids: each is compared with its own class's without itself.
            cosines, rows = leave_one_out_cosines(shots, n)
            logits, labels = float(self.logit_scale) * cosines, shots.labels[rows]
            self._calibrate(torch.zeros_like(logits), logits, labels)
            return
        held_out = shots if val is None else val
        logits = self.logits(held_out) if self.text_.shape[1] else self._image_logits(held_out)
        self._calibrate(held_out.zero_shot, logits, held_out.labels)

    def logits(self, samples: Samples) -> Tensor:
        """Cosines, scaled, (n, N)."""
        return samples.zero_shot if self.text_.shape[1] else self._image_logits(samples)

    def _image_logits(self, samples: Samples) -> Tensor:
        centroids = tensor_like(self.centroids_, samples.image)
        return float(self.logit_scale) * samples.image @ centroids.T


def class_centroids(
    rows: Tensor, labels: Tensor, n_classes: int, weights: Tensor | None = None
) -> Tensor:
    """Normalised class means (N, C) of unit rows (n, C); a class without rows gets zeros."""
    return normalize(mean_rows(rows, labels, n_classes, weights), dim=1)
