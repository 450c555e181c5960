"""Questions and the images they are about in few sequences, an image's own tokens only once.

    image1  q1 q1 q1  q2 q2 q2 q2  q3 q3
    image2  q4 q4 q4  image3  q5 q5 q5

Each question sees its image and itself, never anything else, and its positions count from the end
of the image's tokens: to the language model every row is alone with the image. Images with few
questions share a sequence, so that little of it is padding. One pass without a growing key-value
cache, so activation checkpointing works as it always does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache


@dataclass(frozen=True)
class Packing:
    """Where the tokens of I images and B questions stand in S sequences of L tokens.

    Planned on the CPU, from lengths that are known there, and moved to where the tokens are.

    Attributes:
        shown: (I, n) flat index into (S · L) of each token of each image.
        place: (B, m) the same of each token of each question; S · L for padding.
        image: (S, L) whose tokens or questions stand there, -1 for padding.
        question: (S, L) 0 for an image's own tokens, b + 1 for question b, -1 for padding.
        positions: (S, L) what the language model's position encoding is told.
    """

    shown: Tensor
    place: Tensor
    image: Tensor
    question: Tensor
    positions: Tensor

    @classmethod
    def plan(cls, prefix_length: int, real: Tensor, image: Tensor, num_images: int) -> "Packing":
        """Places questions behind their images, in order of rows.

        Args:
            prefix_length: n, tokens of every image.
            real: (B, m) which tokens of a question are no padding; padding is on the right.
            image: (B,) the image each question is about.
            num_images: I.
        """
        lengths = real.sum(1)
        whole = lengths.new_full((num_images,), prefix_length).index_add(0, image, lengths)
        total, begins = first_fit(whole.tolist())
        size = total * (1 + max(begins) // total)  # S · L
        steps = torch.arange(max(prefix_length, real.shape[1]), device=real.device)
        shown = torch.tensor(begins, device=real.device)[:, None] + steps[:prefix_length]
        beside = (image[:, None] == image).tril(-1)  # earlier questions about the same image
        start = shown[image, 0] + prefix_length + (beside * lengths).sum(1)  # (B,)
        steps = steps[: real.shape[1]]
        place = (start[:, None] + steps).masked_fill(~real, size)

        def spread(fill: int, of_shown: Tensor, of_place: Tensor) -> Tensor:
            flat = place.new_full((size + 1,), fill)  # the last takes padding
            flat[shown] = of_shown
            flat[place] = of_place
            return flat[:-1].view(-1, total)

        numbers = torch.arange(num_images, device=real.device)[:, None]
        rows = torch.arange(1, len(real) + 1, device=real.device)[:, None]
        return cls(
            shown,
            place,
            spread(-1, numbers, image[:, None]),
            spread(-1, torch.zeros_like(numbers), rows),
            spread(0, shown - shown[:, :1], prefix_length + steps),
        )

    def to(self, device: torch.device) -> "Packing":
        """The same plan on a device."""
        return Packing(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))

    def fill(self, prefix: Tensor, suffix: Tensor) -> Tensor:
        """Packs (I, n, d) image tokens and (B, m, d) question tokens into (S, L, d)."""
        width = prefix.shape[-1]
        packed = prefix.new_zeros(self.image.numel() + 1, width)  # the last takes padding
        packed = packed.index_copy(0, self.shown.flatten(), prefix.flatten(0, 1))
        packed = packed.index_copy(0, self.place.flatten(), suffix.flatten(0, 1))
        return packed[:-1].view(*self.image.shape, width)

    def mask(self, dtype: torch.dtype, head: int = 0) -> Tensor:
        """Added to attention scores: 0 where a token may look, else very negative.

        Args:
            dtype: Of the scores.
            head: Length h of what stands before all images in a `Head`, for every token to see.

        Returns:
            (S, 1, L, h + L).
        """
        seen, asks = self.question[:, None, :], self.question[:, :, None]
        same = self.image[:, None, :] == self.image[:, :, None]
        allowed = F.pad((same & ((seen == 0) | (seen == asks))).tril(), (head, 0), value=True)
        mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
        return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]


def first_fit(lengths: Sequence[int]) -> tuple[int, list[int]]:
    """Packs pieces into sequences as long as the longest: each into the first that has room.

    Returns:
        That length, and where each piece begins, counted through the sequences.
    """
    total = max(lengths)
    begins, filled = [0] * len(lengths), list[int]()
    for piece in sorted(range(len(lengths)), key=lambda piece: -lengths[piece]):
        room = (n for n, used in enumerate(filled) if used + lengths[piece] <= total)
        sequence = next(room, len(filled))
        filled += [0] * (sequence == len(filled))
        begins[piece] = sequence * total + filled[sequence]
        filled[sequence] += lengths[piece]
    return total, begins


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
        """Both with the opening's in front, (I, heads, h + L, ·)."""
        kept: Any = self.layers[layer_idx]
        return before(kept.keys, key_states), before(kept.values, value_states)


def before(kept: Tensor, new: Tensor) -> Tensor:
    """(1, heads, h, ·) in front of (I, heads, L, ·)."""
    return torch.cat([kept.expand(len(new), -1, -1, -1), new], 2)
