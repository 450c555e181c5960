"""Choose γ, α and β on validation images, touching every affinity once.

Three facts make the search cheap, each exact:

* The exponential over all cache entries is taken once for each sharpness of the image cache, not
  once for each pair of settings (see ``problems.py``).
* Per class, that exponential is summed, never multiplied with a one-hot matrix.
* Logits are linear in α. A query is classified right exactly on an interval of α, so one pass over
  the classes yields the accuracy at every α.

Legend: B queries, M cache entries, N classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from crome.fewshot.problems import TILE, AnyProblem, Problem, whole_evidence

RATIOS = tuple(2 ** (i / 2) for i in range(-14, 17))  # α relative to the spreads' ratio
TEMPERATURES = (0.1, 0.2, 0.4, 0.8, 1.6, 4.0)  # relative to the logits' spread
MAX_WORK = 1 << 28  # exponentials spent on log-losses
Selection = Literal["log_loss", "accuracy"]


@dataclass(frozen=True)
class Choice:
    """What the search found.

    Attributes:
        sharpness: (b, t): the image's and the text's share of β.
        alpha: Weight of the cache.
        accuracy: Share of the validation queries that are classified right.
        share: Factor of the prior evidence, where there is any.
    """

    sharpness: tuple[float, float]
    alpha: float
    accuracy: float
    share: float = 0.0

    @property
    def beta(self) -> float:
        """β = b + t."""
        return sum(self.sharpness)

    @property
    def gamma(self) -> float:
        """γ = b / (b + t), 1 for a cache that is flat in both."""
        return self.sharpness[0] / self.beta if self.beta else 1.0


def alpha_intervals(zero_shot: Tensor, evidence: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Find the open interval of α in which each query (B, N) is classified right: its ends, (B,).

    The true class y beats class c when (Z_y − Z_c) + α (E_y − E_c) > 0: one bound on α per c. The
    lower end is not below the upper one where no α > 0 is right.
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
    """How many queries (B, N) are classified right at each α of an increasing row (A,)."""
    lower, upper = alpha_intervals(zero_shot, evidence, targets)
    right = lower < upper
    first = torch.searchsorted(alphas, lower[right].contiguous(), right=True)  # first α > lower
    last = torch.searchsorted(alphas, upper[right].contiguous())  # first α ≥ upper
    change = torch.bincount(first, minlength=len(alphas) + 1)
    change -= torch.bincount(torch.maximum(first, last), minlength=len(alphas) + 1)
    return change.cumsum(0)[:-1]


def relative_alphas(problem: AnyProblem, pairs: Sequence[tuple[float, float]]) -> Tensor:
    """Values of α at which cache and zero-shot logits have comparable influence, (P, A).

    The size of the evidence changes by orders of magnitude with β, the shots and the encoder, so a
    fixed range of α is either too short or too coarse. Spread is the deviation over classes; the
    first block of queries sets the scale.
    """
    like = problem.zero_shot
    ratios = torch.tensor(RATIOS, dtype=like.dtype, device=like.device)
    block = next(problem.blocks())
    spread = _spread(problem.zero_shot[block])
    scales = [
        spread / _spread(evidence).clamp_min(1e-30) if spread > 0 else torch.ones_like(spread)
        for _, evidence in problem.evidence(block, pairs)
    ]
    return torch.stack(scales)[:, None] * ratios


def _spread(rows: Tensor) -> Tensor:
    return rows.std(1, correction=0).mean()


def count_hits(problem: AnyProblem, pairs: Sequence[tuple[float, float]], alphas: Tensor) -> Tensor:
    """How many queries are classified right at each sorted (b, t) and each of its α, (P, A)."""
    table = torch.zeros(alphas.shape, dtype=torch.long, device=alphas.device)
    for block in problem.blocks():
        for at, evidence in problem.evidence(block, pairs):
            table[at] += hits(
                problem.zero_shot[block], evidence, problem.targets[block], alphas[at]
            )
    return table


def log_losses(
    problem: AnyProblem,
    pairs: Sequence[tuple[float, float]],
    alphas: Tensor,
    cells: Tensor,
) -> Tensor:
    """Summed log-loss of some cells of the (P, A) grid at each temperature, (n, TEMPERATURES).

    Cells are sorted flat indices, (n,).
    """
    rows, columns = cells // alphas.shape[1], cells % alphas.shape[1]
    places = rows.unique().tolist()
    wanted = [pairs[place] for place in places]
    losses = problem.zero_shot.new_zeros(len(cells), len(TEMPERATURES))
    for block in problem.blocks():
        zero_shot, targets = problem.zero_shot[block], problem.targets[block]
        at_once = max(1, TILE // max(1, zero_shot.numel()))
        for at, evidence in problem.evidence(block, wanted):
            for some in torch.nonzero(rows == places[at])[:, 0].split(at_once):
                scale = alphas[places[at], columns[some]][:, None, None]
                losses[some] += _losses(zero_shot + scale * evidence, targets)
    return losses


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-loss (A, len(TEMPERATURES)) of logits (A, B, N), summed over the queries."""
    spread = logits.std(-1, correction=0).mean(1).clamp_min(1e-30)
    logits = logits / spread[:, None, None]
    true = logits.gather(2, targets.expand(len(logits), -1)[..., None])[..., 0]  # (A, B)
    return torch.stack(
        [(torch.logsumexp(logits / t, -1) - true / t).sum(1) for t in TEMPERATURES], 1
    )


def search(
    problems: Sequence[AnyProblem],
    pairs: Sequence[tuple[float, float]],
    alphas: Sequence[float] | None = None,
    selection: Selection = "log_loss",
) -> Choice:
    """Pick (γ, α, β) on validation queries.

    Few validation images leave many settings with equal accuracy, and which of them is taken
    decides the test accuracy. The log-loss, each setting at its best temperature, tells them apart.

    Args:
        problems: A validation set, folds of a cross-validation, or both.
        pairs: (b, t) to try.
        alphas: Values of α to try; by default a range relative to each problem's own spread.
        selection: ``log_loss`` picks the least log-loss, among the most accurate settings where
            the grid is too large to compare them all; ``accuracy``, the published rule, uses it
            for ties only.

    Returns:
        The choice; its α is for the first problem.
    """
    pairs = sorted(pairs)
    if alphas is None:
        grids = [relative_alphas(problem, pairs) for problem in problems]
    else:
        like = problems[0].zero_shot
        row = torch.tensor(sorted(map(float, alphas)), dtype=like.dtype, device=like.device)
        grids = [row.expand(len(pairs), -1)] * len(problems)
    table = torch.stack(
        [count_hits(problem, pairs, grid) for problem, grid in zip(problems, grids, strict=True)]
    ).sum(0)
    size = sum(problem.zero_shot.numel() for problem in problems) * len(TEMPERATURES)
    most = max(1, MAX_WORK // max(1, size))
    cells = table.flatten().argsort(descending=True, stable=True)[:most]
    if selection == "accuracy":
        cells = cells[table.flatten()[cells] == table.max()]
    cells = cells.sort().values
    cell = int(cells[0])
    if len(cells) > 1:
        losses = torch.stack(
            [log_losses(p, pairs, grid, cells) for p, grid in zip(problems, grids, strict=True)]
        ).sum(0)
        cell = int(cells[int(losses.amin(1).argmin())])
    pair, column = divmod(cell, table.shape[1])
    total = sum(len(problem.targets) for problem in problems)
    accuracy = int(table.flatten()[cell]) / max(1, total)
    share = pooled_share(problems, pairs[pair])
    return Choice(pairs[pair], float(grids[0][pair, column]), accuracy, share)


def pooled_share(problems: Sequence[AnyProblem], pair: tuple[float, float]) -> float:
    """Factor of the prior evidence, estimated on the queries of all."""
    cached = [p for p in problems if isinstance(p, Problem) and pair in p.shares]
    queries = sum(len(problem.targets) for problem in cached)
    if not queries:
        return 0.0
    return sum(len(problem.targets) * problem.shares[pair] for problem in cached) / queries


def problem_logits(problem: AnyProblem, choice: Choice) -> Tensor:
    """Logits of a problem's queries at the chosen settings, (B, N)."""
    return problem.zero_shot + choice.alpha * whole_evidence(problem, choice.sharpness)


def held_out(problems: Sequence[AnyProblem], choice: Choice) -> tuple[Tensor, Tensor, Tensor]:
    """Zero-shot logits, logits at the chosen settings and labels of the queries of all problems."""
    none = torch.zeros(0, device="cpu")
    rows = [(p.zero_shot, problem_logits(p, choice), p.targets) for p in problems]
    zero_shot, logits, targets = zip(*rows, strict=True) if rows else ([none], [none], [none])
    return torch.cat(zero_shot), torch.cat(logits), torch.cat(targets)
