"""How much of a row a model reads, and what happens to longer rows: one rule for every verb.

A processor would cut a question or an answer that is longer than its checkpoint reads, and a
language model has positions for a limited number of tokens. A longer row is refused, or left out if
the user chose so, and never shortened in silence. Only the questions of published benchmarks are
cut, as their protocols demand, and the report of `crome evaluate` says how many.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
"""Number of rows, spread over the data, whose text is measured in bytes, which is quick."""
FITTING = 8
"""Rows are tokenised from the largest down; once so many in succession fit, the rest will, too."""
REMEDY = (
    "Shorten such rows, show fewer pictures, or leave them out with --on_bad_row skip; --settings "
    "'{max_question_tokens: N, max_answer_tokens: N}' makes a run read more of them."
)


@dataclass(frozen=True)
class Room:
    """What a language model has room for.

    Attributes:
        limit: Number of positions that the language model has; None where it sets no limit.
        per_picture: Visual tokens of a picture that are not among a batch's `input_ids`.
        count: Gives the positions that the rows of a batch take, where these are not their tokens.
    """

    limit: int | None
    per_picture: int = 0
    count: Callable[..., Tensor] | None = None

    @classmethod
    def measured(cls, model: Any, processor: Any) -> Self:
        """The room of a model; its visual tokens are counted on a blank picture.

        Args:
            model: A `CromeForConditionalGeneration`, or an attached model, whose `input_ids` have
                a place for each visual token already.
            processor: The model's own.
        """
        limit = context_length(model.language_model.config)
        if limit is None or not hasattr(model, "visual_features"):
            return cls(limit, count=getattr(model, "lengths", None))
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
        if self.count is not None:
            return self.count(**{k: v for k, v in batch.items() if k != "labels"})
        lengths: Tensor = batch["attention_mask"].sum(1)
        if (index := batch.get("image_index")) is not None:
            lengths = lengths + self.per_picture * (index >= 0).sum(1)
        if (labels := batch.get("labels")) is not None:
            lengths = lengths.maximum((labels != -100).sum(1))
        return lengths

    def excess(self, rows: Sequence[Row], batch: Mapping[str, Any]) -> dict[int, str]:
        """A message for each row that is too long, by its place in the batch."""
        if self.limit is None:
            return {}
        lengths = self.lengths(batch).tolist()
        return {
            place: f"row {row.id} has {length:,} tokens with its pictures, history and answer; the "
            f"language model reads {self.limit:,}."
            for place, (row, length) in enumerate(zip(rows, lengths, strict=True))
            if length > self.limit
        }


def cut(processor: Processor, row: Row, answer: bool = True) -> str | None:
    """A message about a row that its processor would cut; None for one that it reads whole.

    Args:
        processor: The model's own.
        row: A question with its answer.
        answer: Whether the answer counts, too.
    """
    if processor.reads_whole(row.question, row.answer if answer else ""):
        return None
    part = "answer" if processor.reads_whole(row.question) else "question"
    return (
        f"row {row.id} has a longer {part} than the {getattr(processor, f'max_{part}_tokens')} "
        f"tokens that this model reads (max_{part}_tokens)."
    )


def require_whole(processor: Processor, rows: Iterable[Row]) -> None:
    """Refuses questions that would be cut.

    Raises:
        InputError: The message names the first of them.
    """
    for row in rows:
        if reason := cut(processor, row, answer=False):
            raise InputError(
                f"{reason} Shorten it; or train with --settings '{{max_question_tokens: N}}', and "
                "ask the checkpoint of that run."
            )


def too_long(room: Room, processor: Processor, rows: Sequence[Row]) -> Iterator[str]:
    """Messages about rows that are too long, the likeliest first.

    The rows with the longest questions are looked at, then those with the longest answers, the most
    text and the most media, each until some in succession fit. Rows that cannot be read are passed
    over here; reading them will say what is wrong.
    """
    step = max(1, len(rows) // LOOKED_AT)
    kept = [rows[place] for place in range(0, len(rows), step)]
    counted = set()

    def text(row: Row) -> int:
        history = [part for turn in row.history for part in turn]
        return sum(map(size, (row.question, row.answer, row.system or "", *history)))

    def media(row: Row) -> int:
        return sum(map(len, row.media.values()))

    for measure in (lambda row: size(row.question), lambda row: size(row.answer), text, media):
        fitting = 0
        for place in sorted(range(len(kept)), key=lambda place: -measure(kept[place])):
            if fitting == FITTING:
                break
            if place in counted:
                continue
            counted.add(place)
            fitting += 1
            for reason in reasons(room, processor, kept[place]):
                fitting = 0
                yield reason


def reasons(room: Room, processor: Processor, row: Row) -> Iterator[str]:
    """A message about a row that is too long; nothing for one that fits."""
    if reason := cut(processor, row):
        yield reason
    elif room.limit is not None:
        with suppress(InputError):
            yield from room.excess([row], processor.encode([row], answers=True)).values()


def size(text: str) -> int:
    """Bytes of a text, which go with its tokens."""
    return len(text.encode("utf-8", "replace"))
