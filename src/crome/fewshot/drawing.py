"""Explanations as one picture: each image beside the labelled images that decided its label."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from crome.errors import InputError
from crome.fewshot.explain import Explanation
from crome.images import load_image

SIDE, PAD = 128, 12


def draw_explanations(
    explanations: Sequence[Explanation],
    images: Sequence[Path | Image.Image],
    cached: Sequence[Path | Image.Image],
    names: Mapping[Any, str] | Sequence[str],
    file: Path,
) -> None:
    """Draw each image beside the cached images that decided its label.

    Args:
        explanations: One per image.
        images: The images explained.
        cached: The images in the cache, in its order.
        names: Class names by label.
        file: PNG to write.
    """
    most = max(len(e.neighbours) for e in explanations)
    text_width, row_height = 220, SIDE + 30
    width = 2 * PAD + SIDE + text_width + most * (SIDE + PAD)
    sheet = Image.new("RGB", (width, row_height * len(explanations) + PAD), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for row, (explanation, image) in enumerate(zip(explanations, images, strict=True)):
        top = PAD + row * row_height
        sheet.paste(_thumbnail(image), (PAD, top))
        lines = [
            f"{names[explanation.label]}  {explanation.probability:.2f}",
            f"log-odds over {names[explanation.runner_up]}:",
            f"  its name {explanation.text_margin:+.1f}",
            f"  images   {explanation.image_margin:+.1f}",
            "most alike, with affinity:" if explanation.neighbours else "no labelled image",
        ]
        for number, line in enumerate(lines):
            pen.text((2 * PAD + SIDE, top + 4 + 21 * number), line, "black", font)
        for column, (index, affinity) in enumerate(explanation.neighbours):
            left = 2 * PAD + SIDE + text_width + column * (SIDE + PAD)
            sheet.paste(_thumbnail(cached[index]), (left, top))
            pen.text((left, top + SIDE + 2), f"{affinity:.2f}", "#444444", font)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(file)
    except ValueError as error:  # Pillow goes by the ending
        raise InputError(f"cannot draw to {file}: {error}; expected a name in .png.") from error


def _thumbnail(image: Path | Image.Image) -> Image.Image:
    """A square picture; a grey one where the file is gone."""
    square = Image.new("RGB", (SIDE, SIDE), "#dddddd")
    if isinstance(image, Path) and not image.exists():
        return square
    picture = load_image(image)
    scale = SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    square.paste(picture, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return square
