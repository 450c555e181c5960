"""Augmented views of pictures: a numbered view is the same pixels wherever it is made.

A cache of features fixes what was seen; several numbered views of each picture keep augmentation
and cache together.
"""

import random
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from crome.data.rows import Row

SMALLEST = 0.5
"""Of a picture's area that a view shows at least; half keeps what most questions ask about."""


class View(NamedTuple):
    """A picture file as its numbered view shows it; number 0 is the picture itself."""

    path: Path
    number: int


def show(image: Image.Image, number: int) -> Image.Image:
    """A random crop of a picture, mirrored half of the time.

    Args:
        image: The picture.
        number: Which crop; 0 for all of it.
    """
    if number == 0:
        return image
    draw = random.Random(f"view/{number}/{image.size}")
    share, aspect = draw.uniform(SMALLEST, 1), draw.uniform(3 / 4, 4 / 3)
    width = min(image.width, max(1, round(image.width * (share * aspect) ** 0.5)))
    height = min(image.height, max(1, round(image.height * (share / aspect) ** 0.5)))
    left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
    shown = image.crop((left, top, left + width, top + height))
    return shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else shown


class Views(Dataset["Row"]):
    """A stream of rows whose pictures are shown in another view each epoch.

    All questions on a picture see the same view within an epoch, so they still share its tokens.

    Args:
        stream: Rows in training order.
        count: Views of each picture.
        epoch: Rows of an epoch.
        seed: Of the choice.
    """

    def __init__(self, stream: "Dataset[Row]", count: int, epoch: int, seed: int = 0) -> None:
        self.stream = stream
        self.count = count
        self.epoch = epoch
        self.seed = seed
        self.fingerprint = getattr(stream, "fingerprint", None)

    def __len__(self) -> int:
        return len(self.stream)  # type: ignore[arg-type]

    def __getitem__(self, position: int) -> "Row":
        row, epoch = self.stream[position], position // self.epoch
        shown: tuple[Any, ...] = tuple(
            View(image, self._number(epoch, image)) if isinstance(image, Path) else image
            for image in row.images
        )
        return replace(row, images=shown)

    def _number(self, epoch: int, image: Path) -> int:
        return random.Random(f"{self.seed}/{epoch}/{image}").randint(1, self.count)
