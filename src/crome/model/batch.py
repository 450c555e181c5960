"""The questions of a batch as the processor gives them, and what is planned from them on the CPU.

Shapes: B rows (questions), I distinct images of the batch, K images a row at most, T text tokens,
S instruction tokens of the Q-Former.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

from crome.errors import InputError


@dataclass
class PromptBatch:
    """The prompts of a batch.

    Attributes:
        input_ids: (B, T) text, padded on either side.
        attention_mask: (B, T); None where nothing is padding.
        visual_position: (B,) text tokens in front of a row's visual block; None without images.
        pixel_values: (I, 3, H, W) distinct images of the batch.
        image_index: (B, K) the images of each row in order, -1 for none.
        qformer_input_ids: (B, S) what the Q-Former reads of each question.
        qformer_attention_mask: (B, S).
        features: Frozen features (fields of `VisualFeatures`) instead of `pixel_values`.
        adapter_names: The name of an adapter for each row, where None means the base's own; by
            default the active adapter for all rows.

    Raises:
        InputError: Parts disagree about the number of rows or tokens.
    """

    input_ids: Tensor
    attention_mask: Tensor | None = None
    visual_position: Tensor | None = None
    pixel_values: Tensor | None = None
    image_index: Tensor | None = None
    qformer_input_ids: Tensor | None = None
    qformer_attention_mask: Tensor | None = None
    features: Sequence[Tensor | None] | None = None
    adapter_names: Sequence[str | None] | None = None

    def __post_init__(self) -> None:
        if self.input_ids.ndim != 2:
            raise InputError(
                f"input_ids is {tuple(self.input_ids.shape)}; expected (rows, tokens)."
            )
        rows = len(self.input_ids)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("features", "pixel_values") or value is None:
                continue
            if len(value) != rows:
                raise InputError(f"{field.name} has {len(value)} rows for {rows} questions.")
        if self.attention_mask is not None and self.attention_mask.shape != self.input_ids.shape:
            raise InputError(
                f"attention_mask is {tuple(self.attention_mask.shape)} and input_ids "
                f"{tuple(self.input_ids.shape)}; expected one value for each token."
            )

    @classmethod
    def split(cls, keywords: dict[str, Any]) -> tuple[Self, dict[str, Any]]:
        """Splits the keywords of a call into a batch and the rest.

        Raises:
            InputError: There are no `input_ids`.
        """
        names = {field.name for field in fields(cls)}
        if keywords.get("input_ids") is None:
            raise InputError("there are no input_ids; give the tensors that the processor made.")
        own = {name: value for name, value in keywords.items() if name in names}
        return cls(**own), {k: v for k, v in keywords.items() if k not in names}

    def rows(self, chosen: Tensor) -> Self:
        """A batch of chosen rows; it keeps all images, which `image_index` names by number.

        Args:
            chosen: (N,) numbers of rows in the order wanted, on the CPU.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in values.items():
            if isinstance(value, Tensor) and name != "pixel_values":
                values[name] = value[chosen.to(value.device)]
        if self.adapter_names is not None:
            values["adapter_names"] = [self.adapter_names[row] for row in chosen.tolist()]
        if self.features is not None:
            values["features"] = self._features_of(chosen)
        return type(self)(**values)

    def _features_of(self, chosen: Tensor) -> Sequence[Tensor | None] | None:
        """Features for chosen rows; outputs of the Q-Former, one for each block, are chosen too."""
        queries, patches, *outputs = self.features or ()
        if not outputs or outputs[0] is None or self.image_index is None:
            return self.features
        (index,) = on_host(self.image_index)
        assert index is not None
        blocks = torch.arange(int((index >= 0).sum())).split((index >= 0).sum(1).tolist())
        rows = torch.cat([blocks[row] for row in chosen.tolist()])
        return queries, patches, outputs[0][rows.to(outputs[0].device)]


@dataclass(frozen=True)
class Layout:
    """The numbers of a batch on the CPU, fetched in one transfer.

    A step plans from them where every token goes, so that nothing in it waits for a GPU.

    Attributes:
        input_ids: (B, T).
        real: (B, T) False for padding.
        visual_position: (B,); None for rows without a visual block.
        image_index: (B, K) the images of each row, -1 for none; None where no row shows one.
        labels: (B, ·); None without labels.
    """

    input_ids: Tensor
    real: Tensor
    visual_position: Tensor | None
    image_index: Tensor | None
    labels: Tensor | None

    @classmethod
    def plan(cls, batch: PromptBatch, labels: Tensor | None = None) -> Self:
        """Fetches the numbers of a batch.

        Args:
            batch: The prompts.
            labels: Those of the text, or of an encoder-decoder's answers.
        """
        ids, mask, position, index, fetched_labels = on_host(
            batch.input_ids,
            batch.attention_mask,
            batch.visual_position,
            batch.image_index,
            labels,
        )
        assert ids is not None
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        shows = index is not None and bool((index >= 0).any())
        return cls(ids, real, position, index if shows else None, fetched_labels)

    @property
    def lengths(self) -> Tensor:
        """(B,) text tokens of each row."""
        return self.real.sum(1)


def on_host(*tensors: Tensor | None) -> list[Tensor | None]:
    """Tensors of whole numbers on the CPU; those on another device are fetched in one transfer."""
    away = [x for x in tensors if x is not None and x.device.type != "cpu"]
    if not away:
        return list(tensors)
    fetched = torch.cat([x.reshape(-1).long() for x in away]).cpu()
    parts = iter(fetched.split([x.numel() for x in away]))
    return [
        x if x is None or x.device.type == "cpu" else next(parts).view(x.shape) for x in tensors
    ]


@dataclass
class CromeOutput(ModelOutput):
    """What `forward` returns.

    Attributes:
        loss: Cross-entropy over answer tokens, mean or sum / `num_items_in_batch`.
        logits: (A, V) at the positions that predict an answer token when labels were given, None
            where they are so many that losses are computed in chunks (`crome.model.losses`);
            otherwise (B, L, V) over the whole sequence, visual tokens included.
        token_losses: (A,) cross-entropy of each answer token, in row order.
        hidden_states: (B, L, d) of each layer of the language model, if they were requested.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    token_losses: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
