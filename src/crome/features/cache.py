"""What the frozen front of a model makes of pictures and questions, kept on disk between steps.

The vision encoder never trains, so its features can be kept; the Q-Former does not train while an
adapter is fine-tuned, so what it reads from a picture for a question can be kept too. Both are kept
in front of the projections, where they are narrowest, exactly as computed.

A batch whose pictures and questions are all there comes without pixels; any other goes the usual
way, so a cache that holds nothing, or not everything, changes no result.

Shapes: I distinct images, R blocks, N encoder tokens, P patch tokens, Q queries, S instruction
tokens, D encoder width.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crome.errors import InputError, JobError
from crome.features.names import (
    default_folder,
    digest,
    identity,
    index_of,
    picture_key,
    qformer_fingerprint,
    question_keys,
)
from crome.features.store import FeatureStore, over
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor
from crome.model.vision import VisualFeatures
from crome.rows import Row

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

    def __len__(self) -> int:
        return len(self.images)

    def release_questions(self, model: CromeForConditionalGeneration) -> None:
        """Stops keeping what the Q-Former reads where it trains, or is no more what it was."""
        if self.questions is not None and (
            model.query_tokens.requires_grad
            or any(p.requires_grad for p in model.qformer.parameters())
            or self.questions.identity["qformer"] != qformer_fingerprint(model)
        ):
            self.questions = None

    def refresh(self) -> None:
        """Takes up what other processes have kept since."""
        for store in (self.images, self.questions):
            if store is not None:
                store.refresh()

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
        """Rows with pictures or questions that no process has kept yet, once each."""
        self.refresh()
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
        return sum(self._verify(model, processor, row) for row in picked)

    def _verify(self, model: Any, processor: CromeProcessor, row: Row) -> bool:
        """Compares all that is kept for a row with a live pass; whether it is kept."""
        keys = [picture_key(picture) for picture in row.images]
        distinct = dict(zip(keys, row.images, strict=True))
        batch = processor.instructions([row.question])
        asked = list(question_keys([keys], batch)) if self.questions is not None else []
        if any(key not in self.images for key in distinct) or any(
            self.questions is not None and key not in self.questions for key in asked
        ):
            return False
        device = model.device
        live = model.visual_features(processor.pixel_values(list(distinct.values())).to(device))
        for name, stored in self.images.rows(list(distinct)).items():
            compare(self.images, "encoder", row, name, stored, getattr(live, name))
        if self.questions is not None:
            index = index_of([keys], {key: place for place, key in enumerate(distinct)})
            given = {name: tensor.to(device) for name, tensor in batch.items()}
            outputs = model.qformer_outputs(live, index.to(device), **given)
            stored = self.questions.rows(asked)["outputs"]
            # What is computed in float32 from the encoder's bfloat16 is no surer than that.
            dtype = live.queries.dtype
            compare(self.questions, "Q-Former", row, "outputs", stored, outputs, dtype)
        return True


def compare(
    store: FeatureStore,
    maker: str,
    row: Row,
    name: str,
    stored: Tensor,
    live: Tensor,
    dtype: torch.dtype | None = None,
) -> None:
    """Refuses features that are not what their maker gives now.

    Raises:
        InputError: They differ by more than another batch size can make.
    """
    size = differ(stored, live)
    if size > TOLERANCE.get(dtype or live.dtype, 1e-4):
        raise InputError(
            f"{store.folder} does not hold what the {maker} gives now: {name} of row {row.id} "
            f"differ by {size:.2g} of their size. Remove the folder; it is made anew."
        )


def differ(stored: Tensor, fresh: Tensor) -> float:
    """Size of a difference, relative to what it is a difference from; infinite for NaN."""
    expected = fresh.float().cpu()
    relative = (stored.float() - expected).norm() / expected.norm().clamp(min=1e-12)
    return float(relative.nan_to_num(float("inf")))
