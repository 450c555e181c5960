"""Prepared rows as one batch: text padded on the right, media in a list that moves with it.

Shapes: B rows, T tokens of the longest.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BatchFeature

from crome.attached.encoding import Visual
from crome.model.wording import pad

TYPES = "token_type_ids"


def joined(
    rows: Sequence[Mapping[str, Tensor]],
    answers: Sequence[list[int]] | None,
    padding: int,
    suffix_type: int,
) -> dict[str, Any]:
    """Rows as one batch, with their answers behind them where there are any.

    Args:
        rows: What stands beside each token of a prompt, by name, (1, its length) each.
        answers: Token ids of each answer with its end; None for prompts alone.
        padding: The token id of padding.
        suffix_type: What `token_type_ids` are of an answer's tokens.

    Returns:
        The same names, (B, T); and `labels` where there are answers.
    """
    endings = [[] for _ in rows] if answers is None else list(answers)
    lengths = [row["input_ids"].shape[-1] for row in rows]
    total = max(n + len(end) for n, end in zip(lengths, endings, strict=True))
    batch: dict[str, Any] = {}
    names = [name for row in rows for name in row]
    if suffix_type and answers is not None:
        names.append(TYPES)  # of text alone, too: its answer would be read in both directions
    for name in dict.fromkeys(names):
        kind = suffix_type if name == TYPES else 0
        extended = [
            F.pad(
                with_answer(name, row, end, kind),
                (0, total - length - len(end)),
                value=padding if name == "input_ids" else 0,
            )
            for row, end, length in zip(rows, endings, lengths, strict=True)
        ]
        batch[name] = torch.cat(extended)
    if answers is not None:
        labels = [[-100] * n + end for n, end in zip(lengths, endings, strict=True)]
        batch["labels"] = pad(labels, -100)
    return batch


def with_answer(name: str, row: Mapping[str, Tensor], answer: list[int], kind: int) -> Tensor:
    """(1, T) one thing beside each token of a row and its answer; zeros where the row has none."""
    value = row.get(name)
    if value is None:
        value = torch.zeros_like(row["input_ids"])
    if name == "input_ids":
        tail = torch.tensor([answer], dtype=value.dtype)
    else:
        filling = 1 if name == "attention_mask" else kind
        tail = torch.full((1, len(answer)), filling, dtype=value.dtype)
    return torch.cat([value, tail.reshape(1, -1)], 1)


class Batch(BatchFeature):
    """A batch whose nested tensors move with it."""

    def to(self, *args: Any, **kwargs: Any) -> "Batch":
        """Moves all tensors, those of media too; types stay as they are."""
        device = kwargs.get("device", args[0] if args else None)
        self.data = moved(self.data, device)
        return self


def as_dicts(features: Visual) -> dict[str, dict[str, Any]]:
    """Features as libraries move them to devices: in plain dictionaries."""
    return {modality: dict(encoded) for modality, encoded in features.items()}


def moved(value: Any, device: Any) -> Any:
    """Nested tensors on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {k: moved(v, device) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(moved(v, device) for v in value)
    return value
