"""A few shots per class from a set, with validation and test pictures beside them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crome.errors import InputError, not_negative, positive
from crome.fewshot.data.sets import ImageSet, Item
from crome.fewshot.pictures import content_hash
from crome.fewshot.settings import check_number
from crome.storage import write_text

PARTS = ("train", "val", "test")


@dataclass
class Draw:
    """K shots per class, the validation images and the test images of one run.

    Attributes:
        train: Shots.
        val: At most 4 per class, or the whole validation part.
        test: Official test part, or the images left over.
    """

    train: list[Item]
    val: list[Item]
    test: list[Item]

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that name the drawn pictures by their contents and labels."""
        parts = [
            [part, identity(item.path), item.label]
            for part in PARTS
            for item in getattr(self, part)
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]


def identity(path: Path) -> str:
    """What a picture is known by: its content, or its name where the file cannot be read."""
    try:
        return content_hash(path)
    except InputError:
        return str(path)


def draw_shots(
    images: ImageSet,
    shots: int,
    seed: int,
    *,
    val: str = "few",
    test_per_class: int | None = None,
    short: str = "warn",
) -> Draw:
    """Draw shots per class without replacement, and validation and test images beside them.

    A picture that a class has twice, under two names, is drawn once.

    Args:
        images: The set.
        shots: K.
        seed: Seed of the draw.
        val: ``few``: min(K, 4) images per class, from the validation part or else from the
            training images not drawn. ``full``: the whole validation part, the protocol of
            Tip-Adapter's and XMAdapter's tables. ``none``.
        test_per_class: Upper bound on test images per class, for sets without a test part.
        short: ``warn`` takes what a class has when it has fewer than K images; ``refuse`` raises.

    Returns:
        The draw. Without a test part, the images that were not drawn are the test images; a class
        with too few keeps at least one for the test while it can.

    Raises:
        InputError: A class has no image, or fewer than K with ``short="refuse"``, or
            ``val="full"`` and there is no validation part.
    """
    if shots < 1:
        raise InputError(f"shots={shots}; expected at least 1 image per class.")
    not_negative(seed=seed)
    positive(test_per_class=test_per_class)
    rng = np.random.default_rng(seed)
    pools = _by_class(images.train, len(images.classes), rng)
    missing = [images.classes[c] for c, pool in enumerate(pools) if not pool]
    if missing:
        raise InputError(f"no training image of {', '.join(map(repr, missing[:5]))}.")
    few = min(shots, 4) if val == "few" else 0
    needed = shots + (0 if images.val else few) + 1
    pools = [_without_copies(pool, needed) for pool in pools]
    if short == "refuse":
        _check_enough(images, pools, shots)
    train, left = [], []
    for pool in pools:
        spare = 0 if images.test or len(pool) < 3 else 1 + (val == "few" and not images.val)
        take = min(shots, len(pool) - spare)
        train += pool[:take]
        left.append(pool[take:])
    if val == "full":
        if not images.val:
            raise InputError(f"val='full', and {images.name} has no validation part.")
        return Draw(train, list(images.val), list(images.test) or _flat(left, test_per_class))
    if images.val:
        pools = _by_class(images.val, len(pools), rng)
        validation = [i for pool in pools for i in _without_copies(pool, few)[:few]]
    else:
        take_val = [min(few, max(0, len(rest) - (0 if images.test else 1))) for rest in left]
        validation = [i for rest, n in zip(left, take_val, strict=True) for i in rest[:n]]
        left = [rest[n:] for rest, n in zip(left, take_val, strict=True)]
    return Draw(train, validation, list(images.test) or _flat(left, test_per_class))


def write_draw(draw: Draw, images: ImageSet, file: Path) -> None:
    """Write a draw as JSON: parts of rows [path, label, class name].

    Raises:
        JobError: The file cannot be written.
    """
    parts = {
        part: [[str(i.path), i.label, images.classes[i.label]] for i in getattr(draw, part)]
        for part in PARTS
    }
    write_text(file, json.dumps(parts, indent=1))


def read_draw(file: Path, images: ImageSet) -> Draw:
    """Read what ``write_draw`` wrote.

    Raises:
        InputError: The file is not such a draw, or of a set with other classes.
    """
    try:
        parts = json.loads(file.read_text(encoding="utf-8-sig"))
        rows = {k: [(Path(p), c, n) for p, c, n in parts[k]] for k in PARTS}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{file} is not a draw: {error}.") from error
    known = dict(enumerate(images.classes))
    for path, label, name in (row for part in rows.values() for row in part):
        if type(label) is not int or known.get(label) != name:
            raise InputError(
                f"{file} has {path} as class {label!r}, {name!r}; the classes of {images.name} are "
                f"{', '.join(map(repr, images.classes[:5]))}: the draw is of another set. Remove "
                "it, or name another."
            )
    return Draw(*([Item(path, label) for path, label, _ in part] for part in rows.values()))


def with_label_noise(draw: Draw, share: float, n_classes: int, seed: int) -> Draw:
    """A draw with some training labels exchanged for other classes, each equally likely.

    Args:
        draw: The draw; validation and test images keep their labels.
        share: Share of the training images whose label is wrong, rounded to whole images.
        n_classes: N.
        seed: Seed of the exchange.
    """
    check_number("label_noise", share, 0, 0.99)
    rng = np.random.default_rng([seed, 1])
    wrong = set(rng.permutation(len(draw.train))[: round(share * len(draw.train))].tolist())
    train = [
        Item(item.path, (item.label + int(rng.integers(1, n_classes))) % n_classes)
        if place in wrong
        else item
        for place, item in enumerate(draw.train)
    ]
    return Draw(train, draw.val, draw.test)


def _by_class(items: Sequence[Item], n: int, rng: np.random.Generator) -> list[list[Item]]:
    pools: list[list[Item]] = [[] for _ in range(n)]
    for item in items:
        pools[item.label].append(item)
    return [[pool[i] for i in rng.permutation(len(pool))] for pool in pools]


def _without_copies(pool: list[Item], needed: int) -> list[Item]:
    """A pool whose first ``needed`` pictures differ in content; copies of these are dropped."""
    first: dict[str, Item] = {}
    for place, item in enumerate(pool):
        first.setdefault(identity(item.path), item)
        if len(first) >= needed:
            return [*first.values(), *pool[place + 1 :]]
    return list(first.values())


def _check_enough(images: ImageSet, pools: Sequence[Sequence[Item]], shots: int) -> None:
    for name, pool in zip(images.classes, pools, strict=True):
        if len(pool) < shots:
            raise InputError(
                f"class {name!r} has {len(pool)} training images, fewer than shots={shots}; add "
                "images or ask for fewer shots."
            )


def _flat(pools: list[list[Item]], limit: int | None) -> list[Item]:
    return [item for pool in pools for item in pool[:limit]]
