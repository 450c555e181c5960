"""Questions and the images they are about in one row of tokens, an image's own tokens only once.

    image 1, image 2, image 3 | question 1, question 2, question 3, question 4, …

Each question sees its image and itself, never anything else, and its positions count from the end
of the image's tokens: to the language model every row is alone with the image. Nothing is computed
for pairs of tokens that do not see each other, and there is no padding. One pass without a growing
key-value cache, so activation checkpointing works as it always does.

Shapes: P prefixes (an image's tokens) of at most n, B questions of at most m, N tokens in all, H
heads of width c.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache


@dataclass(frozen=True)
class Packing:
    """Where the tokens of prefixes and questions stand, and which see which.

    Planned on the CPU, from lengths that are known there, and moved to where the tokens are.

    Attributes:
        prefix: (P, n) place of each token of each prefix; N for padding.
        place: (B, m) the same of each token of each question.
        owner: (B,) the prefix each question follows.
        sources: (prefix tokens,) and (question tokens,): which of (P · n) and (B · m) are no
            padding; None where none is.
        positions: (N,) what the language model's position encoding is told.
        mask: (P, 1, n, n) which tokens of a prefix see each other; None where each sees those in
            front of it.
    """

    prefix: Tensor
    place: Tensor
    owner: Tensor
    sources: tuple[Tensor | None, Tensor | None]
    positions: Tensor
    mask: Tensor | None = None

    @classmethod
    def plan(cls, prefix: Tensor, real: Tensor, owner: Tensor) -> "Packing":
        """Places prefixes, then questions, in order.

        Args:
            prefix: (P, n) which tokens of a prefix are no padding; padding is on the right.
            real: (B, m) the same of the questions.
            owner: (B,) the prefix each question follows.
        """
        total = int(prefix.sum() + real.sum())
        place = (torch.cat([prefix.flatten(), real.flatten()]).cumsum(0) - 1).split(
            [prefix.numel(), real.numel()]
        )
        steps = torch.arange(max(prefix.shape[1], real.shape[1]))
        begin = prefix.sum(1)[owner][:, None]
        positions = [
            steps[: prefix.shape[1]].expand(prefix.shape)[prefix],
            (begin + steps[: real.shape[1]])[real],
        ]
        sources = [None if x.all() else x.flatten().nonzero()[:, 0] for x in (prefix, real)]
        return cls(
            place[0].view(prefix.shape).masked_fill(~prefix, total),
            place[1].view(real.shape).masked_fill(~real, total),
            owner,
            (sources[0], sources[1]),
            torch.cat(positions),
        )

    def to(self, device: torch.device) -> "Packing":
        """The same plan on a device."""

        def moved(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(moved, value))
            return value if value is None else value.to(device, non_blocking=True)

        return Packing(*(moved(getattr(self, field.name)) for field in fields(self)))

    def masked(self, mask: Tensor) -> "Packing":
        """With a mask (P, 1, n, n) of its own inside prefixes."""
        return replace(self, mask=mask)

    @property
    def total(self) -> int:
        """N."""
        return len(self.positions)

    def fits(self, query: Tensor) -> bool:
        """Whether queries (B, H, m, c) are those of the whole row."""
        return query.shape[0] == 1 and query.shape[2] == self.total

    def fill(self, prefix: Tensor, suffix: Tensor) -> Tensor:
        """Packs (P, n, d) prefix tokens and (B, m, d) question tokens into (1, N, d)."""
        parts = zip((prefix.flatten(0, 1), suffix.flatten(0, 1)), self.sources, strict=True)
        return torch.cat([x if kept is None else x[kept] for x, kept in parts])[None]

    def no_mask(self, dtype: torch.dtype, head: int = 0) -> Tensor:
        """(1, 1, N, head + N) in place of a mask: it is a number, and nobody reads it."""
        shape = (1, 1, self.total, head + self.total)
        return torch.zeros(1, 1, 1, 1, dtype=dtype, device=self.positions.device).expand(shape)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, kernel: Callable[..., Tensor]) -> Tensor:
        """Attention of the whole row, from that inside prefixes and that of questions.

        Args:
            q: (1, H, N, c).
            k: (1, ·, h + N, c), the first h of a `Head`, for every token to see.
            v: The same.
            kernel: Of queries, keys, values and a mask; without a mask a query sees the keys up to
                its own.

        Returns:
            (1, H, N, c).
        """
        here = self if q.device == self.positions.device else self.to(q.device)
        return here._attend(q, k, v, kernel)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, kernel: Callable[..., Tensor]) -> Tensor:
        head, seen = k.shape[2] - self.total, []
        for x in (k, v):
            own = _taken(x[:, :, head:], self.prefix, self.sources[0], first=True)
            opening = x[:, :, :head].expand(len(own), -1, -1, -1)
            seen.append(torch.cat([opening, own], 2) if head else own)
        mask = self.mask
        if mask is not None and head:
            mask = F.pad(mask, (head, 0), value=True)
        inside = kernel(
            _taken(q, self.prefix, self.sources[0], first=True), seen[0], seen[1], mask=mask
        )
        parts = [_flat(inside, self.sources[0])]
        if self.place.numel():
            keys, values = (
                torch.cat([x[self.owner], _taken(y[:, :, head:], self.place, self.sources[1])], 2)
                for x, y in zip(seen, (k, v), strict=True)
            )
            asked = _taken(q, self.place, self.sources[1])
            behind = kernel(asked, keys, values, mask=self._question_mask(head))
            parts.append(_flat(behind, self.sources[1]))
        return torch.cat(parts, 1)[None]

    def _question_mask(self, head: int) -> Tensor | None:
        """(B, 1, m, h + n + m) where prefixes differ in length; None where they do not."""
        if self.sources[0] is None:
            return None
        size = self.place.shape[1]
        front = F.pad(self.prefix < self.total, (head, 0), value=True)[self.owner]  # (B, h + n)
        own = torch.ones(size, size, dtype=torch.bool, device=front.device).tril()
        shape = (len(front), size, -1)
        return torch.cat([front[:, None].expand(shape), own.expand(shape)], 2)[:, None]


def _taken(x: Tensor, place: Tensor, kept: Tensor | None, first: bool = False) -> Tensor:
    """(1, H, N, c) → (rows, H, tokens, c) at (rows, tokens) places; anything for padding."""
    rows, tokens = place.shape
    if kept is None:  # they stand one behind the other, at the beginning or at the end
        flat = x[0, :, : rows * tokens] if first else x[0, :, x.shape[2] - rows * tokens :]
    else:
        flat = x[0].index_select(1, place.flatten().clamp(max=x.shape[2] - 1))
    return flat.unflatten(1, (rows, tokens)).transpose(0, 1)


def _flat(x: Tensor, kept: Tensor | None) -> Tensor:
    """(rows, H, tokens, c) → (H, those that are no padding, c)."""
    flat = x.transpose(0, 1).flatten(1, 2)
    return flat if kept is None else flat.index_select(1, kept)


class Head(DynamicCache):
    """Keys and values of the one opening of all prompts, in front of every row, never added to.

    A chat template's system message shows no image, so what a language model makes of it depends
    on no row: it is read once a batch, and no gradient comes back to it.

    Args:
        read: The cache of a pass over the opening alone, (1, h).
    """

    def __init__(self, read: DynamicCache) -> None:
        super().__init__()
        self.layers = read.layers

    def update(  # what a layer calls with its new keys and values
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Both with the opening's in front, (1, heads, h + N, ·)."""
        kept: Any = self.layers[layer_idx]
        return (
            torch.cat([kept.keys, key_states], 2),
            torch.cat([kept.values, value_states], 2),
        )
