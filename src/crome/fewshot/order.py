"""Class features in another order than the labels: the commonest mistake, and a silent one.

Rows must follow the sorted labels. Where they do not, the zero-shot classifier is wrong about the
shots in a consistent way: it takes nearly all images of one class for a second class, those of the
second for a third, and so on in a circle.
"""

import torch
from torch import Tensor

EVIDENCE = 8  # images: with fewer, such a circle arises by chance
AGREEMENT = 0.8


def misplaced(zero_shot: Tensor, labels: Tensor) -> list[tuple[int, int]]:
    """Pairs (class, row of class features that its images are nearest to) that form circles.

    Args:
        zero_shot: Zero-shot logits of the shots, (n, N).
        labels: (n,).

    Returns:
        The pairs; none where the order is right or cannot be told.
    """
    n = zero_shot.shape[1]
    votes = torch.bincount(labels * n + zero_shot.argmax(1), minlength=n * n).view(n, n)
    most = votes.max(1)
    moved = (most.indices != torch.arange(n, device=labels.device)) & (most.values > 0)
    images = int(votes[moved].sum())
    if images < EVIDENCE or most.values[moved].sum() < AGREEMENT * images:
        return []
    targets = most.indices[moved]
    if targets.sort().values.tolist() != torch.nonzero(moved)[:, 0].tolist():
        return []
    return list(zip(torch.nonzero(moved)[:, 0].tolist(), targets.tolist(), strict=True))
