"""From a draw to features: unreadable pictures, leaks and shortages are told on the way."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from crome.errors import InputError
from crome.fewshot.commands.terminal import warn

if TYPE_CHECKING:
    from crome.fewshot.data.draws import Draw
    from crome.fewshot.data.sets import ImageSet, Item
    from crome.fewshot.encoders import Encoder

OnBadImage = Literal["refuse", "skip"]
Leaks = Literal["warn", "refuse"]
NAMED = 5


@dataclass
class Gathered:
    """Features of the parts of a draw, in its order.

    Attributes:
        train: Features of the shots, (n, width).
        views: Features of their augmented views, (n, views, width), or None.
        val: Features of the validation images.
        test: Features of the test images.
    """

    train: Any
    views: Any
    val: Any
    test: Any


def gather(encoder: "Encoder", run: "Draw", views: int, on_bad_image: OnBadImage) -> Gathered:
    """Encode a draw; pictures that cannot be read are taken out of it, or refused all at once.

    Raises:
        InputError: Some cannot be read, each of which is named; or none is left to train on.
    """
    from crome.fewshot.features import Encoded, check_readable, readable_features

    parts: dict[str, Any] = {}
    errors: dict[str, InputError] = {}
    for part, n in (("train", views), ("val", 0), ("test", 0)):
        items: list[Item] = getattr(run, part)
        if not items:
            parts[part] = None
            continue
        paths = [item.path for item in items]
        encoded = readable_features(encoder, paths, views=n, quiet=False)
        parts[part] = encoded.rows
        errors |= {str(paths[place]): error for place, error in encoded.errors.items()}
        items[:] = [items[place] for place in encoded.kept]
    if errors and on_bad_image == "refuse":
        rows = parts["train"]
        check_readable(Encoded(rows, [], dict(enumerate(errors.values()))))
    for error in errors.values():
        warn(f"left out: {error}")
    if not run.train:
        raise InputError("no training image can be read.")
    train = parts["train"]
    val, test = (None if parts[p] is None else parts[p][:, 0] for p in ("val", "test"))
    return Gathered(train[:, 0], train[:, 1:] if views else None, val, test)


def report_shortage(data: "ImageSet", run: "Draw", shots: int) -> None:
    """Warn of classes with fewer training images than asked for."""
    have = Counter(item.label for item in run.train)
    short = [f"{name} ({have[c]})" for c, name in enumerate(data.classes) if have[c] < shots]
    if short:
        more = ", …" if len(short) > NAMED else ""
        warn(
            f"fewer than {shots} training images for {len(short)} class(es): "
            f"{', '.join(short[:NAMED])}{more}"
        )


def handle_leaks(run: "Draw", leaks: Leaks) -> int:
    """Take pictures that are also training images out of validation and test, or refuse them.

    The result is how many were taken out.
    """
    from crome.fewshot.data.leaks import find_contradiction, find_leaks

    if pair := find_contradiction([*run.train, *run.val]):
        warn(f"the same picture has two labels: {pair[0]} and {pair[1]}")
    found = {path: known for known, path in find_leaks(run)}
    for name, part in (("test", run.test), ("validation", run.val)):
        dropped = [item for item in part if item.path in found]
        if not dropped:
            continue
        path = dropped[0].path
        message = (
            f"{len(dropped)} {name} image(s) are also training images, such as {path} = "
            f"{found[path]}"
        )
        if leaks == "refuse":
            raise InputError(message + "; remove them, or pass --leaks warn.")
        part[:] = [item for item in part if item.path not in found]
        warn(f"{message}; they are left out of the {name}")
    return len(found)


def by_label(items: Sequence["Item"]) -> list["Item"]:
    """Images in the order of the cache: by class, and within one as drawn."""
    return sorted(items, key=lambda item: item.label)
