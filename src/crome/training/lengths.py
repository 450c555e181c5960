"""Before a run: rows that are longer than the model reads."""

from typing import Any

from torch.utils.data import Dataset

from crome.errors import InputError
from crome.model.lengths import REMEDY, Room, too_long
from crome.model.protocol import Processor
from crome.training.progress import console


def check_lengths(room: Room, processor: Processor, stream: Dataset[Any], skip: bool) -> None:
    """Refuses a run some of whose rows are longer than the model reads.

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
    if not hasattr(rows, "__getitem__"):
        return
    first = next(too_long(room, processor, rows), None)
    if first is not None and not skip:
        raise InputError(f"{first} {REMEDY}")
    if first is not None:
        console.print(
            f"{first} It and others that are too long are left out (skipped.jsonl).",
            style="yellow", markup=False, soft_wrap=True,
        )  # fmt: skip
