"""Answers to several questions on one picture, whose common opening is read once.

Each distinct opening (template, picture and what the questions have in common) goes through the
model once and is copied into the cache of every row that begins with it. `generate` then reads the
rest of each row. For causal models with plain positions; equal to whole rows up to the order of
float additions.

Shapes: B rows, T tokens of the longest, G distinct openings of P tokens.
"""

from collections.abc import Collection, Mapping
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor

from crome.attached.batches import MediaBatch, Parts, left_padded
from crome.model.families import keeps_plainly
from crome.model.generation import IDLE_IN_GREEDY

BLIND = {*IDLE_IN_GREEDY, "max_new_tokens", "min_new_tokens", "streamer", "typical_p"} - {
    "use_cache"
}
"""Settings of `generate` that concern the new tokens alone."""
NEUTRAL = {
    "num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
    "use_cache": True, "min_length": 0,
}  # fmt: skip
"""Other settings, with the value that asks for nothing."""


class Opening(NamedTuple):
    """Which rows begin alike.

    Attributes:
        first: A row of each group.
        group: (B,) the group of each row.
        length: P, of all groups.
    """

    first: list[int]
    group: Tensor
    length: int


def opening(
    ids: Tensor, mask: Tensor, media_batch: MediaBatch, placeholders: Collection[int]
) -> Opening | None:
    """What rows on the same media through the same adapter begin with.

    Args:
        ids: (B, T) padded on the right.
        mask: (B, T).
        media_batch: What the rows show.
        placeholders: Ids that stand for media.

    Returns:
        None where openings differ in length, end before the pictures, or belong to one row each.
    """
    keys = list(zip(media_batch.index.tolist(), media_batch.adapter_names, strict=True))
    groups = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    if len(groups) == len(keys) or any(kind < 0 for kind, _ in keys):
        return None
    rows = [row[:n] for row, n in zip(ids.tolist(), mask.sum(1).tolist(), strict=True)]
    together = [[r for r, k in zip(rows, keys, strict=True) if k == key] for key in groups]
    lengths = set()
    for members in together:
        same = takewhile(lambda column: len(set(column)) == 1, zip(*members, strict=False))
        length = min(len(list(same)), min(map(len, members)) - 1)
        if any(token in placeholders for row in members for token in row[length:]):
            return None
        lengths.add(length)
    shortest = min(lengths)
    if any(token in placeholders for row in rows for token in row[shortest:]):
        return None
    first = [keys.index(key) for key in groups]
    return Opening(first, torch.tensor([groups[key] for key in keys]), shortest)


def read(model: Any, found: Opening, ids: Tensor, media_batch: MediaBatch) -> Any:
    """The cache of all rows behind their openings."""
    rows = torch.tensor(found.first)
    start = ids[rows.to(ids.device), : found.length]
    output = model.vlm(
        input_ids=start,
        attention_mask=torch.ones_like(start),
        use_cache=True,
        **model.inputs(media_batch.rows(rows), {}),
    )
    cache = output.past_key_values
    cache.batch_select_indices(found.group.to(ids.device))
    return cache


def prompts(model: Any, parts: Parts, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's own `generate` takes.

    Args:
        model: An `AttachedModel`.
        parts: The batch, padded on either side.
        settings: Of `generate`.

    Returns:
        Ids, mask and the rest, rows padded on the left; or, where openings are read once, padded
        behind their opening, with the cache that holds it.
    """
    ids, mask, media_batch, beside = parts
    found = None
    if media_batch is not None and allowed(model, mask, beside, settings):
        media_batch = model.encoded(media_batch)
        found = opening(ids, mask, media_batch, model.placeholders)
    if found is None or media_batch is None:
        ids, mask, beside = left_padded(ids, mask, beside)
        last = ids[:, -1:]  # penalties count the ids in padding, too: one that the row has
        if model.placeholders.isdisjoint(last.flatten().tolist()):
            ids = ids.where(mask > 0, last)
        call: dict[str, Any] = model.call(ids, mask, media_batch, beside)
        return call
    rest, rest_mask, _ = left_padded(ids[:, found.length :], mask[:, found.length :], {})
    whole = torch.cat([ids[:, : found.length], rest], 1)
    seen = torch.cat([mask[:, : found.length], rest_mask], 1)
    known = read(model, found, ids, media_batch)
    return {"input_ids": whole, "attention_mask": seen, "past_key_values": known}


def allowed(
    model: Any, mask: Tensor, beside: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> bool:
    """Whether a model and settings of `generate` let openings be read apart from their rows."""
    if not model.shares_prefix or model.positions.inputs or model.window is not None or beside:
        return False
    return blind(settings, model.vlm) and bool(mask[:, 0].all()) and keeps_plainly(model.vlm)


def blind(settings: Mapping[str, Any], vlm: Any) -> bool:
    """Whether nothing in a request reads the prompt's ids, keeps a cache or copies rows.

    Padding stands between an opening and its question, and whatever looks at ids would meet it: a
    repetition penalty would count it, and forbidden pairs would miss the pair across it.
    """
    given = settings.get("generation_config")
    call = {} if given is None else given.to_diff_dict()
    call |= {name: value for name, value in settings.items() if name != "generation_config"}
    wanted = {**vlm.generation_config.to_diff_dict(), **call}
    for name in ("logits_processor", "stopping_criteria"):
        if not all(getattr(one, "blind", False) for one in wanted.pop(name, None) or ()):
            return False
    neutral = NEUTRAL.items()
    return all(name in BLIND or value is None or (name, value) in neutral
               for name, value in wanted.items())  # fmt: skip
