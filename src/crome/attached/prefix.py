"""Rows that show the same, read behind one copy of what they begin with.

    opening, picture | question 1, answer | question 2, answer | …

What stands in front of the first bar is the same for every row: equal token ids and equal media.
The language model reads it once, each row sees it and itself and nothing else, and keeps the
positions it has alone, three-dimensional ones too. Equal to independent rows up to the order of
float additions.

Shapes: B rows of T tokens, packed into one of N tokens behind P prefixes of at most n.
"""

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer

from crome.attached.batches import MediaBatch
from crome.model.batch import on_host
from crome.model.families import new_cache, past_a_limit
from crome.model.kernels import obeys_packing
from crome.model.packing import Packing
from crome.model.prefix import before_a_target

BLOCKS = "token_type_ids"
"""Beside tokens: 1 where a picture's tokens see each other in both directions."""


@dataclass(frozen=True)
class Packed:
    """Where each token of a batch stands.

    Attributes:
        place: (B, T) which of N each token is that is read; N for the others.
        row: (1, N) which row a token is taken from.
        column: (1, N) and from which column.
        packing: Which token may see which.
        media_rows: The rows whose media stand in the packed row, in reading order.
    """

    place: Tensor
    row: Tensor
    column: Tensor
    packing: Packing
    media_rows: tuple[int, ...]

    def gathered(self, values: Tensor) -> Tensor:
        """(…, B, T) values beside tokens as (…, 1, N)."""
        return values[..., self.row, self.column]

    def opened(self, types: Tensor) -> Packing:
        """The packing in which the tokens of a picture see each other, in both directions.

        Args:
            types: (1, N) 1 for tokens of a picture; each run of them in a prefix is one.
        """
        prefix, total = self.packing.prefix, self.packing.total
        real = prefix < total
        pictured = (F.pad(types[0], (0, 1))[prefix] == 1) & real  # (P, n)
        begins = pictured & ~F.pad(pictured[:, :-1], (1, 0))
        number = begins.cumsum(1) * pictured  # 0 outside
        same = (number[:, None] == number[:, :, None]) & pictured[:, None]
        causal = torch.ones(prefix.shape[1], prefix.shape[1], dtype=torch.bool).tril()
        return self.packing.masked((causal.to(same.device) | same)[:, None])


def allows_sharing(vlm: PreTrainedModel) -> bool:
    """Whether a model's layers follow a packing, and keep keys and values alone."""
    try:
        layers = new_cache(vlm).layers
        return all(isinstance(layer, DynamicLayer) for layer in layers) and obeys_packing(vlm)
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
) -> Packed | None:
    """Packs rows of the same group behind what they share.

    Args:
        input_ids: (B, T) padded on the right.
        attention_mask: (B, T).
        labels: (B, T); what stands behind a row's last label is not read.
        groups: Equal for rows that show the same through the same adapter.
        placeholders: Ids that stand for media.

    Returns:
        None where nothing would be shared, or rows are padded on the left.
    """
    if len(set(groups)) == len(groups):
        return None
    known: list[Any] = on_host(input_ids, attention_mask, labels)
    if not bool(known[1][:, 0].all()):
        return None
    read = (known[1].bool() & before_a_target(known[2])).sum(1)
    ids = [row[:n] for row, n in zip(known[0].tolist(), read.tolist(), strict=True)]
    together: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        together.setdefault(group, []).append(row)
    pieces: list[tuple[list[int], int]] = []  # rows, and how many tokens all of them begin with
    for rows in together.values():
        prefix = shared_tokens([ids[row] for row in rows], placeholders)
        pieces += [(rows, prefix)] if prefix else [([row], len(ids[row])) for row in rows]
    return None if len(pieces) == len(ids) else placed(pieces, read, input_ids)


def shared_tokens(texts: Sequence[Sequence[int]], placeholders: Collection[int]) -> int:
    """Tokens that all texts begin with; 0 where a picture stands behind them.

    It would have to be shown again for every row.
    """
    columns = zip(*texts, strict=False)
    prefix = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    behind = any(token in placeholders for text in texts for token in text[prefix:])
    return 0 if behind else prefix


def placed(pieces: Sequence[tuple[list[int], int]], read: Tensor, input_ids: Tensor) -> Packed:
    """Lays prefixes and what stands behind them out in one row.

    Args:
        pieces: Rows, and how many tokens all of them begin with.
        read: (B,) tokens of each row that are read, on the CPU.
        input_ids: (B, T).
    """
    rows, steps = len(read), torch.arange(input_ids.shape[1])
    begins, owner = torch.tensor([prefix for _, prefix in pieces]), torch.empty(rows).long()
    for number, (members, _) in enumerate(pieces):
        owner[members] = number
    begin = begins[owner]  # (B,) tokens in front of a row's own
    own = read - begin
    packing = Packing.plan(
        steps[: int(begins.max())] < begins[:, None], steps[: int(own.max())] < own[:, None], owner
    )
    total = packing.total
    behind = F.pad(packing.place, (0, len(steps) - packing.place.shape[1]), value=total)
    front = F.pad(packing.prefix, (0, len(steps) - packing.prefix.shape[1]), value=total)[owner]
    moved = behind.gather(1, (steps - begin[:, None]).clamp(min=0))
    place = torch.where(steps < begin[:, None], front, moved)
    place = place.masked_fill(steps >= read[:, None], total)
    row, column = torch.empty(total + 1).long(), torch.empty(total + 1).long()
    row[place] = torch.arange(rows)[:, None].expand(place.shape)
    column[place] = steps.expand(place.shape)
    device = input_ids.device
    return Packed(
        place.to(device),
        row[None, :-1].to(device),
        column[None, :-1].to(device),
        packing.to(device),
        tuple(members[0] for members, _ in pieces),
    )


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


def packed_call(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    labels: Tensor,
    media_batch: MediaBatch | None,
    text: Mapping[str, Tensor],
) -> tuple[Tensor, Packing, dict[str, Any]] | None:
    """Rows behind what they share, as a model's own `forward` takes them.

    Args:
        model: An `AttachedModel`.
        ids: (B, T).
        mask: (B, T).
        labels: (B, T).
        media_batch: What the rows show.
        text: What stands beside each token.

    Returns:
        Places (B, T) of the tokens, which of them see each other, and the arguments; None where
        the model or the rows do not let anything be shared.
    """
    if not model.shares_prefix or media_batch is None:
        return None
    if past_a_limit(model.language_model.config, ids.shape[1]):
        return None
    if model.window is not None and ids.shape[1] > model.window:
        return None  # layers that look back over a stretch would look back over other rows
    sets = enumerate(zip(media_batch.index.tolist(), media_batch.adapter_names, strict=True))
    groups = [(kind, name) if kind >= 0 else row for row, (kind, name) in sets]
    plan = pack(ids, mask, labels, groups, model.placeholders)
    if plan is None:
        return None
    found = model.positions.of_rows(ids, mask, media_batch, text)
    if found is None:
        return None
    beside = {name: plan.gathered(value) for name, value in text.items()}
    call = model.inputs(media_batch.rows(torch.tensor(plan.media_rows)), beside)
    call = {name: value for name, value in call.items() if name not in model.positions.inputs}
    packing, no_mask = plan.packing, plan.packing.no_mask(model.vlm.dtype)
    call |= {
        "input_ids": plan.gathered(ids),
        "position_ids": plan.gathered(found),
        "attention_mask": no_mask,
    }
    if BLOCKS in call:
        packing = plan.opened(call.pop(BLOCKS))
        call["attention_mask"] = {"full_attention": no_mask, "sliding_attention": no_mask}
    return plan.place, packing, call
