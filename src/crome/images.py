"""Pictures from files: upright, opaque RGB, or a refusal that names the file; and views of them."""

import ctypes
import io
import logging
import random
import warnings
from contextlib import suppress
from ctypes.util import find_library
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError

from crome.errors import InputError

MAX_MEGAPIXELS = 89  # where Pillow starts to warn of decompression bombs
MAX_ASPECT = 200
"""A side at most so many times as long as the other: vision-language models refuse more, too."""

# Pillow reads more, some by starting other programs (EPS); pictures of data sets are these. Phones'
# multi-picture files (MPO) count as JPEG.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")

SMALLEST = 0.5
"""Least share of a picture's area that a view shows; half keeps what most questions ask about."""

# The limit above is an error, so that Pillow's warning would only double it; what Pillow says of
# damaged metadata helps nobody: a picture is read whole, or refused with its name.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())  # else Python prints its errors


class View(NamedTuple):
    """A picture file in one of its numbered augmented views; number 0 is the picture itself.

    A numbered view has the same pixels wherever it is made, so that features of views can be kept.
    """

    path: Path
    number: int


def load_image(image: Path | str | View | Image.Image | bytes) -> Image.Image:
    """Return a picture as upright, opaque RGB.

    The EXIF orientation is applied (a broken one is passed over), transparent parts become white,
    grey of up to 16 bits is scaled to 8 and of an animation the first frame is taken.

    Args:
        image: A file, a view of one, an already opened picture, or the bytes of a file.

    Returns:
        The picture, in mode RGB, with its pixels loaded.

    Raises:
        InputError: There is no such file, it is not a picture, truncated, larger than
            `MAX_MEGAPIXELS`, or longer than `MAX_ASPECT` times its other side.
    """
    if isinstance(image, View):
        return show(load_image(image.path), image.number)
    if isinstance(image, Image.Image):
        name = getattr(image, "filename", "") or f"the {image.width} × {image.height} picture"
        return decode(image, str(name))
    content = image if isinstance(image, bytes) else None
    name = "its picture" if isinstance(image, bytes) else str(image)
    try:
        opened = Image.open(name if content is None else io.BytesIO(content), formats=FORMATS)
    except FileNotFoundError as error:
        raise InputError(f"no picture {name}; expected an existing file.") from error
    except UnidentifiedImageError as error:
        if content is None:
            with open(name, "rb") as file:
                content = file.read(512)
        raise InputError(
            f"{name} is not a picture ({describe(content[:512])}); expected {', '.join(FORMATS)}."
        ) from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} is too large: more than {MAX_MEGAPIXELS} megapixels.") from error
    except Exception as error:
        raise InputError(f"{name} cannot be decoded: {brief(error)}.") from error
    with opened:
        return decode(opened, name)


@cache
def quiet_libtiff() -> None:
    """Keeps libtiff from writing lines about damaged files to standard error.

    Pillow's wheels bring the library along; otherwise it is the system's.
    """
    folder = Path(PIL.__path__[0])
    names: list[Path | str | None] = [
        *folder.parent.glob("pillow.libs/libtiff*"),
        *folder.glob(".dylibs/libtiff*"),
    ]
    for name in names or [find_library("tiff")]:
        with suppress(OSError, AttributeError, TypeError):  # another name, or no such library
            library = ctypes.CDLL(str(name))
            library.TIFFSetErrorHandler(None)
            library.TIFFSetWarningHandler(None)


def decode(image: Image.Image, name: str) -> Image.Image:
    """Decodes an opened picture; the error of one that cannot be decoded has its name."""
    try:
        return upright_rgb(image, name)
    except InputError:
        raise
    # Decoders raise whatever a broken file makes them trip over (SyntaxError, struct.error, …).
    except Exception as error:
        raise InputError(f"{name} cannot be decoded: {brief(error)}.") from error


def upright_rgb(image: Image.Image, name: str) -> Image.Image:
    """Turns and flattens an opened picture; the result has no orientation left to apply."""
    check_size(image, name)
    if getattr(image, "format", None) == "TIFF":
        quiet_libtiff()
    image.load()  # a broken picture fails here, and not as a broken orientation
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # whatever a parser trips over; the pixels are whole
        pass
    if image.mode.startswith("I"):
        image = eight_bits(image, name)
    if image.mode == "F":
        raise InputError(f"{name} has floating-point pixels; expected 8 or 16 bits a channel.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    image.info = {}  # else a broken orientation would be met again, and a sound one applied twice
    return image


def check_size(image: Image.Image, name: str) -> None:
    """Refuses a picture whose preprocessing would take the memory of a machine.

    Raises:
        InputError: It has too many pixels, or is so long that scaling its short side up to what an
            encoder reads would give too many.
    """
    width, height = image.width, image.height
    if width * height > MAX_MEGAPIXELS * 1_000_000:
        raise InputError(
            f"{name} is {width} × {height} pixels; expected at most {MAX_MEGAPIXELS} megapixels. "
            "Scale it down first."
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InputError(
            f"{name} is {width} × {height} pixels; expected at most {MAX_ASPECT} times as long as "
            "wide. Cut it up first."
        )


def eight_bits(image: Image.Image, name: str) -> Image.Image:
    """A grey picture of up to 16 bits in 8.

    Cameras and scanners put values of 10, 12 or 14 bits into 16-bit files without scaling them;
    the largest value tells which.

    Raises:
        InputError: Its values need more than 16 bits.
    """
    values = np.asarray(image)
    least, most = int(values.min()), int(values.max())
    if least < 0 or most >= 1 << 16:
        raise InputError(f"{name} has 32-bit pixels; expected 8 or 16 bits a channel.")
    bits = next(bits for bits in (8, 10, 12, 14, 16) if most < 1 << bits)
    return Image.fromarray((values >> (bits - 8)).astype(np.uint8))


def brief(error: Exception) -> str:
    """An error in one line."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def describe(head: bytes) -> str:
    """What a file that is not a picture seems to be, from its first bytes."""
    if not head:
        return "it is empty"
    if b"<svg" in head.lower():
        return "it is an SVG drawing: render it first"
    if head[4:8] == b"ftyp":
        return "it is HEIC, AVIF or a film: convert it to JPEG first"
    if head.lstrip()[:9].lower().startswith((b"<html", b"<!doctype")):
        return "it is a web page: fetch it again"
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS: git lfs pull"
    return f"it starts with {head[:8]!r}"


def show(image: Image.Image, number: int) -> Image.Image:
    """A random crop of a picture, mirrored half of the time.

    Args:
        image: The picture.
        number: Number of the crop; 0 for the whole picture.
    """
    if number == 0:
        return image
    draw = random.Random(f"view/{number}/{image.size}")
    share, aspect = draw.uniform(SMALLEST, 1), draw.uniform(3 / 4, 4 / 3)
    width = min(image.width, max(1, round(image.width * (share * aspect) ** 0.5)))
    height = min(image.height, max(1, round(image.height * (share / aspect) ** 0.5)))
    left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
    view = image.crop((left, top, left + width, top + height))
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else view
