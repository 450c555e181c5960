"""What the frozen front of a model makes of pictures and questions, kept on disk between steps.

The vision encoder never trains, so its features can be kept; the Q-Former does not train while an
adapter is fine-tuned, so what it reads from a picture for a question can be kept too. Both are kept
in front of the projections, where they are narrowest, exactly as computed.

A batch whose pictures and questions are all there comes without pixels; any other goes the usual
way, so a cache that holds nothing, or not everything, changes no result.

Shapes: I distinct images, R blocks, N encoder tokens, P patch tokens, Q queries, S instruction
tokens, D encoder width.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from crome.errors import InputError, JobError
from crome.features.store import FeatureStore, over
from crome.images import View, load_image
from crome.model.identity import fingerprint
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.pretrained import bridge_state
from crome.model.processing import CromeProcessor, arguments
from crome.model.vision import VisualFeatures
from crome.rows import Row, require_media

FORMAT = 1
QFORMER = ("query_tokens", "qformer.")
TOLERANCE = {torch.bfloat16: 0.03, torch.float16: 0.01}
"""Relative difference that another batch size may make; 1e-4 in float32."""


class VisualCache:
    """The stores of one model in a folder.

    Args:
        model: Whose features are kept; its Q-Former as it is now.
        processor: Of the model.
        folder: Of all caches; each model has folders of its own in it.
        questions: Whether what the Q-Former reads is kept too: only while it does not train.
        limit: Bytes that all caches in the folder may take together; None for no limit but the
            disk.
    """

    def __init__(
        self,
        model: CromeForConditionalGeneration,
        processor: CromeProcessor,
        folder: Path | None = None,
        *,
        questions: bool = True,
        limit: int | None = None,
    ) -> None:
        folder = folder or default_folder()
        seen = identity(model, processor)
        self.images = FeatureStore(folder / f"images-{digest(seen)}", seen)
        self.questions: FeatureStore | None = None
        if questions and "query" in model.config.branches:
            read = seen | {"qformer": qformer_fingerprint(model)}
            self.questions = FeatureStore(folder / f"questions-{digest(read)}", read)
        self.limit = limit

    def release_questions(self, model: CromeForConditionalGeneration) -> None:
        """Stops keeping what the Q-Former reads where it trains, or is no more what it was."""
        if self.questions is not None and (
            model.query_tokens.requires_grad
            or any(p.requires_grad for p in model.qformer.parameters())
            or self.questions.identity["qformer"] != qformer_fingerprint(model)
        ):
            self.questions = None

    # ------------------------------------------------------------------ reading

    def features(
        self, pictures: Sequence[Sequence[Any]], batch: dict[str, Tensor]
    ) -> dict[str, Any] | None:
        """What stands for the pixels of a batch.

        Args:
            pictures: Of each row.
            batch: The Q-Former's instructions.

        Returns:
            `features`, the fields of `VisualFeatures` as a list, and `image_index`; None where
            something is not kept, or no row has a picture.
        """
        keys = [[picture_key(picture) for picture in row] for row in pictures]
        distinct = {key: i for i, key in enumerate(dict.fromkeys(k for row in keys for k in row))}
        if not distinct or any(key not in self.images for key in distinct):
            return None
        found: dict[str, Tensor] = {}
        if self.questions is not None:
            asked = list(question_keys(keys, batch))
            if any(key not in self.questions for key in asked):
                return None
            found = self.questions.rows(asked)
        # What the Q-Former made of an image's tokens stands for them.
        wanted = ("patches",) if found else None
        found |= self.images.rows(list(distinct), wanted)
        if self.questions is None:
            found.setdefault("queries", found["patches"])
        # A list, since libraries that move a batch to a device cannot rebuild a named tuple.
        features = [found.get(name) for name in VisualFeatures._fields]
        return {"features": features, "image_index": index_of(keys, distinct)}

    # ------------------------------------------------------------------ filling

    def missing(self, processor: CromeProcessor, rows: Iterable[Row]) -> list[Row]:
        """Rows with pictures or questions that are not kept, once each."""
        absent: list[Row] = []
        met: set[str] = set()
        for row in rows:
            if not row.images:
                continue
            try:
                keys = [picture_key(picture) for picture in row.images]
            except InputError:  # whoever reads it says what is wrong
                absent.append(row)
                continue
            wanted = {key for key in keys if key not in self.images}
            if self.questions is not None:
                asked = question_keys([keys], processor.instructions([row.question]))
                wanted |= {key for key in asked if key not in self.questions}
            if wanted - met:
                met |= wanted
                absent.append(row)
        return absent

    @torch.no_grad()
    def fill(
        self, model: CromeForConditionalGeneration, batches: Iterable[dict[str, Any]], total: int
    ) -> Iterator[int]:
        """Computes and keeps what batches need, and says after each how many rows it held.

        Args:
            model: The model the cache was opened for.
            batches: Of `Uncached`, which loader processes prepare.
            total: Rows of all batches, to see in time that the limit will not do.

        Raises:
            JobError: The limit or the disk does not hold it; what was written before stays.
        """
        device, first = model.device, True
        with ExitStack() as stack:
            images = stack.enter_context(self.images.writer(self.limit))
            questions = None
            if self.questions is not None:
                questions = stack.enter_context(self.questions.writer(self.limit))
            for batch in batches:
                rows = self._read(model, batch, device)
                images.add(batch["fresh"], {k: v[: len(batch["fresh"])] for k, v in rows.items()})
                if questions is not None:
                    features = VisualFeatures(rows.get("queries", rows["patches"]), rows["patches"])
                    instructions = {k: v.to(device) for k, v in batch["instructions"].items()}
                    index = batch["image_index"].to(device)
                    outputs = model.qformer_outputs(features, index, **instructions)
                    questions.add(batch["asked"], {"outputs": outputs})
                if first and self.limit is not None:
                    size = images.held + (questions.held if questions is not None else 0)
                    if size * total / batch["rows"] > self.limit:
                        raise JobError(over(self.images.folder.parent, self.limit))
                first = False
                yield batch["rows"]

    def _read(self, model: Any, batch: dict[str, Any], device: torch.device) -> dict[str, Tensor]:
        """Features of a batch's pictures: those computed now, then those that were kept."""
        parts = []
        if batch["fresh"]:
            features = model.visual_features(batch["pixel_values"].to(device))
            same = features.queries.data_ptr() == features.patches.data_ptr()
            parts.append({k: getattr(features, k) for k in ("queries", "patches")[same:]})
        if batch["known"]:
            parts.append({k: v.to(device) for k, v in self.images.rows(batch["known"]).items()})
        return {k: torch.cat([part[k] for part in parts]) for k in parts[0]}

    # ------------------------------------------------------------------ checking

    @torch.no_grad()
    def verify(
        self,
        model: CromeForConditionalGeneration,
        processor: CromeProcessor,
        rows: Sequence[Row],
        count: int = 4,
    ) -> int:
        """Compares what is kept for some rows with a live pass.

        Args:
            model: The model the cache was opened for.
            processor: Of the model.
            rows: Of which up to `count`, evenly spaced, are checked; those not kept are left out.
            count: How many.

        Returns:
            How many were checked.

        Raises:
            InputError: A row differs by more than another batch size can make.
        """
        there = [row for row in rows if row.images]
        picked = there[:: max(1, len(there) // count)][:count] if count else []
        checked = 0
        for row in picked:
            batch = processor.instructions([row.question])
            found = self.features([row.images], batch)
            if found is None:
                continue
            distinct = {picture_key(picture): picture for picture in row.images}
            live = model.visual_features(
                processor.pixel_values(list(distinct.values())).to(model.device)
            )
            if self.questions is not None:
                asked = (t.to(model.device) for t in (found["image_index"], *batch.values()))
                live = live._replace(outputs=model.qformer_outputs(live, *asked))
            # What is computed in float32 from the encoder's bfloat16 is no surer than that.
            tolerance = TOLERANCE.get(live.queries.dtype, 1e-4)
            for name, stored, fresh in zip(
                VisualFeatures._fields, found["features"], live, strict=True
            ):
                if stored is not None and fresh is not None and differ(stored, fresh) > tolerance:
                    raise InputError(
                        f"{self.images.folder} does not hold what the encoder gives now: {name} of "
                        f"row {row.id} differ by {differ(stored, fresh):.2g} of their size. Remove "
                        "the folder; it is made anew."
                    )
            checked += 1
        return checked


def differ(stored: Tensor, fresh: Tensor) -> float:
    """Size of a difference, relative to what it is a difference from; infinite for NaN."""
    expected = fresh.float().cpu()
    relative = (stored.float() - expected).norm() / expected.norm().clamp(min=1e-12)
    return float(relative.nan_to_num(float("inf")))


class CachedProcessor:
    """A processor whose batches come with kept features where it would compute pixels.

    A batch whose pictures and questions are not all kept comes with its pixels, as without a cache.
    Whatever else a processor does is done by the one it wraps.

    Attributes:
        processor: The processor of the model.
        cache: Where features are kept; None once it turned out that they cannot be.
    """

    def __init__(self, processor: CromeProcessor, cache: VisualCache | None) -> None:
        self.processor = processor
        self.cache = cache

    def __call__(self, *args: Any, **kwargs: Any) -> BatchFeature:
        """Prepares a batch as `CromeProcessor` does, with `features` for `pixel_values`."""
        pictures, batch = self.processor.encode_text(*args, **kwargs)
        kept = None if self.cache is None else self.cache.features(pictures, batch)
        return BatchFeature(
            batch | (self.processor.encode_images(pictures) if kept is None else kept)
        )

    def encode(self, rows: Sequence[Row], answers: bool = False) -> BatchFeature:
        """Prepares rows as the processor does, with kept features."""
        require_media(rows, self.media)
        return self(**arguments(rows, answers))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "processor":  # while it is being unpickled
            raise AttributeError(name)
        return getattr(self.processor, name)


class Uncached:
    """Rows → what `VisualCache.fill` needs of them; a collate function for loader processes.

    Args:
        cache: Which knows the pictures that need no pixels.
        processor: Of the model.
    """

    def __init__(self, cache: VisualCache, processor: CromeProcessor) -> None:
        self.cache = cache
        self.processor = processor

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Pixels of the pictures that are not kept, keys of all, instructions of the questions."""
        keys = [[picture_key(picture) for picture in row.images] for row in rows]
        pictures: dict[str, Any] = {}
        for row, names in zip(rows, keys, strict=True):
            pictures |= dict(zip(names, row.images, strict=True))
        fresh = [key for key in pictures if key not in self.cache.images]
        known = [key for key in pictures if key in self.cache.images]
        instructions = self.processor.instructions([row.question for row in rows])
        order = {key: i for i, key in enumerate([*fresh, *known])}
        batch = {
            "rows": len(rows),
            "fresh": fresh,
            "known": known,
            "asked": list(question_keys(keys, instructions)),
            "image_index": index_of(keys, order),
            "instructions": instructions,
        }
        if fresh:
            batch["pixel_values"] = self.processor.pixel_values([pictures[key] for key in fresh])
        return batch


def index_of(keys: Sequence[Sequence[str]], order: Mapping[str, int]) -> Tensor:
    """(rows, most pictures of one) the place of each row's pictures, -1 behind the last."""
    width = max(map(len, keys))
    return torch.tensor(
        [[*map(order.__getitem__, row), *[-1] * (width - len(row))] for row in keys]
    )


# ---------------------------------------------------------------------- names


def default_folder() -> Path:
    """`crome/features` in the user's cache folder, or where CROME_FEATURES points."""
    if named := os.environ.get("CROME_FEATURES"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crome" / "features"


def identity(model: CromeForConditionalGeneration, processor: CromeProcessor) -> dict[str, Any]:
    """What the features of a picture depend on besides its bytes."""
    config = model.config
    preprocessing = processor.image_processor.to_dict()
    return {
        "format": FORMAT,
        "encoder": str(config.vision_model_id),
        "fingerprint": fingerprint(model.vision_model.state_dict()),
        "dtype": str(next(model.vision_model.parameters()).dtype),
        "layers": [config.qformer_feature_layer, config.patch_feature_layer],
        "drop_prefix_tokens": config.drop_prefix_tokens,
        "normalize_features": config.normalize_features,
        "preprocessing": hashlib.sha256(
            json.dumps(preprocessing, sort_keys=True, default=str).encode()
        ).hexdigest()[:16],
    }


def qformer_fingerprint(model: CromeForConditionalGeneration) -> str:
    """Of the Q-Former and its queries."""
    state = bridge_state(model)
    return fingerprint({k: v for k, v in state.items() if k.startswith(QFORMER)})


def digest(identity: dict[str, Any]) -> str:
    """A short name for an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def picture_key(picture: Any) -> str:
    """A picture's name: a hash of its file's bytes, or of its pixels, and the view's number.

    Of an opened picture the pixels are those that an encoder is shown: two with the same indices
    and other palettes are two pictures.
    """
    if isinstance(picture, View):
        return f"{picture_key(picture.path)}/{picture.number}"
    if isinstance(picture, Image.Image):
        shown = load_image(picture)
        return hashlib.sha256(f"{shown.size}".encode() + shown.tobytes()).hexdigest()
    return file_key(Path(picture))


@lru_cache(maxsize=1 << 20)
def file_key(path: Path) -> str:
    """Read once a process: a picture that changes under a run is not noticed by it."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"no picture {path}: {error.strerror}.") from error


def question_keys(keys: Sequence[Sequence[str]], batch: dict[str, Tensor]) -> Iterator[str]:
    """A name for each block of a batch, in order: its picture and its row's instruction."""
    ids, mask = batch.get("qformer_input_ids"), batch.get("qformer_attention_mask")
    for row, pictures in enumerate(keys):
        words = b""
        if ids is not None and mask is not None and pictures:
            words = ids[row][mask[row].bool()].numpy().tobytes()
        for key in pictures:
            yield hashlib.sha256(key.encode() + b"/" + words).hexdigest()
