"""Before a run: rows that are too long, and what the run would do in vain."""

import os
from collections.abc import Iterator, Sequence
from math import ceil
from typing import Any

from torch.utils.data import Dataset

from crome.errors import InputError
from crome.model.lengths import REMEDY, Room, too_long
from crome.model.protocol import Processor
from crome.rows import Row
from crome.training.progress import console
from crome.training.settings import RunSettings

SAMPLED_ROWS = 100_000
"""So many rows are looked at for pictures where the first show none."""


def check_lengths(room: Room, processor: Processor, stream: Dataset[Any], skip: bool) -> None:
    """Refuses a run some of whose rows are longer than the model reads.

    The rows that are likeliest to be too long are counted in tokens. `Collator` counts every row
    when its turn comes.

    Args:
        room: The room of the model.
        processor: The model's own.
        stream: The rows; those of shards, which are not at hand before the run, are not looked at.
        skip: Whether such rows are left out as they come, which is said, and not refused.

    Raises:
        InputError: The message names the first such row, its tokens and the limit.
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


def warn(
    processor: Any, rows: Sequence[Row], run: RunSettings, stream: Any, views: int, new: bool
) -> None:
    """Tells what a run would do in vain, and refuses one that would learn nothing.

    Raises:
        InputError: No row shows anything, and all that trains stands behind pictures.
    """
    if not any(row.media for row in rows) and not any(row.media for row in sample(stream)):
        raise InputError(
            "no row shows a picture, and what trains sees nothing else: it would learn nothing. "
            "Name the pictures of the rows (`image`); `crome validate` shows how rows are read."
        )
    idle = sum(not row.media for row in rows)
    lines = vain(processor, run, stream, views, new)
    if 2 * idle > len(rows):
        lines.append(
            f"Of the first {len(rows)} rows {idle} show no picture. They teach nothing: all that "
            "trains stands behind pictures."
        )
    for line in lines:
        console.print(line, style="yellow", markup=False, soft_wrap=True)


def sample(stream: Any) -> Iterator[Row]:
    """All rows of a file, or some from everywhere in a mixture; none of shards."""
    rows = getattr(stream, "rows", ())
    if isinstance(rows, Sequence):
        step = max(1, len(rows) // SAMPLED_ROWS)
        yield from (rows[place] for place in range(0, len(rows), step))


def vain(processor: Any, run: RunSettings, stream: Any, views: int, new: bool) -> list[str]:
    """What a run would do in vain, a line each."""
    optimization, lines = run.optimization, []
    if not processor.end_ids:
        lines.append(
            "The tokenizer has no end token, so the model learns answers that never stop; name one "
            "as eos_token in the tokenizer_config.json of the language model."
        )
    steps = max(1, len(stream) // optimization.batch(int(os.environ.get("WORLD_SIZE", 1))))
    if 1 <= optimization.warmup_steps and optimization.warmup_steps >= steps:
        lines.append(
            f"The warm-up takes {optimization.warmup_steps:g} steps and the run {steps}, so the "
            "learning rate never comes to its peak; lower --optimization.warmup_steps."
        )
    if new and run.stage == "finetune":
        lines.append(
            "The bridge is new and stage finetune trains its adapter alone, behind projections "
            "that know nothing; --stage instruct or pretrain trains them first."
        )
    epochs = getattr(stream, "epochs", optimization.epochs)
    if views > max(1, epochs):
        come = max(1, ceil(epochs))
        lines.append(
            f"Each epoch shows one view of a picture, so {epochs:g} epochs show {come} of its "
            f"{views}; give --views {come}, or --optimization.epochs {views}."
        )
    return lines
