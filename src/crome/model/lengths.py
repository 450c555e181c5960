"""How many tokens a language model reads of each row, and for how many it has positions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor

from crome.model.families import context_length
from crome.rows import Row


@dataclass(frozen=True)
class Room:
    """What a language model has room for.

    Attributes:
        limit: Tokens of a row that it can tell apart by position; None where it sets no limit.
        per_picture: Visual tokens of a picture that are not among a batch's `input_ids`.
    """

    limit: int | None
    per_picture: int = 0

    @classmethod
    def measured(cls, model: Any, processor: Any) -> Self:
        """The room of a model; its visual tokens are counted on a blank picture.

        Args:
            model: A `CromeForConditionalGeneration`, or an attached model, whose `input_ids` have
                a place for each visual token already.
            processor: Of the model.
        """
        limit = context_length(model.language_model.config)
        if limit is None or not hasattr(model, "visual_features"):
            return cls(limit)
        pixels = processor.pixel_values([Image.new("RGB", (64, 64))])
        with torch.no_grad():
            patches = model.visual_features(pixels.to(model.device)).patches
        branches = model.config.branches
        queries = model.config.num_query_tokens if "query" in branches else 0
        return cls(limit, queries + (patches.shape[1] if "patch" in branches else 0))

    def lengths(self, batch: Mapping[str, Any]) -> Tensor:
        """(B,) tokens of the rows of a processor's batch, with answers and visual tokens.

        Answers that a decoder of their own reads are counted apart: the longer of the two parts
        counts.
        """
        lengths: Tensor = batch["attention_mask"].sum(1)
        if (index := batch.get("image_index")) is not None:
            lengths = lengths + self.per_picture * (index >= 0).sum(1)
        if (labels := batch.get("labels")) is not None:
            lengths = lengths.maximum((labels != -100).sum(1))
        return lengths

    def excess(self, rows: Sequence[Row], batch: Mapping[str, Any]) -> dict[int, str]:
        """What is to be said of the rows that are too long, by their place in the batch."""
        if self.limit is None:
            return {}
        lengths = self.lengths(batch).tolist()
        return {
            place: f"row {row.id} has {length:,} tokens with its pictures, history and answer; the "
            f"language model reads {self.limit:,}."
            for place, (row, length) in enumerate(zip(rows, lengths, strict=True))
            if length > self.limit
        }
