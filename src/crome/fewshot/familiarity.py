"""Pictures of none of the classes: how familiar a picture is, compared with held-out ones.

The familiarity of a picture is its largest cosine to a class's mean image. It is compared with the
familiarities of the training images, each with its own class's mean taken over the others, so that
they count as held out. The share of them that are no more familiar is a conformal p-value: a
picture like the training images falls below p with a probability of about p.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from crome.fewshot.samples import Samples, mean_rows


def leave_one_out_cosines(shots: Samples, n_classes: int) -> tuple[Tensor, Tensor]:
    """Cosines to class centroids (m, S), a shot's own class without the shot itself.

    Shots without others of their class are left out; the second value is the rest's index, (m,).
    """
    rows, labels = shots.image, shots.labels
    weights = torch.ones_like(rows[:, 0]) if shots.weights is None else shots.weights.to(rows.dtype)
    means = mean_rows(rows, labels, n_classes, weights)
    sums = means * shots.counts[:, None]
    kept = torch.nonzero(torch.bincount(labels, minlength=n_classes)[labels] > 1)[:, 0]
    cosines = rows[kept] @ normalize(means, dim=1).T
    others = sums[labels[kept]] - rows[kept] * weights[kept, None]
    own = (rows[kept] * normalize(others, dim=1)).sum(1)
    return cosines.scatter(1, labels[kept, None], own[:, None]), kept


def conformal_ranks(familiarity: Tensor, held_out: Tensor) -> Tensor:
    """The share of sorted held-out images (m,), a picture itself added, that are no more familiar.

    One of each picture (n,), between 1 / (m + 1) and 1.
    """
    below = torch.searchsorted(held_out, familiarity.contiguous(), right=True)
    return (below + 1) / (len(held_out) + 1)
