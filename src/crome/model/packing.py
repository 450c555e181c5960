"""Several questions about one image in one sequence, the image's own tokens in it only once.

    image  q1 q1 q1  q2 q2 q2 q2  q3 q3

Each question sees the image and itself, never another question, and its positions count from the
end of the image's tokens: to the language model every row is alone with the image. One pass without
a key-value cache, so activation checkpointing and compilation of its layers work as they always do.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Where the tokens of I images and B questions stand in (I, L) sequences.

    Attributes:
        place: (B, m) flat index into (I · L) of each token of each question; L · I for padding.
        segments: (I, L) 0 for the image's own tokens, b + 1 for question b, -1 for padding.
        positions: (I, L) what the language model's position encoding is told.
    """

    place: Tensor
    segments: Tensor
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
        beside = (image[:, None] == image).tril(-1)  # earlier questions about the same image
        start = prefix_length + (beside * lengths).sum(1)  # (B,)
        total = int((start + lengths).max())
        steps = torch.arange(real.shape[1], device=real.device)
        place = image[:, None] * total + start[:, None] + steps
        place = place.masked_fill(~real, num_images * total)

        segments = place.new_full((num_images, total), -1)
        positions = place.new_zeros(num_images, total)
        segments[:, :prefix_length] = 0
        positions[:, :prefix_length] = torch.arange(prefix_length, device=real.device)
        rows = torch.arange(1, len(real) + 1, device=real.device)[:, None].expand_as(place)
        segments.view(-1)[place[real]] = rows[real]
        positions.view(-1)[place[real]] = (prefix_length + steps).expand_as(place)[real]
        return cls(place, segments, positions)

    def fill(self, prefix: Tensor, suffix: Tensor) -> Tensor:
        """Packs (I, n, d) image tokens and (B, m, d) question tokens into (I, L, d)."""
        images, total = self.segments.shape
        packed = prefix.new_zeros(images * total + 1, prefix.shape[-1])  # the last takes padding
        packed = packed.index_copy(0, self.place.flatten(), suffix.flatten(0, 1))
        packed = packed[:-1].view(images, total, -1)
        return torch.cat([prefix, packed[:, prefix.shape[1] :]], 1)

    def mask(self, dtype: torch.dtype) -> Tensor:
        """(I, 1, L, L) added to attention scores: 0 where a token may look, else very negative."""
        asks, seen = self.segments[:, :, None], self.segments[:, None, :]
        allowed = ((seen == 0) | (seen == asks)).tril()
        return torch.where(allowed, 0.0, torch.finfo(dtype).min).to(dtype)[:, None]
