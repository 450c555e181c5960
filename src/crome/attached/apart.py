"""Rows of one length at a time, for models in which rows of other lengths change a row's result.

Shapes: B rows, T tokens, A answer tokens, V vocabulary.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from crome.attached.batches import MediaBatch, Parts, left_padded
from crome.model.families import rows_disturb
from crome.model.generation import padded_together
from crome.model.losses import IGNORED
from crome.model.scoring import rows_of_one_length


def disturbed(model: Any, mask: Tensor, new_tokens: int = 0) -> bool:
    """Whether rows of other lengths would change a row's result."""
    return rows_disturb(model.language_model.config, mask.sum(1).cpu(), new_tokens)


def apart(parts: Parts, beside: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Parts]]:
    """The rows of each length without padding, by their numbers on the CPU.

    Args:
        parts: The batch.
        beside: Further things beside each token; they come back among the text.
    """
    for rows in rows_of_one_length(parts.mask.sum(1).cpu()):
        chosen = rows.to(parts.ids.device)
        length = int(parts.mask[chosen[0]].sum())
        own = {name: value[chosen] for name, value in {**parts.text, **beside}.items()}
        ids, mask, own = left_padded(parts.ids[chosen], parts.mask[chosen], own)
        media_batch: MediaBatch | None = (
            None if parts.media_batch is None else parts.media_batch.rows(rows)
        )
        own = {name: value[:, -length:] for name, value in own.items()}
        yield rows, Parts(ids[:, -length:], mask[:, -length:], media_batch, own)


def call_of(part: Parts) -> dict[str, Any]:
    """A batch as `forward` and `generate` take it."""
    call: dict[str, Any] = {"input_ids": part.ids, "attention_mask": part.mask, **part.text}
    if (media_batch := part.media_batch) is not None:
        call |= {
            "media": media_batch.media,
            "media_index": media_batch.index,
            "features": media_batch.features,
        }
        call["adapter_names"] = media_batch.adapter_names
    return call


def losses_apart(model: Any, parts: Parts, labels: Tensor) -> Tensor:
    """(A,) losses of the labels, in the order of rows."""
    losses, owners = [], []
    answers = (labels[:, 1:] != IGNORED).sum(1).cpu()
    for rows, part in apart(with_features(model, parts), {"labels": labels}):
        losses.append(model(**call_of(part)).token_losses)
        owners.append(rows.repeat_interleave(answers[rows]))
    order = torch.cat(owners).argsort(stable=True)
    return torch.cat(losses)[order.to(losses[0].device)]


def logits_apart(model: Any, parts: Parts) -> Tensor:
    """(B, T, V) logits, 0 where there is padding."""
    whole: Tensor | None = None
    for rows, part in apart(with_features(model, parts), {}):
        logits = model(**call_of(part)).logits
        if whole is None:
            whole = logits.new_zeros(*parts.ids.shape, logits.shape[-1])
        for row, own in zip(rows.tolist(), logits, strict=True):
            whole[row, parts.mask[row] > 0] = own
    assert whole is not None
    return whole


def answers_apart(model: Any, parts: Parts, settings: Mapping[str, Any]) -> Tensor:
    """(B, new tokens) ids."""
    pad = settings.get("pad_token_id")
    pad = model.vlm.generation_config.pad_token_id if pad is None else pad
    numbers, answers = [], []
    for rows, part in apart(with_features(model, parts), {}):
        numbers.append(rows)
        answers.append(model.generate(**call_of(part), **settings))
    return padded_together(answers, torch.cat(numbers), pad or 0)


def with_features(model: Any, parts: Parts) -> Parts:
    """The batch with the features of its media, which are computed once."""
    return parts._replace(media_batch=model.encoded(parts.media_batch))
