"""Why an image got its label: which cached images spoke for it, and how far its text did."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

from crome.errors import InputError
from crome.fewshot import functional as fn
from crome.fewshot.tip_adapter import CacheClassifier
from crome.images import load_image

SIDE, PAD = 128, 12


@dataclass(frozen=True)
class Explanation:
    """What decided one prediction.

    Attributes:
        label: Predicted label.
        probability: Of it.
        runner_up: Second most likely label.
        text_margin: What the text adds to the log-odds of the prediction over the runner-up.
        image_margin: What the images add; both sum to the log-odds.
        neighbours: Index into the cache and affinity of the predicted class's images, largest
            first; none for a class without images.
    """

    label: object
    probability: float
    runner_up: object
    text_margin: float
    image_margin: float
    neighbours: tuple[tuple[int, float], ...]


def explain(classifier: CacheClassifier, X: ArrayLike, top: int = 5) -> list[Explanation]:
    """Explain the predictions of a fitted cache classifier.

    Args:
        classifier: Tip-Adapter or XMAdapter.
        X: Features, (n_samples, n_features).
        top: Cached images listed per sample.

    Raises:
        InputError: The classifier has no image cache.
    """
    if not isinstance(classifier, CacheClassifier):
        raise InputError(
            f"{type(classifier).__name__} keeps no images; expected a tip-adapter or xmadapter."
        )
    probabilities = classifier.predict_proba(X)
    samples = classifier.samples(X)
    cache = classifier.cache().to(samples.image.dtype)
    with torch.inference_mode():
        affinity = fn.image_affinity(cache.image(samples), cache.keys).numpy()
        both = (classifier.logits(samples) / classifier.temperature_).numpy()
    text = samples.zero_shot.numpy() / classifier.temperature_
    found = []
    for row in range(len(probabilities)):
        order = probabilities[row].argsort()[::-1]
        best, second = order[0], order[min(1, len(order) - 1)]
        mine = np.flatnonzero(classifier.key_labels_ == best)
        ranked = mine[affinity[row, mine].argsort()[::-1][:top]]
        text_margin = text[row, best] - text[row, second]
        found.append(
            Explanation(
                classifier.classes_[best],
                float(probabilities[row, best]),
                classifier.classes_[second],
                float(text_margin),
                float(both[row, best] - both[row, second] - text_margin),
                tuple((int(i), float(affinity[row, i])) for i in ranked),
            )
        )
    return found


def draw_explanations(
    explanations: Sequence[Explanation],
    images: Sequence[Path | Image.Image],
    cached: Sequence[Path | Image.Image],
    names: Sequence[str],
    file: Path,
) -> None:
    """Draw each image beside the cached images that spoke for its label.

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
    for row, (what, image) in enumerate(zip(explanations, images, strict=True)):
        top = PAD + row * row_height
        sheet.paste(_thumbnail(image), (PAD, top))
        lines = [
            f"{names[int(str(what.label))]}  {what.probability:.2f}",
            f"log-odds over {names[int(str(what.runner_up))]}:",
            f"  its name {what.text_margin:+.1f}",
            f"  images   {what.image_margin:+.1f}",
            "most alike, with affinity:" if what.neighbours else "no labelled image",
        ]
        for number, line in enumerate(lines):
            pen.text((2 * PAD + SIDE, top + 4 + 21 * number), line, "black", font)
        for column, (index, affinity) in enumerate(what.neighbours):
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
