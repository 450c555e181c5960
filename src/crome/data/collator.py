"""Rows → the batch the model takes. The processor is passed in, so this room knows no model."""

from collections.abc import Callable, Sequence
from typing import Any

from crome.data.rows import Row


class Collator:
    """Joins rows, or groups of rows, to a training batch.

    Args:
        processor: A `CromeProcessor`, or anything called like one.
    """

    def __init__(self, processor: Callable[..., Any]) -> None:
        self.processor = processor

    def __call__(self, items: Sequence[Row | Sequence[Row]]) -> dict[str, Any]:
        """Rows (or groups of them) → tensors with labels."""
        rows = [row for item in items for row in ([item] if isinstance(item, Row) else item)]
        return dict(
            self.processor(
                images=[row.images for row in rows],
                text=[row.question for row in rows],
                answers=[row.answer for row in rows],
                histories=[row.history for row in rows],
            )
        )
