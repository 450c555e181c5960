"""Frozen features of pictures, and outputs of the Q-Former, kept on disk between steps.

The vision encoder never trains, so its features can be kept. The Q-Former does not train while an
adapter is fine-tuned, so its outputs can be kept too. Both are kept as they enter the projections,
where they are narrowest, exactly as computed.

A batch whose pictures and questions are all kept comes without pixels. Any other batch is computed
as usual, so a cache that is empty or incomplete changes no result.

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
"""Relative difference that another batch size can explain; 1e-4 in float32."""


class VisualCache:
    """The stores of one model in a folder.

    Args:
        model: The model whose features are kept, with its Q-Former as it is now.
        processor: The model's own.
        folder: Folder of all caches; each model has folders of its own in it.
        questions: Whether outputs of the Q-Former are kept too, which makes sense only while it
            does not train.
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
        encoder = identity(model, processor)
        self.images = FeatureStore(folder / f"images-{digest(encoder)}", encoder)
        self.questions: FeatureStore | None = None
        if questions and "query" in model.config.branches:
            qformer = encoder | {"qformer": qformer_fingerprint(model)}
            self.questions = FeatureStore(folder / f"questions-{digest(qformer)}", qformer)
        self.limit = limit

    def __len__(self) -> int:
        return len(self.images)

    def release_questions(self, model: CromeForConditionalGeneration) -> None:
        """Stops keeping outputs of the Q-Former where it trains or its weights have changed."""
        if self.questions is not None and (
            model.query_tokens.requires_grad
            or any(p.requires_grad for p in model.qformer.parameters())
            or self.questions.identity["qformer"] != qformer_fingerprint(model)
        ):
            self.questions = None

    def refresh(self) -> None:
        """Finds what other processes have kept meanwhile."""
        for store in (self.images, self.questions):
            if store is not None:
                store.refresh()

    # ------------------------------------------------------------------ reading

    def features(
        self, pictures: Sequence[Sequence[Any]], batch: dict[str, Tensor]
    ) -> dict[str, Any] | None:
        """The tensors that a batch has in place of its pixels.

        Args:
            pictures: The pictures of each row.
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
            questions = list(question_keys(keys, batch))
            if any(key not in self.questions for key in questions):
                return None
            found = self.questions.rows(questions)
        # With outputs of the Q-Former, the tokens that it reads are not needed.
        names = ("patches",) if found else None
        found |= self.images.rows(list(distinct), names)
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
        counted: set[str] = set()
        for row in rows:
            if not row.images:
                continue
            try:
                keys = [picture_key(picture) for picture in row.images]
            except InputError:  # the message comes from whatever reads the file next
                absent.append(row)
                continue
            new = {key for key in keys if key not in self.images}
            if self.questions is not None:
                questions = question_keys([keys], processor.instructions([row.question]))
                new |= {key for key in questions if key not in self.questions}
            if new - counted:
                counted |= new
                absent.append(row)
        return absent

    @torch.no_grad()
    def fill(
        self, model: CromeForConditionalGeneration, batches: Iterable[dict[str, Any]], total: int
    ) -> Iterator[int]:
        """Computes and keeps what batches need.

        Args:
            model: The model the cache was opened for.
            batches: What `Uncached` gives, prepared by loader processes.
            total: Rows of all batches, to see in time that the limit is too low.

        Yields:
            After each batch, how many rows it had.

        Raises:
            JobError: The limit or the disk is too small; what was written before stays.
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
                    questions.add(batch["questions"], {"outputs": outputs})
                if first and self.limit is not None:
                    size = images.held + (questions.held if questions is not None else 0)
                    if size * total / batch["rows"] > self.limit:
                        raise JobError(over(self.images.folder.parent, self.limit))
                first = False
                yield batch["rows"]

    def _read(self, model: Any, batch: dict[str, Any], device: torch.device) -> dict[str, Tensor]:
        """Features of a batch's pictures: first those computed now, then those kept before."""
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
            processor: The model's own.
            rows: Up to `count` of them, evenly spaced, are checked; those not kept are left out.
            count: How many rows are checked at most.

        Returns:
            How many were checked.

        Raises:
            InputError: A row differs by more than another batch size can explain.
        """
        picked = spread([row for row in rows if row.images], count)
        return sum(self._verify(model, processor, row) for row in picked)

    def _verify(self, model: Any, processor: CromeProcessor, row: Row) -> bool:
        """Compares all that is kept for a row with a live pass; False where nothing is kept."""
        keys = [picture_key(picture) for picture in row.images]
        distinct = dict(zip(keys, row.images, strict=True))
        batch = processor.instructions([row.question])
        questions = list(question_keys([keys], batch)) if self.questions is not None else []
        if any(key not in self.images for key in distinct) or any(
            self.questions is not None and key not in self.questions for key in questions
        ):
            return False
        device = model.device
        live = model.visual_features(processor.pixel_values(list(distinct.values())).to(device))
        for name, stored in self.images.rows(list(distinct)).items():
            compare(self.images, "encoder", row, name, stored, getattr(live, name))
        if self.questions is not None:
            index = index_of([keys], {key: place for place, key in enumerate(distinct)})
            instructions = {name: tensor.to(device) for name, tensor in batch.items()}
            outputs = model.qformer_outputs(live, index.to(device), **instructions)
            stored = self.questions.rows(questions)["outputs"]
            # Outputs are computed from the encoder's features and are only as precise as these.
            dtype = live.queries.dtype
            compare(self.questions, "Q-Former", row, "outputs", stored, outputs, dtype)
        return True


def spread(rows: Sequence[Row], count: int) -> Sequence[Row]:
    """Up to so many of the rows, evenly spaced."""
    return rows[:: max(1, len(rows) // count)][:count] if count else []


def compare(
    store: FeatureStore,
    maker: str,
    row: Row,
    name: str,
    stored: Tensor,
    live: Tensor,
    dtype: torch.dtype | None = None,
) -> None:
    """Refuses kept features that the model no longer gives.

    Raises:
        InputError: They differ by more than another batch size can explain.
    """
    size = differ(stored, live)
    if size > TOLERANCE.get(dtype or live.dtype, 1e-4):
        raise InputError(
            f"{store.folder} does not hold what the {maker} gives now: {name} of row {row.id} "
            f"differ by {size:.2g} of their size. Remove the folder; it is made anew."
        )


def differ(stored: Tensor, fresh: Tensor) -> float:
    """The norm of the difference over that of `fresh`; infinite for NaN."""
    expected = fresh.float().cpu()
    relative = (stored.float() - expected).norm() / expected.norm().clamp(min=1e-12)
    return float(relative.nan_to_num(float("inf")))
