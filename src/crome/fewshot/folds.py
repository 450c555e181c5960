"""Pairs of training and held-out images on which settings are selected."""

import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold

from crome.fewshot.samples import Samples

FOLDS = 4


def splits(
    shots: Samples, val: Samples | None, *, cross: bool, seed: int
) -> list[tuple[Samples, Samples]]:
    """Pairs (training, held-out); the first has the given validation images, if there are any.

    A fold trains on fewer images than the classifier itself will. Whoever carries settings from
    folds to the classifier has to bring the folds' evidence to the same scale first.

    Args:
        shots: Training images.
        val: Validation images, if any.
        cross: Whether to add cross-validation folds of the shots to validation images that are no
            more than the shots. Without validation images the folds are all there is, and with
            one image in some class there are none.
        seed: Of the shuffle.
    """
    pairs = [] if val is None else [(shots, val)]
    fewest = int(torch.bincount(shots.labels)[shots.labels.unique()].min())
    if fewest < 2 or not (val is None or (cross and len(val) <= len(shots))):
        return pairs
    splitter = StratifiedKFold(min(FOLDS, fewest), shuffle=True, random_state=seed)
    for train, test in splitter.split(np.zeros(len(shots)), shots.labels.cpu().numpy()):
        rows = [torch.from_numpy(part).to(shots.labels.device) for part in (train, test)]
        pairs.append((shots[rows[0]], shots[rows[1]]))
    return pairs
