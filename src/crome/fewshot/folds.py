"""Pairs of training and held-out images on which settings are selected."""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from crome.fewshot.samples import Samples

FOLDS = 4


@dataclass(frozen=True)
class Split:
    """Training images and held-out ones, copied out of all shots when they are asked for.

    Attributes:
        shots: All training images.
        val: Validation images beside them; or None for a fold.
        kept: Of a fold, the rows of the shots that train.
        left: Of a fold, the rows that are held out.
    """

    shots: Samples
    val: Samples | None = None
    kept: Tensor | None = None
    left: Tensor | None = None

    @property
    def whole(self) -> bool:
        """Whether all shots train."""
        return self.kept is None

    def train(self) -> Samples:
        """The images that train."""
        return self.shots if self.kept is None else self.shots[self.kept]

    def test(self) -> Samples:
        """The images that are held out."""
        if self.val is not None:
            return self.val
        assert self.left is not None
        return self.shots[self.left]


def splits(shots: Samples, val: Samples | None, *, cross: bool, seed: int) -> list[Split]:
    """Training and held-out images; the first has the validation images, if there are any.

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
    found = [] if val is None else [Split(shots, val)]
    fewest = int(torch.bincount(shots.labels)[shots.labels.unique()].min())
    if fewest < 2 or not (val is None or (cross and len(val) <= len(shots))):
        return found
    splitter = StratifiedKFold(min(FOLDS, fewest), shuffle=True, random_state=seed)
    for train, test in splitter.split(np.zeros(len(shots)), shots.labels.cpu().numpy()):
        kept, left = (torch.from_numpy(part).to(shots.labels.device) for part in (train, test))
        found.append(Split(shots, None, kept, left))
    return found
