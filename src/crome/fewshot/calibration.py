"""Probabilities from logits: the temperature, and how far they are from observed accuracies."""

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

STEPS, SOME = 64, 1024
ROWS = 1 << 22  # logits in one exponential: they bound the memory that calibration takes


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature, from 2⁻⁸ to 2⁸ of the logits' spread, with the least log-loss.

    One more image is imagined, which could be of any class: without it a few images that are all
    classified right would make the classifier certain. The loss is convex in the inverse
    temperature, so that going downhill on the grid of 129 finds its least value; a search by thirds
    on some of the rows finds where to start.

    Args:
        logits: (n, N).
        labels: (n,).
    """
    if logits.shape[1] < 2:
        return 1.0
    spread = float(logits.std(1, correction=0).mean()) or 1.0
    some = slice(None, None, max(1, len(logits) // SOME))
    low, high, rough = -STEPS, STEPS, _loss(logits[some], labels[some], spread)
    while high - low > 2:
        third = (high - low) // 3
        if rough(low + third) <= rough(high - third):
            high -= third
        else:
            low += third
    loss = _loss(logits, labels, spread)
    step = min(range(low, high + 1), key=loss)
    for way in (-1, 1):
        while abs(step + way) <= STEPS and loss(step + way) < loss(step):
            step += way
    return spread * 2.0 ** (step / 8)


def _loss(logits: Tensor, labels: Tensor, spread: float) -> Callable[[int], float]:
    """The log-loss, one imagined image included, at temperatures of 2^(step / 8) spreads."""
    true = logits.gather(1, labels[:, None])[:, 0].double().sum()
    mean = logits.mean(1).double().mean()
    blocks = logits.split(max(1, ROWS // logits.shape[1]))

    @cache
    def loss(step: int) -> float:
        temperature = spread * 2.0 ** (step / 8)
        total = torch.cat([torch.logsumexp(b / temperature, 1) for b in blocks]).double()
        return float(total.sum() - true / temperature + total.mean() - mean / temperature)

    return loss


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
