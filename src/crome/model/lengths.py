"""How many tokens a language model reads of each row, and for how many it has positions."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor

from crome.errors import InputError
from crome.model.families import context_length
from crome.model.protocol import Processor
from crome.rows import Row

LOOKED_AT = 20_000
"""Rows from everywhere in the data whose text is measured in bytes, which is quick."""
FITTING = 8
"""After so many rows in succession that fit, from the largest down, the rest are taken to fit."""


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


def too_long(room: Room, processor: Processor, rows: Sequence[Row]) -> Iterator[str]:
    """What is to be said of rows that are too long, those likeliest to be so first.

    Tokens are counted of the rows with the most text, then of those with the most media, until
    some in succession fit. Rows that cannot be read are left to whoever reads them.
    """
    if room.limit is None:
        return
    step = max(1, len(rows) // LOOKED_AT)
    kept = [rows[place] for place in range(0, len(rows), step)]
    counted = set()

    def text(row: Row) -> int:
        # Questions and answers are cut by the processor; a history is not.
        parts = [row.question[: 20 * processor.max_question_tokens]]
        parts += [row.answer[: 20 * processor.max_answer_tokens], row.system or ""]
        parts += [part for turn in row.history for part in turn]
        return sum(len(part.encode("utf-8", "replace")) for part in parts)

    def media(row: Row) -> int:
        return sum(map(len, row.media.values()))

    for size in (text, media):
        fitting = 0
        for place in sorted(range(len(kept)), key=lambda place: -size(kept[place])):
            if fitting == FITTING:
                break
            if place in counted:
                continue
            counted.add(place)
            fitting += 1
            with suppress(InputError):
                batch = processor.encode([kept[place]], answers=True)
                for reason in room.excess([kept[place]], batch).values():
                    fitting = 0
                    yield reason
