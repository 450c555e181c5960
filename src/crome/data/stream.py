"""Rows in training order, as the map-style dataset that a loader reads from position 0 on."""

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from crome.data.sampler import Sampler, keys, lay_out, scramble
from crome.rows import Row

Wording = Callable[[int, Row, int], Row]
"""(number of a row, the row, a random word) → the row as it is put to the model."""


class RowStream(Dataset[Row]):
    """Rows in training order: position i is the same row whatever was read before.

    Each epoch is shuffled anew by images: up to `questions_per_image` rows of an image stay
    together, so that a batch computes what they share once; the other questions on that image come
    elsewhere in the epoch. `crome.data.sampler` says how several processes read it, and why a
    resumed run goes on exactly.

    Args:
        rows: The training rows.
        epochs: The length is `epochs · len(rows)`.
        questions_per_image: Rows of one image kept together; 1 shuffles rows freely.
        seed: Seed of the shuffle.
        sampler: Position → number of the row; None for one by images, each row once an epoch.
        wording: Puts a row in words, one of several ways each time it comes.
        fingerprint: Stands for the data, where that is known.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        epochs: float = 1,
        questions_per_image: int = 4,
        seed: int = 0,
        sampler: Callable[[int], int] | None = None,
        wording: Wording | None = None,
        fingerprint: str | None = None,
    ) -> None:
        group = questions_per_image
        self.rows = rows
        self.epochs = epochs
        self.sampler = sampler or Sampler([lay_out(image_keys(rows), group)], group, seed)
        self.wording = wording
        self.fingerprint = fingerprint
        self.draws = keys(seed, "wording")[0]

    def __len__(self) -> int:
        return max(1, round(self.epochs * len(self.rows)))

    def __getitem__(self, position: int) -> Row:
        if position >= len(self):
            raise IndexError(position)
        number = self.sampler(position)
        row = self.rows[number]
        if self.wording is None:
            return row
        return self.wording(number, row, scramble(self.draws ^ position))


def image_keys(rows: Sequence[Row]) -> NDArray[np.uint64]:
    """Keys (rows,), equal where the images are equal, 0 for rows without."""
    numbers: dict[Hashable, int] = {(): 0}

    def key(row: Row) -> int:
        images = tuple(id(i) if isinstance(i, Image.Image) else i for i in row.images)
        return numbers.setdefault(images, len(numbers))

    return np.fromiter(map(key, rows), dtype=np.uint64, count=len(rows))
