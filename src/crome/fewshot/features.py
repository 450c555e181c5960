"""Features of your own pictures and class names, from Python.

>>> encoder = load_encoder("bridge")                      # doctest: +SKIP
>>> X = image_features(encoder, ["a.png", "b.png"])       # doctest: +SKIP
>>> text = class_features(encoder, ["cat", "dog"])        # doctest: +SKIP
>>> XMAdapterClassifier(text).fit(X, [0, 1])              # doctest: +SKIP
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch.nn.functional import normalize

from crome.errors import InputError, JobError
from crome.fewshot.encoders.protocol import Encoder
from crome.fewshot.pictures import Picture, each_picture, picture_hash
from crome.fewshot.settings import check_whole
from crome.fewshot.store import Store
from crome.fewshot.text import printable
from crome.images import load_image

CPU_BATCH = 8  # pictures: activations of more leave a processor's cache and take longer by half
GPU_BATCH = 64
CHUNK = 16  # pictures looked at together, at least; opened ones are all in memory
NAMED = 5  # unreadable pictures that a message names
TEMPLATES = ("a photo of a {}.",)


class Features(np.ndarray):
    """Feature rows that know whose they are; whatever is computed from them is a plain array.

    Attributes:
        encoder: Fingerprint of the encoder. Estimators refuse to compare features of two.
    """

    encoder: str | None

    def __new__(cls, rows: NDArray[Any], encoder: str) -> "Features":
        """Rows of an encoder, by its fingerprint."""
        features = np.asarray(rows).view(cls)
        features.encoder = encoder
        return features

    def __array_finalize__(self, source: Any) -> None:
        self.encoder = getattr(source, "encoder", None)

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        return array[()] if return_scalar else np.asarray(array)


@dataclass
class Encoded:
    """Features of those pictures that could be read, and the errors of the others.

    Attributes:
        rows: Features of the readable ones, (n, 1 + views, width): the picture, then its views.
        kept: Index of each of them.
        errors: Why the others could not be read, by index.
    """

    rows: NDArray[np.float32]
    kept: list[int]
    errors: dict[int, InputError]


def image_features(
    encoder: Encoder,
    images: Any,
    *,
    batch_size: int | None = None,
    cache_dir: Path | None = None,
    quiet: bool = True,
) -> Features:
    """Features of pictures.

    Files are encoded once for each content and encoder and then kept on disk; pictures in memory
    are encoded every time.

    Args:
        encoder: From ``load_encoder``; it decides about the device.
        images: One picture or any iterable of them: paths, pictures of Pillow, arrays of uint8,
            (height, width, 3) each. See ``each_picture``.
        batch_size: Pictures encoded at a time; by default 8 on a CPU and 64 elsewhere.
        cache_dir: Folder of kept features; by default one in the user's cache folder.
        quiet: Show no progress bar.

    Returns:
        (n, width), float32, not normalised: the joint image-text embedding, then image-only
        features where the encoder has such.

    Raises:
        InputError: There are no pictures, or some cannot be read: each is named.
        JobError: Features cannot be kept, or the encoder yields NaN.
    """
    encoded = readable_features(
        encoder, images, batch_size=batch_size, cache_dir=cache_dir, quiet=quiet
    )
    check_readable(encoded)
    return Features(encoded.rows[:, 0], encoder.fingerprint)


def view_features(
    encoder: Encoder,
    images: Any,
    views: int = 10,
    *,
    batch_size: int | None = None,
    cache_dir: Path | None = None,
    quiet: bool = True,
) -> Features:
    """Features of augmented views, crops and flips, of pictures: the ``views`` of an estimator.

    Which views a picture has depends on its content alone. Arguments and errors are those of
    ``image_features``.

    Returns:
        (n, views, width).
    """
    check_whole("views", views, 1)
    encoded = readable_features(
        encoder, images, views=views, batch_size=batch_size, cache_dir=cache_dir, quiet=quiet
    )
    check_readable(encoded)
    return Features(encoded.rows[:, 1:], encoder.fingerprint)


def class_features(
    encoder: Encoder, names: str | Iterable[Any], templates: str | Sequence[str] = TEMPLATES
) -> Features:
    """Text features of classes: per class the normalised mean over templates, (n_classes, C).

    Args:
        encoder: Encodes the texts.
        names: Class names, or one; ``_`` is read as a space. Equal names get equal rows.
        templates: Prompts with ``{}`` for the name, or one.

    Raises:
        InputError: There are no names, or a template has no ``{}``.
    """
    names = [names] if isinstance(names, str) else list(names)
    templates = [templates] if isinstance(templates, str) else list(templates)
    if not names or not templates:
        raise InputError("there are no class names or no templates; expected at least one of each.")
    for template in templates:
        if "{}" not in template:
            raise InputError(f"the template {template!r} has no {{}} for the class name.")
    clean = [str(name).replace("_", " ") for name in names]
    total = torch.stack(
        [
            encoder.encode_texts([printable(t.replace("{}", name)) for name in clean])
            for t in templates
        ]
    )
    return Features(normalize(total.mean(0), dim=1).cpu().numpy(), encoder.fingerprint)


def readable_features(
    encoder: Encoder,
    images: Any,
    *,
    views: int = 0,
    batch_size: int | None = None,
    cache_dir: Path | None = None,
    quiet: bool = True,
) -> Encoded:
    """Features of the pictures that can be read, and why the others cannot be."""
    check_whole("views", views, 0)
    device = getattr(encoder, "device", torch.device("cpu"))
    if batch_size is None:
        batch_size = CPU_BATCH if device.type == "cpu" else GPU_BATCH
    check_whole("batch_size", batch_size, 1)
    place = encoder.fingerprint + ("" if device.type == "cpu" else f"-{device.type}")
    work = _Work(encoder, Store(place, cache_dir), views, max(1, batch_size // (1 + views)))
    pictures = each_picture(images)
    total = len(images) if hasattr(images, "__len__") and not isinstance(images, str) else None
    console = Console(stderr=True)
    with Progress(console=console, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("encoding images", total=total)
        while chunk := list(islice(pictures, max(CHUNK, work.per_batch))):
            work.encode(chunk)
            bar.advance(task, len(chunk))
    if not work.rows and not work.errors:
        raise InputError("no images to encode; expected at least one.")
    rows = np.stack(work.rows) if work.rows else np.zeros((0, 1 + views, 0), np.float32)
    kept = [index for index in range(work.seen) if index not in work.errors]
    return Encoded(rows, kept, work.errors)


def check_readable(encoded: Encoded) -> None:
    """Refuse pictures that cannot be read, naming each.

    Raises:
        InputError: There are some.
    """
    errors = list(encoded.errors.values())
    if len(errors) == 1:
        raise errors[0]
    if errors:
        some = " ".join(str(error) for error in errors[:NAMED])
        more = f" And {len(errors) - NAMED} more." if len(errors) > NAMED else ""
        raise InputError(f"{len(errors)} pictures cannot be read: {some}{more}")


class _Work:
    """Pictures on their way to features, a chunk at a time."""

    def __init__(self, encoder: Encoder, store: Store, views: int, per_batch: int) -> None:
        self.encoder, self.store, self.views, self.per_batch = encoder, store, views, per_batch
        self.rows: list[NDArray[np.float32]] = []
        self.errors: dict[int, InputError] = {}
        self.seen = 0

    def encode(self, chunk: list[Picture]) -> None:
        """Append the rows of the readable pictures of a chunk, encoding what is not kept yet."""
        found: dict[int, NDArray[np.float32]] = {}
        missing: dict[str, list[int]] = {}  # pictures of equal content are encoded once
        for place, picture in enumerate(chunk):
            try:
                digest = picture_hash(picture)
            except InputError as error:
                self.errors[self.seen + place] = error
                continue
            kept = None
            if digest not in missing and isinstance(picture, Path):
                kept = self.store.load(self._name(digest), 1 + self.views)
            if kept is None:
                missing.setdefault(digest, []).append(place)
            else:
                found[place] = kept
        opened = self._views(chunk, missing)
        while batch := list(islice(opened, self.per_batch)):
            pixels = self.encoder.preprocessing.tensor(
                [view for _, views in batch for view in views]
            )
            values = self.encoder.encode_images(pixels).float().cpu().numpy()
            for (digest, _), rows in zip(batch, np.split(values, len(batch)), strict=True):
                places = [p for p in missing[digest] if self.seen + p not in self.errors]
                first = chunk[places[0]]
                if not np.isfinite(rows).all():
                    raise JobError(
                        f"the encoder {self.encoder.name} gave NaN or infinity for {first}."
                    )
                found |= dict.fromkeys(places, rows)
                if isinstance(first, Path):
                    self.store.keep(self._name(digest), rows)
        self.rows += [found[place] for place in sorted(found)]
        self.seen += len(chunk)

    def _name(self, digest: str) -> str:
        return f"{digest}-{self.views}" if self.views else digest

    def _views(
        self, chunk: list[Picture], missing: dict[str, list[int]]
    ) -> Iterator[tuple[str, list[Any]]]:
        """Digest and views of each picture; what cannot be decoded becomes an error."""
        transform = self.encoder.preprocessing
        for digest, places in missing.items():
            image = None
            for place in places:  # equal files that cannot be read are each named
                try:
                    image = image or load_image(chunk[place])
                except InputError as error:
                    self.errors[self.seen + place] = error
            if image is not None:
                rng = np.random.default_rng(int(digest, 16))
                crops = [transform.random(image, rng) for _ in range(self.views)]
                yield digest, [transform.centre(image), *crops]
