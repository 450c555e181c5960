"""Queries, and the evidence that a cache or a set of Gaussians has for each class of them.

exp(−β(1−A)) with A = γ s + (1−γ) a splits into an image factor that depends on b = βγ alone and a
per-class text factor that depends on t = β(1−γ) alone. A grid over (b, t) is a grid over (β, γ),
and the exponential over all cache entries is taken once per b.

Legend: B queries, M cache entries, N classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

BLOCK = 1 << 23  # affinities in memory at a time: 32 MB in fp32
KEPT = 1 << 24  # values of evidence kept for one problem: 64 MB in fp32
TILE = 1 << 19  # values per exponential: they stay in the processor's cache


class AnyProblem(Protocol):
    """What a search needs: zero-shot logits, targets, and evidence for each pair of settings."""

    zero_shot: Tensor
    targets: Tensor

    def blocks(self) -> Iterator[slice]:
        """Slices of queries whose evidence is made together."""

    def evidence(
        self, block: slice, pairs: Sequence[tuple[float, float]]
    ) -> Iterator[tuple[int, Tensor]]:
        """Index of each pair and the block's evidence (b, N)."""


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
        prior: Further evidence that is added to the cache's at equal spread, (B, N), or None.
        weights: How much each entry counts, (M,); None for all alike.
        scale: Factor of each class's evidence, (N,), which brings the cache of a fold to the size
            of the whole one; None for none.
        shares: Factor of the prior for each (b, t), set when that evidence is first computed.
        kept: The cache's evidence by block and b, as far as ``KEPT`` allows, because a search needs
            it several times.
    """

    zero_shot: Tensor
    features: Tensor
    keys: Tensor
    counts: Tensor
    targets: Tensor
    text: Tensor | None = None
    gamma: Tensor | None = None
    prior: Tensor | None = None
    weights: Tensor | None = None
    scale: Tensor | None = None
    shares: dict[tuple[float, float], float] = field(init=False, default_factory=dict)
    kept: dict[tuple[int, float], Tensor] = field(init=False, default_factory=dict)

    def blocks(self) -> Iterator[slice]:
        """Yield slices of queries whose affinities fit into memory."""
        yield from slices(len(self.features), len(self.keys))

    def evidence(
        self, block: slice, pairs: Sequence[tuple[float, float]]
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield the index of each (b, t) and the cache's evidence (b, N); one exponential per b."""
        text = self.text_distance(block)
        at, distance = 0, None
        for b, group in groupby(pairs, key=lambda pair: pair[0]):
            base = self.kept.get((block.start, b))
            if base is None:
                distance = self.distance(block) if distance is None else distance
                base = class_evidence(distance, self.counts, b, self.weights)
                base = base if self.scale is None else base * self.scale
                if (len(self.kept) + 1) * base.numel() <= KEPT:
                    self.kept[block.start, b] = base
            for _, t in group:
                gated = base if text is None or t == 0 else base * torch.exp(-t * text)
                if self.prior is not None:
                    gated = gated + self.share((b, t), gated) * self.prior[block]
                yield at, gated
                at += 1

    def share(self, pair: tuple[float, float], evidence: Tensor) -> float:
        """Factor that gives the prior the cache's spread; the first block sets it."""
        if pair not in self.shares and self.prior is not None:
            # The median: at high sharpness a few near-duplicates have nearly all the evidence.
            cache, prior = (rows.std(1, correction=0).median() for rows in (evidence, self.prior))
            self.shares[pair] = float(cache / prior.clamp_min(1e-30))
        return self.shares[pair]

    def distance(self, block: slice) -> Tensor:
        """1 − s of a block, (b, M), times γ where each query has its own."""
        distance = (self.features[block] @ self.keys.T).neg_().add_(1)
        return distance if self.gamma is None else distance * self.gamma[block]

    def text_distance(self, block: slice) -> Tensor | None:
        """1 − a of a block, (b, N)."""
        if self.text is None:
            return None
        distance = 1 - self.text[block]
        return distance if self.gamma is None else distance * (1 - self.gamma[block])


@dataclass
class FixedProblem:
    """Queries whose evidence has no sharpness to search, only α.

    Attributes:
        zero_shot: (B, N).
        fixed: Evidence, (B, N).
        targets: (B,).
    """

    zero_shot: Tensor
    fixed: Tensor
    targets: Tensor

    def blocks(self) -> Iterator[slice]:
        """Yield slices of queries."""
        yield from slices(len(self.fixed), self.fixed.shape[1])

    def evidence(
        self, block: slice, pairs: Sequence[tuple[float, float]]
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield the evidence for the one pair there is."""
        yield 0, self.fixed[block]


def whole_evidence(problem: AnyProblem, pair: tuple[float, float]) -> Tensor:
    """The evidence of all queries at one pair of settings, (B, N)."""
    parts = [e for block in problem.blocks() for _, e in problem.evidence(block, [pair])]
    return torch.cat(parts) if parts else torch.zeros_like(problem.zero_shot)


def slices(queries: int, width: int) -> Iterator[slice]:
    """Slices of so many queries that ``width`` values for each fit into memory."""
    rows = max(1, BLOCK // max(1, width))
    for start in range(0, queries, rows):
        yield slice(start, start + rows)


def class_evidence(
    distance: Tensor, counts: Tensor, sharpness: float, weights: Tensor | None = None
) -> Tensor:
    """Σ over a class's entries of w · exp(−b · distance).

    Distances are (B, M), entries sorted by class; counts (N,), weights (M,); the result is (B, N).
    """
    out = distance.new_empty(len(distance), len(counts))
    shots = int(counts[0]) if len(counts) else 0
    even = shots > 0 and bool((counts == shots).all())
    rows = max(1, TILE // max(1, distance.shape[1]))
    classes = torch.arange(len(counts), device=counts.device)
    labels = torch.repeat_interleave(classes, counts)
    for start in range(0, len(distance), rows):
        tile = torch.mul(distance[start : start + rows], -sharpness).exp_()
        if weights is not None:
            tile.mul_(weights)
        if even:
            torch.sum(tile.view(len(tile), -1, shots), -1, out=out[start : start + rows])
        else:
            out[start : start + rows] = 0
            out[start : start + rows].index_add_(1, labels, tile)
    return out


def growth(full: Tensor, part: Tensor) -> Tensor:
    """Factor (N,) of each class's evidence from a fold's cache to the whole one, from their sizes.

    Sizes are the summed weights of each class's entries, (N,).
    """
    return full / torch.where(part > 0, part, 1)
