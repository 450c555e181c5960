"""How a picture becomes pixel values: whole, as for a test, or as a random crop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

VIEW_AREA = (0.5, 1.0)  # share of the image in an augmented view, as in Tip-Adapter
VIEW_ASPECT = (3 / 4, 4 / 3)


class Transform(Protocol):
    """What an encoder does to pictures before it sees them.

    ``centre`` and ``random`` each give one view, of a kind that ``tensor`` stacks.
    """

    def centre(self, image: Image.Image) -> Any:
        """The view that the encoder was made for."""

    def random(self, image: Image.Image, rng: np.random.Generator) -> Any:
        """A random crop, flipped half of the time."""

    def tensor(self, views: Sequence[Any]) -> Tensor:
        """Pixel values (B, 3, height, width)."""


@dataclass(frozen=True)
class Preprocessing:
    """Square pictures, resampled bicubically.

    Attributes:
        size: Side in pixels.
        crop: Resize the shorter side and cut the centre; else the whole image is squeezed square.
        mean: Per channel, pixels in [0, 1].
        std: Per channel.
    """

    size: int
    crop: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def centre(self, image: Image.Image) -> NDArray[np.uint8]:
        """The test-time view, (size, size, 3)."""
        box = None
        if self.crop:
            side = min(image.size)
            left, top = (image.width - side) / 2, (image.height - side) / 2
            box = (left, top, left + side, top + side)
        size = (self.size, self.size)
        return np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=box))

    def random(self, image: Image.Image, rng: np.random.Generator) -> NDArray[np.uint8]:
        """A random crop, flipped half of the time, (size, size, 3)."""
        return np.asarray(random_view(image, rng, (self.size, self.size)))

    def tensor(self, views: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Pixel values (B, 3, size, size)."""
        pixels = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float() / 255
        shape = (1, 3, 1, 1)
        mean, std = (
            torch.tensor(values, device=pixels.device).view(shape)
            for values in (self.mean, self.std)
        )
        return (pixels - mean) / std


@dataclass(frozen=True)
class OwnTransform:
    """An encoder's own transform, taken as it is.

    Attributes:
        whole: The published transform of a test picture, to (3, height, width).
        values: The last part of it, from a picture of the final size to pixel values.
        size: Final (width, height).
        resample: Pillow's filter.
        settings: What the transform does, in words; two that differ give different features.
    """

    whole: Callable[[Image.Image], Tensor]
    values: Callable[[Image.Image], Tensor]
    size: tuple[int, int]
    resample: Image.Resampling
    settings: str

    def centre(self, image: Image.Image) -> Tensor:
        """The test-time view, (3, height, width)."""
        return self.whole(image)

    def random(self, image: Image.Image, rng: np.random.Generator) -> Tensor:
        """A random crop, flipped half of the time, (3, height, width)."""
        return self.values(random_view(image, rng, self.size, self.resample))

    def tensor(self, views: Sequence[Tensor]) -> Tensor:
        """Pixel values (B, 3, height, width)."""
        return torch.stack(list(views))

    def __repr__(self) -> str:
        return self.settings


def random_view(
    image: Image.Image,
    rng: np.random.Generator,
    size: tuple[int, int],
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """A random crop of a picture, resized, and flipped half of the time."""
    left, top, width, height = random_box(image.width, image.height, rng)
    view = image.resize(size, resample, box=(left, top, left + width, top + height))
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else view


def random_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw a crop by area and aspect; the whole image where none fits: (left, top, w, h)."""
    for _ in range(10):
        area = width * height * rng.uniform(*VIEW_AREA)
        aspect = np.exp(rng.uniform(*np.log(VIEW_ASPECT)))
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    return 0, 0, width, height
