"""The visual tokens of a batch, and their place among the embeddings of its text.

Shapes: B rows, R blocks (an image of a row each), T text tokens, L tokens of the longest row with
its visual ones, d width of the language model.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from crome.model.losses import IGNORED


@dataclass(frozen=True)
class VisualBlocks:
    """The visual tokens of a batch, and which of them each row shows.

    A row's k-th block is row r of each `index`, in order of rows.
    """

    rows: Tensor
    """(R,) the row each block belongs to."""
    tokens: dict[str, Tensor]
    """Branch → (any, tokens, d)."""
    index: dict[str, Tensor]
    """Branch → (R,) which entry of `tokens` a block shows."""


def splice(
    text: Tensor,
    attention_mask: Tensor,
    visual_position: Tensor | None,
    blocks: VisualBlocks | None,
    order: tuple[str, ...],
    labels: Tensor | None = None,
    side: str = "right",
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Puts each row's visual blocks at their place.

    Args:
        text: (B, T, d).
        attention_mask: (B, T); padding may be on either side.
        visual_position: (B,) text tokens in front of a row's blocks; None for none.
        blocks: What rows show; None for text alone.
        order: Branches as they stand in a block.
        labels: (B, T).
        side: Where shorter rows are padded.

    Returns:
        (B, L, d) embeddings, (B, L) mask and (B, L) labels, -100 on visual tokens.
    """
    visual: list[list[Tensor]] = [[] for _ in text]
    if blocks is not None:
        for number, row in enumerate(blocks.rows.tolist()):
            for branch in order:
                if branch in blocks.tokens:
                    shown = blocks.tokens[branch][blocks.index[branch][number]]
                    visual[row].append(shown.to(text.dtype))
    embeds, masks, targets = [], [], []
    for row, block in enumerate(visual):
        real = attention_mask[row].bool()
        words = text[row, real]
        start = int(visual_position[row]) if visual_position is not None else 0
        embeds.append(torch.cat([words[:start], *block, words[start:]]))
        masks.append(attention_mask.new_ones(len(embeds[-1])))
        if labels is not None:
            hidden = labels.new_full((sum(map(len, block)),), IGNORED)
            wanted = labels[row, real]
            targets.append(torch.cat([wanted[:start], hidden, wanted[start:]]))
    return (
        pad_sequence(embeds, batch_first=True, padding_side=side),
        pad_sequence(masks, batch_first=True, padding_side=side),
        pad_sequence(targets, batch_first=True, padding_value=IGNORED, padding_side=side)
        if targets
        else None,
    )
