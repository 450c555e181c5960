"""Rows whose pictures are shown in another augmented view each epoch.

A cache of features fixes what a model sees of a picture. Numbered views of each picture let
augmentation and cache work together.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, IterableDataset

from crome.images import View, load_image, show
from crome.rows import Row


class Views(Dataset[Row]):
    """A stream of rows whose pictures are shown in another view each epoch.

    All questions on a picture see the same view within an epoch, so they still share its tokens.
    A picture's views take turns, so that as many epochs as views show all of them.

    Args:
        stream: Rows in training order.
        count: Views of each picture.
        epoch: Rows of an epoch.
        seed: Seed of the choice.
    """

    def __new__(cls, stream: Any = None, *_: Any, **__: Any) -> "Views":
        """Views of rows that stream by are a stream themselves."""
        return super().__new__(StreamedViews if isinstance(stream, IterableDataset) else cls)

    def __init__(self, stream: Dataset[Row], count: int, epoch: int, seed: int = 0) -> None:
        self.stream = stream
        self.count = count
        self.epoch = epoch
        self.seed = seed
        self.fingerprint = getattr(stream, "fingerprint", None)

    def __len__(self) -> int:
        return len(self.stream)  # type: ignore[arg-type]

    def __getitem__(self, position: int) -> Row:
        row, epoch = self.stream[position], position // self.epoch
        return with_views(row, (self._number(epoch, image) for image in row.images))

    def _number(self, epoch: int, image: Any) -> int:
        first = random.Random(f"{self.seed}/{image}").randrange(self.count)
        return 1 + (first + epoch) % self.count


class StreamedViews(Views, IterableDataset[Row]):
    """Views of rows that stream by: no cache keeps them, so each is another one of the views.

    Questions on one picture follow each other in a stream, and see the same view.
    """

    def __iter__(self) -> Iterator[Row]:
        earlier: tuple[Any, ...] = ()
        seen: tuple[Any, ...] = ()
        rows: Iterable[Row] = self.stream  # type: ignore[assignment]
        for position, row in enumerate(rows):
            if not same(row.images, earlier):
                earlier = row.images
                draw = random.Random(f"{self.seed}/{position}")
                seen = tuple(show(load_image(i), draw.randint(1, self.count)) for i in earlier)
            yield replace(row, images=seen)


def with_views(row: Row, numbers: Iterable[int]) -> Row:
    """A row whose picture files are shown in the views of these numbers."""
    images: tuple[Any, ...] = tuple(
        View(image, number) if isinstance(image, Path) else image
        for image, number in zip(row.images, numbers, strict=False)
    )
    return replace(row, images=images)


def same(images: tuple[Any, ...], others: tuple[Any, ...]) -> bool:
    """Whether pictures are the same objects."""
    return len(images) == len(others) and all(a is b for a, b in zip(images, others, strict=True))
