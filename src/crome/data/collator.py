"""Rows → the batch the model takes. The processor is passed in, so this room knows no model."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crome.data.pictures import failure, files
from crome.data.problems import count
from crome.errors import InputError, JobError
from crome.model.lengths import REMEDY, Room, cut
from crome.model.protocol import Processor
from crome.rows import Row, require_media
from crome.storage import append_line

PATIENCE = 50  # unreadable pictures one after the other before a disk is taken to be away
logger = logging.getLogger(__name__)


class Collator:
    """Joins rows, or groups of rows, to a training batch.

    Args:
        processor: The model's own.
        room: What the language model has room for.
        skipped: Where to write, as JSON lines, the rows whose pictures cannot be read when their
            turn comes, or that are too long; they are left out of their batch, and a batch of such
            rows alone is an earlier row again. None makes the first of them an error.
    """

    def __init__(self, processor: Processor, room: Room, skipped: Path | None = None) -> None:
        self.processor = processor
        self.skipped = skipped
        self.room = room
        self.streak = 0  # of unreadable pictures
        self.earlier: Row | None = None

    def __call__(self, items: Sequence[Row | Sequence[Row]]) -> dict[str, Any]:
        """Rows (or groups of them) → tensors with labels.

        Raises:
            InputError: A picture cannot be read or a row is too long, and none may be skipped; or a
                row has media that the processor does not take.
            JobError: So many pictures in succession cannot be read that it is the disk.
        """
        rows = [row for item in items for row in ([item] if isinstance(item, Row) else item)]
        require_media(rows, self.processor.media)
        try:
            batch = self.join(rows)
        except InputError:
            broken = {f: reason for row in rows for f in files(row) if (reason := failure(f))}
            if self.skipped is None or not broken:
                raise
            rows = self.without(rows, broken)
            batch = self.join(rows)
        else:
            self.streak = 0
        cuts = {
            place: reason for place, row in enumerate(rows) if (reason := cut(self.processor, row))
        }
        if excess := cuts | self.room.excess(rows, batch):
            rows = self.shorter(rows, excess)
            batch = self.join(rows)
        self.earlier = rows[0]
        return batch

    def join(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Tensors of rows."""
        return dict(self.processor.encode(rows, answers=True))

    def without(self, rows: Sequence[Row], broken: dict[Path, str]) -> list[Row]:
        """The rows that show no broken picture; the others are written down."""
        good = [row for row in rows if broken.keys().isdisjoint(files(row))]
        reason = next(iter(broken.values()))
        self.streak = 0 if any(row.images for row in good) else self.streak + len(broken)
        if not good and self.earlier is not None and not any(map(failure, files(self.earlier))):
            good = [self.earlier]
        if self.streak >= PATIENCE or not good:
            raise JobError(
                f"{count(self.streak, 'picture')} in succession cannot be read: {reason} Is a disk "
                "away? The last whole checkpoint is as it was; start again when it is back."
            )
        reasons = ((row, [broken[file] for file in files(row) if file in broken]) for row in rows)
        self.write_down([(row, found[0]) for row, found in reasons if found])
        return good

    def shorter(self, rows: Sequence[Row], excess: dict[int, str]) -> list[Row]:
        """The rows that the language model has room for; the others are written down.

        Args:
            rows: Rows of a batch.
            excess: Why rows are too long, by their place.

        Raises:
            InputError: None may be skipped, or none is left.
        """
        good = [row for place, row in enumerate(rows) if place not in excess]
        if self.skipped is None:
            raise InputError(f"{next(iter(excess.values()))} {REMEDY}")
        if not good and self.earlier is None:
            reason = next(iter(excess.values()))
            raise InputError(f"{reason} No row before it fits; shorten them, or show less.")
        self.write_down([(rows[place], reason) for place, reason in excess.items()])
        return good or [row for row in [self.earlier] if row is not None]

    def write_down(self, left_out: Sequence[tuple[Row, str]]) -> None:
        """Adds rows that are left out, each with the reason, to the file of skipped ones."""
        assert self.skipped is not None
        for row, reason in left_out:
            append_line(self.skipped, {"id": row.id, "reason": reason})
        logger.warning("left out rows of a batch: %s See %s.", left_out[0][1], self.skipped)
