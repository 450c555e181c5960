"""Frozen features of an attached model's media, kept on disk between steps.

All media of a row, called a set, are kept together. Pictures of different sizes have different
numbers of tokens, but a store has rows of one shape. A set is therefore serialised to bytes and
kept in pieces of equal length, all of them in one shard.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor
from transformers import BatchFeature

from crome.attached import AttachedModel, AttachedProcessor
from crome.attached.collating import as_dicts, moved
from crome.attached.encoding import Visual
from crome.attached.files import identity
from crome.attached.keeping import Kept, NotKept, small
from crome.attached.media import Media
from crome.errors import InputError, JobError
from crome.features.cache import TOLERANCE, differ, spread
from crome.features.names import default_folder, digest, picture_key
from crome.features.processor import CachedProcessor
from crome.features.store import FeatureStore, Writer, over
from crome.rows import Row

FORMAT = 1
PIECE = 1 << 16
"""Bytes of a piece."""


class MediaCache:
    """The kept media of one attached model.

    Args:
        model: The model whose features are kept.
        processor: The model's own, without a cache.
        folder: Folder of all caches; each model has a folder of its own in it.
        limit: Bytes that all caches in the folder may take together; None for no limit but the
            disk.
    """

    questions = None
    """Nothing that depends on a question is kept."""

    def __init__(
        self,
        model: AttachedModel,
        processor: AttachedProcessor,
        folder: Path | None = None,
        *,
        limit: int | None = None,
    ) -> None:
        identity = media_identity(model, processor)
        folder = (folder or default_folder()) / f"media-{digest(identity)}"
        self.images = FeatureStore(folder, identity)
        self.limit = limit

    def release_questions(self, model: Any) -> None:
        """Does nothing: no question is kept."""

    def find(self, media: Media) -> Kept | None:
        """The kept features of a set of media; None where there are none."""
        try:
            key = media_key(media)
        except InputError:  # the message comes from whatever reads the file next
            return None
        if key not in self:
            return None
        first = self.images.rows([piece_key(key, 0)])["bytes"][0]
        size = int.from_bytes(bytes(first[:8].tolist()), "little")
        names = [piece_key(key, number) for number in range(-(-(size + 8) // PIECE))]
        whole = self.images.rows(names)["bytes"].flatten()[8 : 8 + size]
        return Kept.read(load(whole.numpy().tobytes()))

    def __len__(self) -> int:
        return sum(key.endswith("/0") for key in self.images.keys())

    def __contains__(self, key: str) -> bool:
        return piece_key(key, 0) in self.images

    def missing(self, processor: AttachedProcessor, rows: Iterable[Row]) -> list[Row]:
        """Rows whose media are not kept, one row for each set."""
        absent: list[Row] = []
        counted: set[str] = set()
        for row in rows:
            if not row.media:
                continue
            try:
                key = media_key(processor.media_of(row))
            except InputError:
                absent.append(row)
                continue
            if key not in self and key not in counted:
                counted.add(key)
                absent.append(row)
        return absent

    @torch.no_grad()
    def fill(
        self, model: AttachedModel, batches: Iterable[list[dict[str, Any]]], total: int
    ) -> Iterator[int]:
        """Computes and keeps the media of rows; see `VisualCache.fill`."""
        done = 0
        with self.images.writer(self.limit) as writer:
            for batch in batches:
                new = [one for one in batch if one["key"] is not None]
                found = model.encode_all([moved(one["tensors"], model.place) for one in new])
                for one, features in zip(new, found, strict=True):
                    self._keep(writer, one, features)
                first, done = not done, done + len(batch)
                if first and self.limit is not None and writer.held * total / done > self.limit:
                    raise JobError(over(self.images.folder.parent, self.limit))
                yield len(batch)

    def _keep(self, writer: Writer, one: dict[str, Any], features: Visual) -> None:
        kept = Kept(features, small(one["tensors"]), one["outputs"], one["sizes"], one["lengths"])
        try:
            written = save(kept.written())
        except NotKept:
            return
        whole = len(written).to_bytes(8, "little") + written
        count = -(-len(whole) // PIECE)
        pieces = torch.frombuffer(bytearray(whole.ljust(count * PIECE, b"\0")), dtype=torch.uint8)
        names = [piece_key(one["key"], number) for number in range(count)]
        writer.add(names, {"bytes": pieces.view(count, PIECE)})

    @torch.no_grad()
    def verify(
        self,
        model: AttachedModel,
        processor: AttachedProcessor,
        rows: Sequence[Row],
        count: int = 4,
    ) -> int:
        """Compares what is kept for some rows with a live pass.

        Returns:
            How many were checked.

        Raises:
            InputError: A row differs by more than rounding can make.
        """
        checked = 0
        for row in spread([row for row in rows if row.media], count):
            kept = self.find(processor.media_of(row))
            if kept is None:
                continue
            _, tensors, *_ = processor.prepare(row)
            live = model.encode(moved(tensors, model.place))
            tolerance = TOLERANCE.get(model.vlm.dtype, 1e-4)
            for name, worst in differences(kept.features, live):
                if worst > tolerance:
                    raise InputError(
                        f"{self.images.folder} does not hold what the model gives now: {name} of "
                        f"row {row.id} differs by {worst:.2g} of its size. Remove the folder; it "
                        "is made anew."
                    )
            checked += 1
        return checked


class Prepared:
    """A collate function: rows → their media as the model takes them.

    Args:
        processor: The model's own, without a cache.
    """

    def __init__(self, processor: AttachedProcessor) -> None:
        self.processor = processor

    def __call__(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Key, tensors, outputs, sizes and lengths of each row; key None for what is not kept."""
        return [self._prepared(row) for row in rows]

    def _prepared(self, row: Row) -> dict[str, Any]:
        try:
            media, tensors, outputs, sizes, lengths = self.processor.prepare(row)
        except NotKept:
            return {"key": None}
        made = {"tensors": tensors, "outputs": outputs, "sizes": sizes, "lengths": lengths}
        return {"key": media_key(media), **made}


class CachedMediaProcessor(CachedProcessor):
    """An attached model's processor whose batches come with kept features."""

    processor: Any
    cache: Any

    def __call__(self, *args: Any, **kwargs: Any) -> BatchFeature:
        """Prepares a batch as the processor does."""
        return self.processor(*args, **kwargs)

    def encode(self, rows: Sequence[Row], answers: bool = False) -> BatchFeature:
        """Prepares rows as the processor does, with kept features where all media are kept."""
        return self.processor.encode(rows, answers, cache=self.cache)


def piece_key(key: str, number: int) -> str:
    """The name of a piece of a set."""
    return f"{key}/{number}"


def media_key(media: Media) -> str:
    """A name for a set of media: hashes of their bytes, in order."""
    films = [film if isinstance(film, list | tuple) else [film] for film in media.videos]
    parts = [
        [picture_key(one) for one in media.images],
        ["/".join(map(picture_key, frames)) for frames in films],
        [picture_key(one) for one in media.audio],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def media_identity(model: AttachedModel, processor: AttachedProcessor) -> dict[str, Any]:
    """What features depend on besides the media themselves."""
    own = processor.processor
    settings = {
        name: settings_of(part)
        for name in ("image_processor", "video_processor", "feature_extractor")
        if (part := getattr(own, name, None)) is not None
    }
    base = {k: v for k, v in identity(model).items() if k not in ("prompts", "kind")}
    return {
        "format": FORMAT,
        "encoder": base["checkpoint"] or base["architecture"],
        **base,
        "dtype": str(model.vlm.dtype),
        "device": model.place.type,
        "preprocessing": digest(settings),
    }


def settings_of(part: Any) -> dict[str, Any]:
    """A sub-processor's settings; some fail to serialise their own."""
    try:
        return dict(part.to_dict())
    except (ValueError, OSError, AttributeError):
        return {name: str(value) for name, value in vars(part).items()}


def differences(kept: Visual, live: Visual) -> Iterator[tuple[str, float]]:
    """The name of every tensor, and the relative size of its difference."""
    pairs = zip(leaves(as_dicts(kept)), leaves(as_dicts(live)), strict=True)
    for (name, stored), (_, fresh) in pairs:
        yield name, differ(stored, fresh)


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested containers, with their places in them as names."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from leaves(item, f"{name}[{number}]")
