"""The visual tokens of a batch, and their place among the embeddings of its text.

Shapes: B rows, R blocks (an image of a row each), T text tokens, V tokens of a block, L tokens of
the longest row with its visual ones, d width of the language model.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from crome.model.losses import IGNORED


@dataclass(frozen=True)
class VisualBlocks:
    """The visual tokens of a batch, and which of them each row shows.

    A row's k-th block is row r of each `index`, in order of rows.
    """

    rows: Tensor
    """(R,) the row each block belongs to."""
    tokens: dict[str, Tensor]
    """For each branch, visual tokens of shape (entries, tokens, d)."""
    index: dict[str, Tensor]
    """For each branch, (R,) the entry of `tokens` that a block shows."""

    def joined(self, order: tuple[str, ...]) -> Tensor:
        """(R, V, d) the tokens of each block, its branches in the order of the language model."""
        present = [branch for branch in order if branch in self.tokens]
        return torch.cat(
            [self.tokens[b][self.index[b].to(self.tokens[b].device)] for b in present], 1
        )


def splice(
    text: Tensor,
    attention_mask: Tensor,
    visual_position: Tensor | None,
    blocks: VisualBlocks | None,
    order: tuple[str, ...],
    labels: Tensor | None = None,
    side: str = "right",
    length: int | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Puts each row's visual blocks at their place, by index arithmetic alone.

    The places are worked out where `attention_mask` is: on the CPU if it is there, so that nothing
    has to wait for a GPU.

    Args:
        text: (B, T, d).
        attention_mask: (B, T); padding may be anywhere.
        visual_position: (B,) text tokens in front of a row's blocks; None without images.
        blocks: The visual tokens of the rows; None for text alone.
        order: Branches as they stand in a block.
        labels: (B, T), on the device of `attention_mask`.
        side: The side on which shorter rows are padded.
        length: L, at least that of the longest row; counted when None.

    Returns:
        (B, L, d) embeddings and (B, L) mask, where `text` is; and (B, L) labels, where they were,
        -100 on visual tokens.
    """
    device, num_rows = attention_mask.device, attention_mask.shape[0]
    visual = None if blocks is None else blocks.joined(order).to(text.dtype)
    block = 0 if visual is None else visual.shape[1]
    real = attention_mask.bool()
    blocks_of_row = torch.zeros(num_rows, dtype=torch.long, device=device)
    rows = blocks_of_row[:0] if blocks is None else blocks.rows.to(device)
    blocks_of_row = blocks_of_row.index_add(0, rows, torch.ones_like(rows))
    lengths = real.sum(1) + blocks_of_row * block
    if length is None:
        length = int(lengths.max()) if num_rows else 0
    begin = torch.arange(num_rows, device=device) * length
    if side == "left":
        begin = begin + length - lengths
    start = torch.zeros_like(blocks_of_row)
    if visual_position is not None:
        start = visual_position.to(device)
    start = torch.minimum(start, real.sum(1))
    nowhere = num_rows * length  # one place behind the last, for padding
    order_in_row = real.cumsum(1) - 1  # (B, T)
    behind = (order_in_row >= start[:, None]) * (blocks_of_row * block)[:, None]
    place = (begin[:, None] + order_in_row + behind).masked_fill(~real, nowhere)
    target = place.flatten().to(text.device)
    embeds = text.new_zeros(nowhere + 1, text.shape[-1])
    embeds = embeds.index_copy(0, target, text.reshape(-1, text.shape[-1]))
    mask = attention_mask.new_zeros(nowhere + 1)
    mask = mask.index_copy(0, place.flatten(), torch.ones_like(place.flatten(), dtype=mask.dtype))
    if visual is not None:
        blocks_before = blocks_of_row.cumsum(0) - blocks_of_row  # in earlier rows
        number = torch.arange(rows.shape[0], device=device) - blocks_before[rows]
        first = (begin + start)[rows] + number * block
        inside = (first[:, None] + torch.arange(block, device=device)).flatten()
        embeds = embeds.index_copy(0, inside.to(text.device), visual.flatten(0, 1))
        mask = mask.index_copy(0, inside, torch.ones_like(inside, dtype=mask.dtype))
    spliced_labels = None
    if labels is not None:
        spliced_labels = labels.new_full((nowhere + 1,), IGNORED)
        spliced_labels = spliced_labels.index_copy(0, place.flatten(), labels.flatten())
        spliced_labels = spliced_labels[:-1].view(-1, length)
    return (
        embeds[:-1].view(num_rows, length, -1),
        mask[:-1].view(num_rows, length).to(text.device),
        spliced_labels,
    )
