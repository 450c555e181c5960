"""``crome fewshot explain``: what decided each prediction."""

from pathlib import Path
from typing import Any

from crome.errors import positive
from crome.fewshot.commands.saved import encode_readable, expand, open_saved
from crome.fewshot.commands.terminal import Precision, show

MOST_DRAWN = 50  # a picture of more rows is too tall to look at


def explain(
    classifier: Path,
    images: list[Path],
    out: Path = Path("explanation.png"),
    top: int = 5,
    encoder: str | None = None,
    device: str | None = None,
    dtype: Precision | None = None,
) -> None:
    """Show which labelled images, and how far the class names, decided each prediction.

    Args:
        classifier: File written by `crome fewshot fit`, of a method with a cache.
        images: Image files, or folders of images.
        out: Picture to draw, of at most 50 images.
        top: Labelled images shown per image.
        encoder: Where the encoder is now, if its folder was moved.
        device: See `crome fewshot fit`.
        dtype: See `crome fewshot fit`; by default the type of the fit.
    """
    from crome.fewshot.drawing import draw_explanations
    from crome.fewshot.explain import explain as explain_rows

    positive(top=top)
    files = expand(images)
    saved = open_saved(classifier, encoder, device, dtype)
    X, files = encode_readable(saved.encoder, files)
    found = explain_rows(saved.model, X, top)
    cached = _cached(classifier, saved.extra, len(saved.model.keys_))
    for path, explanation in zip(files, found, strict=True):
        neighbours = explanation.neighbours
        nearest = cached[neighbours[0][0]].name if neighbours else "none"
        show(
            f"{path}  {saved.names[explanation.label]} {explanation.probability:.2f}; log-odds "
            f"over {saved.names[explanation.runner_up]}: name {explanation.text_margin:+.1f}, "
            f"images {explanation.image_margin:+.1f}; most alike: {nearest}"
        )
    draw_explanations(found[:MOST_DRAWN], files[:MOST_DRAWN], cached, saved.names, out)
    show(f"drawn to {out}")


def _cached(classifier: Path, extra: dict[str, Any], n: int) -> list[Path]:
    """The cached pictures where they were, or else where they are from the classifier's folder."""
    there = [Path(path) for path in extra.get("cached_images", ())]
    here = [classifier.absolute().parent / path for path in extra.get("cached_from_here", there)]
    found = [a if a.exists() else b for a, b in zip(there, here, strict=True)]
    return found if len(found) == n else [Path(f"image {place}") for place in range(n)]
