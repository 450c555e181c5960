"""Before a run: rows that are longer than the language model can read."""

from collections.abc import Iterable
from contextlib import suppress
from heapq import nlargest
from typing import Any

from torch.utils.data import Dataset

from crome.errors import InputError
from crome.model.lengths import Room
from crome.model.protocol import Processor
from crome.rows import Row
from crome.training.progress import console

LOOKED_AT = 20_000
"""Rows from everywhere in the data whose text is measured in bytes, which is quick."""
COUNTED = 8
"""So many rows with the most text, and with the most media, are counted in tokens."""
REMEDY = (
    "Shorten its history or show fewer pictures, or leave such rows out with --on_bad_row skip."
)


def check_lengths(room: Room, processor: Processor, stream: Dataset[Any], skip: bool) -> None:
    """Refuses a run some of whose rows are longer than the language model can read.

    The rows that are likeliest to be too long are counted in tokens. `Collator` counts every row
    when its turn comes.

    Args:
        room: Of the model.
        processor: Of the model.
        stream: The rows; those of shards, which are not at hand before the run, are not looked at.
        skip: Whether such rows are left out as they come, which is said, and not refused.

    Raises:
        InputError: With the first such row, its tokens and the limit.
    """
    rows: Any = getattr(getattr(stream, "stream", stream), "rows", None)  # of views, what they show
    if room.limit is None or not hasattr(rows, "__getitem__"):
        return
    step = max(1, len(rows) // LOOKED_AT)
    candidates = longest((rows[place] for place in range(0, len(rows), step)), processor)
    found = [reason for row in candidates for reason in too_long(room, processor, row)]
    if found and not skip:
        raise InputError(f"{found[0]} {REMEDY}")
    if found:
        console.print(
            f"{found[0]} It and others that are too long are left out (skipped.jsonl).",
            style="yellow", markup=False, soft_wrap=True,
        )  # fmt: skip


def longest(rows: Iterable[Row], processor: Processor) -> list[Row]:
    """The rows with the most text and those with the most media, each once."""
    kept = list(rows)

    def size(row: Row) -> int:
        # Questions and answers are cut by the processor; a history is not.
        parts = [row.question[: 20 * processor.max_question_tokens]]
        parts += [row.answer[: 20 * processor.max_answer_tokens], row.system or ""]
        parts += [text for turn in row.history for text in turn]
        return sum(len(part.encode("utf-8", "replace")) for part in parts)

    chosen = nlargest(COUNTED, kept, key=size)
    chosen += nlargest(COUNTED, kept, key=lambda row: len(row.media))
    return list({id(row): row for row in chosen}.values())


def too_long(room: Room, processor: Processor, row: Row) -> list[str]:
    """What is to be said of a row that is too long; nothing of one that cannot be read at all."""
    with suppress(InputError):  # whoever reads it in the run says what is wrong
        return list(room.excess([row], processor.encode([row], answers=True)).values())
    return []
