"""Classes without images: what stands in for the evidence that no image gives.

A class known by its text alone has no evidence, and with none it never wins: evidence only adds to
the others. It gets the mean of the others plus an offset in units of their spread. The offset is
chosen by pretending of each class in turn that it has no images (calibrated stacking, arXiv
1605.04253, with the constant taken per query).

Legend: B queries, N classes, S classes with images.
"""

import torch
from torch import Tensor

OFFSETS = tuple(i / 4 for i in range(-8, 25))
UNCHOSEN = 1.0  # without validation images: as likely as a class one deviation above the mean
ROWS = 1 << 21  # values in one block of queries: they bound the memory that the choice takes


def fill_unseen(evidence: Tensor, seen: Tensor, offset: float) -> Tensor:
    """Evidence for all classes (B, N) from that for the S seen ones, which have images."""
    if evidence.shape[1] == len(seen):
        return evidence
    stand_in = evidence.mean(1) + offset * evidence.std(1, correction=0)
    filled = stand_in[:, None].repeat(1, len(seen))
    filled[:, seen] = evidence
    return filled


def choose_offset(zero_shot: Tensor, evidence: Tensor, targets: Tensor) -> float:
    """The offset with the best harmonic mean of accuracies on pretended unseen and seen classes.

    Logits and evidence, weighted by α, are those of held-out queries, (B, S).
    """
    n = evidence.shape[1]
    if n < 3 or not len(targets):  # a spread needs two classes beside the one left out
        return UNCHOSEN
    offsets = torch.tensor(OFFSETS, dtype=evidence.dtype, device=evidence.device)
    unseen = torch.zeros(len(OFFSETS), dtype=torch.long, device=evidence.device)
    seen = torch.zeros_like(unseen)
    rows = max(1, ROWS // n)
    for block in zip(zero_shot.split(rows), evidence.split(rows), targets.split(rows), strict=True):
        right_unseen, right_seen = _count_right(*block, offsets)
        unseen += right_unseen
        seen += right_seen
    of_unseen, of_seen = unseen / len(targets), seen / (len(targets) * (n - 1))
    harmonic = 2 * of_unseen * of_seen / (of_unseen + of_seen).clamp_min(1e-12)
    return float(offsets[harmonic == harmonic.max()].mean())


def _count_right(
    zero_shot: Tensor, evidence: Tensor, targets: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor]:
    """Queries right at each offset: those of the pretended class, and those of the others."""
    n = evidence.shape[1]
    classes = torch.arange(n, device=targets.device)
    own = targets[:, None] == classes  # (B, S)
    top = (zero_shot + evidence).topk(2, 1)
    first = top.indices[:, :1] == classes  # the class is the query's best
    best = torch.where(first, top.values[:, 1:], top.values[:, :1])  # among all other classes
    winner = torch.where(first, top.indices[:, 1:], top.indices[:, :1])
    mean = (evidence.sum(1, keepdim=True) - evidence) / (n - 1)
    centred = evidence - evidence.mean(1, keepdim=True)  # the spread is the same, and exact
    square = (centred.square().sum(1, keepdim=True) - centred.square()) / (n - 1)
    shifted = mean - evidence.mean(1, keepdim=True)
    spread = (square - shifted.square()).clamp_min(1e-24).sqrt()
    needed = (best - zero_shot - mean) / spread  # above this offset, the pretended class wins
    stays = ~own & (winner == targets[:, None])  # right as long as the pretended class loses
    return _below(needed[own], offsets), stays.sum() - _below(needed[stays], offsets)


def _below(values: Tensor, limits: Tensor) -> Tensor:
    return torch.searchsorted(values.sort().values, limits)
