"""The processor that uses kept features, and what prepares the batches that fill a cache."""

from collections.abc import Sequence
from typing import Any

from transformers import BatchFeature

from crome.features.cache import VisualCache
from crome.features.names import index_of, picture_key, question_keys
from crome.model.processing import CromeProcessor, arguments
from crome.rows import Row, require_media


class CachedProcessor:
    """A processor whose batches come with kept features where it would compute pixels.

    A batch whose pictures and questions are not all kept comes with its pixels, as without a cache.
    All other attributes are those of the processor that it wraps.

    Attributes:
        processor: The processor of the model.
        cache: Where features are kept; None once they turned out not to fit the disk.
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
        cache: Says which pictures are kept and need no pixels.
        processor: The model's own.
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
            "questions": list(question_keys(keys, instructions)),
            "image_index": index_of(keys, order),
            "instructions": instructions,
        }
        if fresh:
            batch["pixel_values"] = self.processor.pixel_values([pictures[key] for key in fresh])
        return batch
