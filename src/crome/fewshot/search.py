"""Choose γ, α and β on validation images, touching every affinity once.

Three facts make the search cheap, each exact:

* exp(−β(1−A)) with A = γ s + (1−γ) a splits into an image factor that depends on b = βγ alone and
  a per-class text factor that depends on t = β(1−γ) alone. A grid over (b, t) is a grid over
  (β, γ), and the exponential over all cache entries is taken once per b.
* Per class, that exponential is summed, never multiplied with a one-hot matrix.
* Logits are linear in α. A query is classified right exactly on an interval of α, so one pass over
  the classes yields the accuracy at every α.

Legend: B queries, M cache entries, N classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

BLOCK = 1 << 23  # affinities in memory at a time: 32 MB in fp32
TILE = 1 << 19  # affinities per exponential: they stay in the processor's cache


@dataclass
class Problem:
    """Queries with known classes and the cache that is to classify them.

    Attributes:
        zero_shot: Zero-shot logits, (B, N).
        features: Queries in the cache's space, (B, C).
        keys: (M, C), sorted by class.
        counts: Cache entries of each class, (N,), summing to M.
        targets: Class of each query, (B,).
        text: Text affinity, (B, N), or None without a text cache.
        gamma: Share of the image cache of each query, (B, 1); None when it is searched.
    """

    zero_shot: Tensor
    features: Tensor
    keys: Tensor
    counts: Tensor
    targets: Tensor
    text: Tensor | None = None
    gamma: Tensor | None = None
    slots: Tensor | None = field(init=False, default=None)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of queries with their image distance 1 − s, (b, M)."""
        rows = max(1, BLOCK // max(1, len(self.keys)))
        for start in range(0, len(self.features), rows):
            block = slice(start, start + rows)
            distance = 1 - self.features[block] @ self.keys.T
            yield block, distance if self.gamma is None else distance * self.gamma[block]

    def text_distance(self, block: slice) -> Tensor | None:
        """1 − a of a block, (b, N)."""
        if self.text is None:
            return None
        distance = 1 - self.text[block]
        return distance if self.gamma is None else distance * (1 - self.gamma[block])


@dataclass(frozen=True)
class Choice:
    """What the search found.

    Attributes:
        sharpness: (b, t): the image's and the text's share of β.
        alpha: Weight of the cache.
        accuracy: On the validation queries.
    """

    sharpness: tuple[float, float]
    alpha: float
    accuracy: float

    @property
    def beta(self) -> float:
        """β = b + t."""
        return sum(self.sharpness)

    @property
    def gamma(self) -> float:
        """γ = b / (b + t), 1 for a cache that is flat in both."""
        return self.sharpness[0] / self.beta if self.beta else 1.0


def class_evidence(distance: Tensor, counts: Tensor, sharpness: float) -> Tensor:
    """Σ over a class's entries of exp(−b · distance).

    Args:
        distance: (B, M), entries sorted by class.
        counts: Entries of each class, (N,).
        sharpness: b.

    Returns:
        (B, N).
    """
    out = distance.new_empty(len(distance), len(counts))
    shots = int(counts[0]) if len(counts) else 0
    even = shots > 0 and bool((counts == shots).all())
    rows = max(1, TILE // max(1, distance.shape[1]))
    labels = None if even else torch.repeat_interleave(torch.arange(len(counts)), counts)
    for start in range(0, len(distance), rows):
        tile = torch.exp(distance[start : start + rows] * -sharpness)
        if even:
            torch.sum(tile.view(len(tile), -1, shots), -1, out=out[start : start + rows])
        else:
            out[start : start + rows] = 0
            out[start : start + rows].index_add_(1, labels, tile)
    return out


def alpha_intervals(zero_shot: Tensor, evidence: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Find the open interval of α in which each query is classified right.

    The true class y beats class c when (Z_y − Z_c) + α (E_y − E_c) > 0: one bound on α per c.

    Args:
        zero_shot: Z, (B, N).
        evidence: E, (B, N).
        targets: (B,).

    Returns:
        Lower and upper ends, (B,) each; lower ≥ upper where no α > 0 is right.
    """
    index = targets[:, None]
    zero_gap = zero_shot.gather(1, index) - zero_shot  # (B, N)
    gap = evidence.gather(1, index) - evidence
    bound = -zero_gap / gap  # ±inf or NaN where the gap is 0
    infinite = float("inf")
    lower = torch.where(gap > 0, bound, -infinite)
    upper = torch.where(gap < 0, bound, infinite)
    lost = (gap == 0) & (zero_gap <= 0)
    lost.scatter_(1, index, False)
    lower = torch.where(lost, infinite, lower)
    lower.scatter_(1, index, -infinite)
    upper.scatter_(1, index, infinite)
    return lower.amax(1), upper.amin(1)


def hits(zero_shot: Tensor, evidence: Tensor, targets: Tensor, alphas: Tensor) -> Tensor:
    """Queries classified right at each α.

    Args:
        zero_shot: (B, N).
        evidence: (B, N).
        targets: (B,).
        alphas: Increasing, (A,).

    Returns:
        Counts, (A,).
    """
    lower, upper = alpha_intervals(zero_shot, evidence, targets)
    right = lower < upper
    first = torch.searchsorted(alphas, lower[right].contiguous(), right=True)  # first α > lower
    last = torch.searchsorted(alphas, upper[right].contiguous())  # first α ≥ upper
    change = torch.bincount(first, minlength=len(alphas) + 1)
    change -= torch.bincount(torch.maximum(first, last), minlength=len(alphas) + 1)
    return change.cumsum(0)[:-1]


def count_hits(
    problem: Problem, sharpness: Sequence[tuple[float, float]], alphas: Tensor
) -> Tensor:
    """Queries classified right for every (b, t) and every α.

    Args:
        problem: Queries and cache.
        sharpness: Pairs (b, t), sorted.
        alphas: Increasing, (A,).

    Returns:
        (len(sharpness), A).
    """
    table = torch.zeros(len(sharpness), len(alphas), dtype=torch.long)
    for block, distance in problem.blocks():
        text = problem.text_distance(block)
        at = 0
        for b, pairs in groupby(sharpness, key=lambda pair: pair[0]):
            evidence = class_evidence(distance, problem.counts, b)
            for _, t in pairs:
                gated = evidence if text is None or t == 0 else evidence * torch.exp(-t * text)
                table[at] += hits(
                    problem.zero_shot[block], gated, problem.targets[block], alphas
                )
                at += 1
    return table


def search(
    problems: Sequence[Problem], sharpness: Sequence[tuple[float, float]], alphas: Sequence[float]
) -> Choice:
    """Pick the (γ, α, β) that classifies most validation queries right.

    Few validation images leave many settings equal. Among those the most central one is taken:
    the setting whose neighbourhood on the grid does best too.

    Args:
        problems: One for a validation set; one per fold for cross-validation.
        sharpness: Pairs (b, t) to try.
        alphas: Values of α to try.

    Returns:
        The choice.
    """
    pairs = sorted(sharpness)
    grid = torch.tensor(sorted(alphas), dtype=problems[0].zero_shot.dtype)
    table = sum(count_hits(problem, pairs, grid) for problem in problems)
    total = sum(len(problem.targets) for problem in problems)
    assert isinstance(table, Tensor)
    pair, column = divmod(int(_central(table.double()).argmax()), len(grid))
    return Choice(pairs[pair], float(grid[column]), float(table[pair, column]) / max(1, total))


def _central(table: Tensor) -> Tensor:
    """Break ties in favour of settings whose neighbours in α are good too, (P, A) to (P, A)."""
    window = table.shape[1] // 4 * 2 + 1
    padded = torch.nn.functional.pad(table[:, None], (window // 2,) * 2, mode="replicate")
    smooth = torch.nn.functional.avg_pool1d(padded, window, stride=1)[:, 0]
    return table + smooth / (table.max() + 1) / 2


def problem_logits(problem: Problem, choice: Choice) -> Tensor:
    """Logits of a problem's queries at the chosen settings, (B, N)."""
    b, t = choice.sharpness
    parts = [torch.zeros_like(problem.zero_shot[:0])]
    for block, distance in problem.blocks():
        evidence = class_evidence(distance, problem.counts, b)
        text = problem.text_distance(block)
        if text is not None:
            evidence = evidence * torch.exp(-t * text)
        parts.append(problem.zero_shot[block] + choice.alpha * evidence)
    return torch.cat(parts)


def choose_alpha(
    candidates: Sequence[tuple[Tensor, Tensor, Tensor]], alphas: Sequence[float]
) -> tuple[float, float]:
    """Pick α for evidence that has no sharpness.

    Args:
        candidates: Zero-shot logits (B, N), evidence (B, N) and targets (B,) of each problem.
        alphas: Values to try.

    Returns:
        α and the accuracy there.
    """
    grid = torch.tensor(sorted(alphas), dtype=candidates[0][0].dtype)
    table = torch.zeros(1, len(grid), dtype=torch.long)
    for zero_shot, evidence, targets in candidates:
        table += hits(zero_shot, evidence, targets, grid)
    column = int(_central(table.double()).argmax())
    total = sum(len(targets) for *_, targets in candidates)
    return float(grid[column]), float(table[0, column]) / max(1, total)
