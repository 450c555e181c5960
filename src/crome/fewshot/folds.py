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
    """Training images and held-out ones, which are copied only when they are needed.

    Attributes:
        shots: All training images.
        source: Where the held-out images are: validation images, or the shots themselves.
        kept: The rows of the shots that train; None for all of them.
        left: The rows of the source that are held out; None for all of them.
    """

    shots: Samples
    source: Samples
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
        return self.source if self.left is None else self.source[self.left]


def splits(shots: Samples, val: Samples | None, *, cross: bool, seed: int) -> list[Split]:
    """Training and held-out images; the first has the validation images, if there are any.

    A fold trains on fewer images than the classifier itself will, so the evidence of folds must be
    brought to the same scale before settings are carried over.

    Without validation images there are only folds of the shots. With ``cross``, folds also join
    validation images that are not more than the shots. There are no folds where some class has a
    single image.
    """
    found = [] if val is None else [Split(shots, val)]
    fewest = int(torch.bincount(shots.labels)[shots.labels.unique()].min())
    if fewest < 2 or not (val is None or (cross and len(val) <= len(shots))):
        return found
    splitter = StratifiedKFold(min(FOLDS, fewest), shuffle=True, random_state=seed)
    for train, test in splitter.split(np.zeros(len(shots)), shots.labels.cpu().numpy()):
        kept, left = (torch.from_numpy(part).to(shots.labels.device) for part in (train, test))
        found.append(Split(shots, shots, kept, left))
    return found
