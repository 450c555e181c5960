"""Rows that show the same, read behind one copy of what they begin with.

    opening, picture | question 1, answer | question 2, answer | …

What stands in front of the first bar is the same for every row: equal token ids and equal media.
The language model reads it once, each row sees it and itself and nothing else, and keeps the
positions it has alone, three-dimensional ones too. Equal to independent rows up to the order of
float additions.

Shapes: B rows of T tokens, packed into S sequences of L tokens.
"""

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer

from crome.model.families import new_cache, takes_any_mask
from crome.model.packing import Packing, first_fit
from crome.model.prefix import before_a_target, worth_sharing

BLOCKS = "token_type_ids"
"""Beside tokens: 1 where a picture's tokens see each other in both directions."""


@dataclass(frozen=True)
class Piece:
    """Rows behind one prefix.

    Attributes:
        rows: Their numbers.
        prefix: Tokens that all of them begin with.
        lengths: Tokens of each that are read.
    """

    rows: tuple[int, ...]
    prefix: int
    lengths: tuple[int, ...]

    @property
    def total(self) -> int:
        """Tokens of the piece."""
        return self.prefix + sum(length - self.prefix for length in self.lengths)


@dataclass(frozen=True)
class Packed:
    """Where each token of a batch stands.

    Attributes:
        place: (B, T) flat index into (S · L) of each token that is read; S · L for the others.
        row: (S, L) which row a token is taken from, -1 for padding.
        column: (S, L) and from which column.
        packing: Which token may see which.
        shown: The rows whose media stand in the sequences, in reading order.
    """

    place: Tensor
    row: Tensor
    column: Tensor
    packing: Packing
    shown: tuple[int, ...]

    def gathered(self, values: Tensor, padding: int = 0) -> Tensor:
        """(…, B, T) values beside tokens as (…, S, L)."""
        taken = values[..., self.row.clamp(min=0), self.column]
        return taken.masked_fill(self.row < 0, padding)

    def opened(self, mask: Tensor, types: Tensor) -> Tensor:
        """A mask in which the tokens of a picture see each other, in both directions.

        Args:
            mask: (S, 1, L, L) added to attention scores.
            types: (S, L) 1 for tokens of a picture; each run of them is one.
        """
        shown = types == 1
        begins = shown & ~F.pad(shown[:, :-1], (1, 0))
        number = begins.cumsum(1) * shown  # 0 outside
        image = self.packing.image
        same = (number[:, None] == number[:, :, None]) & (image[:, None] == image[:, :, None])
        return mask.masked_fill((same & shown[:, None])[:, None], 0.0)


def allows_sharing(vlm: PreTrainedModel) -> bool:
    """Whether a model's layers take any mask and positions, and keep keys and values alone."""
    try:
        layers = new_cache(vlm).layers
        keeps = all(isinstance(layer, DynamicLayer) for layer in layers)
        return keeps and takes_any_mask(vlm)
    except (AttributeError, TypeError, ValueError):  # a cache of a kind of its own
        return False


def window_of(vlm: PreTrainedModel) -> int | None:
    """How far layers look back that do not see everything in front; None where all do."""
    text = vlm.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ())
    if kinds and kinds <= {"full_attention"}:
        return None
    stretch = getattr(text, "sliding_window", None)
    if not kinds and not getattr(text, "use_sliding_window", True):
        return None
    return None if stretch is None else int(stretch)


def pack(
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor,
    groups: Sequence[Hashable],
    placeholders: Collection[int],
    width: int,
) -> Packed | None:
    """Packs rows of the same group behind what they share.

    Args:
        input_ids: (B, T) padded on the right.
        attention_mask: (B, T).
        labels: (B, T); what stands behind a row's last label is not read.
        groups: Equal for rows that show the same through the same adapter.
        placeholders: Ids that stand for media.
        width: Of the language model, to weigh attention against the rest.

    Returns:
        None where nothing would be shared, or rows are padded on the left.
    """
    if len(set(groups)) == len(groups) or not bool(attention_mask[:, 0].all()):
        return None
    read = (attention_mask.bool() & before_a_target(labels)).sum(1).tolist()
    ids = [row[:length] for row, length in zip(input_ids.tolist(), read, strict=True)]
    together: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        together.setdefault(group, []).append(row)
    pieces = [
        piece for rows in together.values() for piece in divided(rows, ids, placeholders, width)
    ]
    if len(pieces) == len(ids):
        return None
    return placed(pieces, input_ids)


def divided(
    rows: Sequence[int], ids: Sequence[Sequence[int]], placeholders: Collection[int], width: int
) -> list[Piece]:
    """The rows of a group in pieces of as many as are worth their attention to each other."""
    texts = [ids[row] for row in rows]
    columns = zip(*texts, strict=False)
    prefix = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    # A picture behind the first difference would have to be shown again for every row.
    if prefix == 0 or any(token in placeholders for text in texts for token in text[prefix:]):
        return [Piece((row,), len(ids[row]), (len(ids[row]),)) for row in rows]
    behind = torch.tensor([len(text) - prefix for text in texts])
    mask = torch.arange(max(1, int(behind.max()))) < behind[:, None]
    many = worth_sharing(prefix, mask, width)
    chunks = [rows[start : start + many] for start in range(0, len(rows), many)]
    return [Piece(tuple(chunk), prefix, tuple(len(ids[r]) for r in chunk)) for chunk in chunks]


def placed(pieces: Sequence[Piece], input_ids: Tensor) -> Packed:
    """Lays pieces out in sequences as long as the longest."""
    total, begins = first_fit([piece.total for piece in pieces])
    size = total * (1 + max(begins) // total)
    place = torch.full(input_ids.shape, size)
    row, column = torch.full((size,), -1), torch.zeros(size, dtype=torch.long)
    image, question = torch.full((size,), -1), torch.full((size,), -1)
    for number, (piece, begin) in enumerate(zip(pieces, begins, strict=True)):
        end = begin + piece.prefix
        image[begin : begin + piece.total] = number
        question[begin:end] = 0
        row[begin:end] = piece.rows[0]
        column[begin:end] = torch.arange(piece.prefix)
        for source, length in zip(piece.rows, piece.lengths, strict=True):
            place[source, : piece.prefix] = torch.arange(begin, begin + piece.prefix)
            place[source, piece.prefix : length] = torch.arange(end, end + length - piece.prefix)
            row[end : end + length - piece.prefix] = source
            column[end : end + length - piece.prefix] = torch.arange(piece.prefix, length)
            question[end : end + length - piece.prefix] = source + 1
            end += length - piece.prefix
    device = input_ids.device
    row, column, image, question = (
        x.view(-1, total).to(device) for x in (row, column, image, question)
    )
    packing = Packing(place, place, image, question, column)
    order = sorted(range(len(pieces)), key=lambda number: begins[number])
    return Packed(place.to(device), row, column, packing, tuple(pieces[n].rows[0] for n in order))


def placeholders_of(config: Any) -> frozenset[int]:
    """Ids that stand for media in a model's text."""
    named = {**vars(config)}
    ends = ("_token_id", "_token_index", "_patch_id")
    kinds = ("image", "video", "audio")
    return frozenset(
        value
        for name, value in named.items()
        if isinstance(value, int) and name.endswith(ends) and name.startswith(kinds)
    )
