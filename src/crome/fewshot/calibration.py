"""Probabilities from logits: the temperature, and how far they are from observed accuracies."""

from functools import cache

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

ROWS = 1 << 22  # logits in one exponential: they bound the memory that calibration takes


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature, from 2⁻⁸ to 2⁸ of the logits' spread, with the least log-loss.

    One more image is imagined, which could be of any class: without it a few images that are all
    classified right would make the classifier certain. The loss is convex in the inverse
    temperature, so a search by thirds over the grid of 129 finds its least value.

    Args:
        logits: (n, N).
        labels: (n,).
    """
    if logits.shape[1] < 2:
        return 1.0
    spread = float(logits.std(1, correction=0).mean()) or 1.0
    true = logits.gather(1, labels[:, None])[:, 0].double().sum()
    mean = logits.mean(1).double().mean()

    @cache
    def loss(step: int) -> float:
        temperature = spread * 2.0 ** (step / 8)
        blocks = logits.split(max(1, ROWS // logits.shape[1]))
        total = torch.cat([torch.logsumexp(b / temperature, 1) for b in blocks]).double()
        return float(total.sum() - true / temperature + total.mean() - mean / temperature)

    low, high = -64, 64
    while high - low > 2:
        third = (high - low) // 3
        if loss(low + third) <= loss(high - third):
            high -= third
        else:
            low += third
    return spread * 2.0 ** (min(range(low, high + 1), key=loss) / 8)


def expected_calibration_error(
    probabilities: NDArray[np.floating], y: ArrayLike, bins: int = 15
) -> float:
    """Mean gap between confidence and accuracy over equally wide bins (arXiv 1706.04599, eq. 3).

    Args:
        probabilities: (n, N).
        y: Column index of the true class, (n,).
        bins: Number of confidence bins.
    """
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == np.asarray(y)
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(index, right, bins) - np.bincount(index, confidence, bins)
    return float(np.abs(gaps).sum() / len(confidence))
