"""Questions and the images they are about in one row of tokens, an image's own tokens only once.

    image 1, image 2, image 3 | question 1, question 2, question 3, question 4, …

Each question sees its image and itself, never anything else, and its positions count from the end
of the image's tokens, so that the language model reads every question as if it were alone with the
image. Nothing is computed for pairs of tokens that do not see each other, and nothing is padded.
It is one pass that fills no key-value cache, so activation checkpointing works as it always does.

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
class Spans:
    """Where the contiguous stretches of a packed row end; cumulated lengths begin with 0.

    Attributes:
        ends: Int32, all of the cumulated lengths below in one tensor.
        prefixes: Tokens of all prefixes, which stand in front of all questions.
        numbers: P and B.
        longest_segment: Tokens of the longest prefix or question.
        longest_prefix: Tokens of the longest prefix.
        longest_group: Tokens of all questions on a prefix, at most.
    """

    ends: Tensor
    prefixes: int
    numbers: tuple[int, int]
    longest_segment: int
    longest_prefix: int
    longest_group: int

    @classmethod
    def of(cls, prefix: Tensor, question: Tensor, owner: Tensor) -> "Spans":
        """Those of (P,) lengths of prefixes and (B,) of questions, in the order they stand in."""
        group = torch.zeros_like(prefix).index_add_(0, owner, question)
        lengths = [torch.cat([prefix, question]), prefix, group]
        longest = [int(x.max()) for x in lengths]
        ends = torch.cat([F.pad(x.cumsum(0), (1, 0)) for x in lengths]).int()
        return cls(ends, int(prefix.sum()), (len(prefix), len(question)), *longest)

    @property
    def segments(self) -> Tensor:
        """(P + B + 1,) cumulated lengths of prefixes and then questions."""
        return self.ends[: sum(self.numbers) + 1]

    @property
    def fronts(self) -> Tensor:
        """(P + 1,) cumulated lengths of prefixes."""
        return self.ends[sum(self.numbers) + 1 :][: self.numbers[0] + 1]

    @property
    def questions(self) -> Tensor:
        """(P + 1,) cumulated lengths of all questions on each prefix."""
        return self.ends[-self.numbers[0] - 1 :]


@dataclass(frozen=True)
class Packing:
    """Where the tokens of prefixes and questions stand, and which see which.

    Planned on the CPU, from lengths that are known there, and moved to where the tokens are.

    Attributes:
        prefix: (P, n) the place of each prefix token in the row; N for padding.
        place: (B, m) the place of each question token in the row; N for padding.
        owner: (B,) the prefix each question follows.
        sources: Flat indices of the row's tokens among (P · n) prefix tokens and among (B · m)
            question tokens; None in place of indices where they are all tokens in order.
        positions: (N,) position ids for the language model.
        spans: Where prefixes and questions end.
        mask: (P, 1, n, n) which tokens of a prefix see each other; None where each sees itself and
            those in front of it.
    """

    prefix: Tensor
    place: Tensor
    owner: Tensor
    sources: tuple[Tensor | None, Tensor | None]
    positions: Tensor
    spans: Spans
    mask: Tensor | None = None

    @classmethod
    def plan(cls, prefix: Tensor, real: Tensor, owner: Tensor) -> "Packing":
        """Places prefixes in order, then the questions on the first, on the second, and so on.

        Args:
            prefix: (P, n) False where a prefix is padded, on the right.
            real: (B, m) False where a question is padded.
            owner: (B,) the prefix each question follows.
        """
        order = owner.argsort(stable=True)
        sources = [
            prefix.flatten().nonzero()[:, 0],
            torch.arange(real.numel()).view(real.shape)[order][real[order]],
        ]
        before, total = len(sources[0]), len(sources[0]) + len(sources[1])
        places = [torch.full(x.shape, total) for x in (prefix, real)]
        places[0].view(-1)[sources[0]] = torch.arange(before)
        places[1].view(-1)[sources[1]] = torch.arange(before, total)
        steps = torch.arange(max(prefix.shape[1], real.shape[1]))
        begin = prefix.sum(1)[owner][:, None]
        positions = [
            steps[: prefix.shape[1]].expand(prefix.shape).flatten()[sources[0]],
            (begin + steps[: real.shape[1]]).flatten()[sources[1]],
        ]
        kept = [
            None if torch.equal(x, torch.arange(mask.numel())) else x
            for x, mask in zip(sources, (prefix, real), strict=True)
        ]
        return cls(
            places[0], places[1], owner, (kept[0], kept[1]), torch.cat(positions),
            Spans.of(prefix.sum(1), real.sum(1)[order], owner[order]),
        )  # fmt: skip

    def to(self, device: torch.device) -> "Packing":
        """The same plan on a device."""

        def moved(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(moved, value))
            if isinstance(value, Spans):
                return replace(value, ends=moved(value.ends))
            return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

        return Packing(*(moved(getattr(self, field.name)) for field in fields(self)))

    def beside(self, tokens: Tensor) -> "Packing":
        """The same plan where the tokens are."""
        return self if tokens.device == self.positions.device else self.to(tokens.device)

    def masked(self, mask: Tensor) -> "Packing":
        """The same plan with another mask (P, 1, n, n) inside prefixes."""
        return replace(self, mask=mask)

    @property
    def total(self) -> int:
        """N, the number of tokens in the row."""
        return len(self.positions)

    def fits(self, query: Tensor) -> bool:
        """Whether attention queries (B, H, m, c) are those of the packed row."""
        return query.shape[0] == 1 and query.shape[2] == self.total

    def fill(self, prefix: Tensor, suffix: Tensor) -> Tensor:
        """Packs (P, n, d) prefix tokens and (B, m, d) question tokens into (1, N, d)."""
        parts = zip((prefix.flatten(0, 1), suffix.flatten(0, 1)), self.sources, strict=True)
        return torch.cat([x if real is None else x[real] for x, real in parts])[None]

    def no_mask(self, dtype: torch.dtype, head: int = 0) -> Tensor:
        """A stand-in for an attention mask, (1, 1, N, head + N), that takes no memory.

        Given one, transformers builds none of its own. `attend` goes by the plan and reads neither.
        """
        shape = (1, 1, self.total, head + self.total)
        return torch.zeros(1, 1, 1, 1, dtype=dtype, device=self.positions.device).expand(shape)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, kernel: Callable[..., Tensor]) -> Tensor:
        """Attention of the packed row: inside each prefix, then of each question.

        Args:
            q: (1, H, N, c).
            k: (1, ·, h + N, c); the first h come from a `Head`, and every token sees them.
            v: (1, ·, h + N, c).
            kernel: Takes queries, keys, values and a mask; without a mask a query sees the keys up
                to its own.

        Returns:
            (1, H, N, c).
        """
        return self.beside(q)._attend(q, k, v, kernel)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, kernel: Callable[..., Tensor]) -> Tensor:
        head, visible = k.shape[2] - self.total, []
        for x in (k, v):
            own = _unpack(x[:, :, head:], self.prefix, self.sources[0], first=True)
            opening = x[:, :, :head].expand(len(own), -1, -1, -1)
            visible.append(torch.cat([opening, own], 2) if head else own)
        mask = self.mask
        if mask is not None and head:
            mask = F.pad(mask, (head, 0), value=True)
        queries = _unpack(q, self.prefix, self.sources[0], first=True)
        parts = [_pack(kernel(queries, *visible, mask=mask), self.sources[0])]
        if self.place.numel():
            keys, values = (
                torch.cat([x[self.owner], _unpack(y[:, :, head:], self.place, self.sources[1])], 2)
                for x, y in zip(visible, (k, v), strict=True)
            )
            queries = _unpack(q, self.place, self.sources[1])
            behind = kernel(queries, keys, values, mask=self._question_mask(head))
            parts.append(_pack(behind, self.sources[1]))
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


def _unpack(x: Tensor, place: Tensor, real: Tensor | None, first: bool = False) -> Tensor:
    """(1, H, N, c) → (rows, H, tokens, c) by (rows, tokens) places; padding gets any values."""
    rows, tokens = place.shape
    if real is None:  # they stand one behind the other, at the beginning or at the end
        flat = x[0, :, : rows * tokens] if first else x[0, :, x.shape[2] - rows * tokens :]
    else:
        flat = x[0].index_select(1, place.flatten().clamp(max=x.shape[2] - 1))
    return flat.unflatten(1, (rows, tokens)).transpose(0, 1)


def _pack(x: Tensor, real: Tensor | None) -> Tensor:
    """(rows, H, tokens, c) → (H, real tokens, c)."""
    flat = x.transpose(0, 1).flatten(1, 2)
    return flat if real is None else flat.index_select(1, real)


class Head(DynamicCache):
    """Keys and values of the opening that all prompts share, in front of every row.

    A chat template's system message shows no image, so it is read once a batch and needs no
    gradient. Nothing is ever added to this cache.

    Args:
        opening: The cache of a pass over the opening alone, (1, h).
    """

    def __init__(self, opening: DynamicCache) -> None:
        super().__init__()
        self.layers = opening.layers

    def update(  # what a layer calls with its new keys and values
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys and values with those of the opening in front, (1, heads, h + N, ·)."""
        opening: Any = self.layers[layer_idx]
        return (
            torch.cat([opening.keys, key_states], 2),
            torch.cat([opening.values, value_states], 2),
        )
