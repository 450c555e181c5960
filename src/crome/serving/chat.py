"""Rows → prompts → answers: the one prompt path that `ask`, evaluation and the server share."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature

from crome.data.rows import Row
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor
from crome.serving.prefill import Prompt


def tensors(processor: CromeProcessor, rows: Sequence[Row]) -> BatchFeature:
    """Rows as the model takes them; their answers are not read."""
    return processor(
        images=[row.images for row in rows],
        text=[row.question for row in rows],
        histories=[row.history for row in rows],
    )


@torch.inference_mode()
def answer(
    model: CromeForConditionalGeneration,
    processor: CromeProcessor,
    rows: Sequence[Row],
    *,
    max_new_tokens: int = 32,
    adapter_names: Sequence[str | None] | None = None,
    **generation_kwargs: Any,
) -> list[str]:
    """Answers a batch of rows; greedy unless told otherwise.

    Args:
        model: In eval mode.
        processor: Of the model.
        rows: Questions with their images and earlier turns; their answers are not read.
        max_new_tokens: Longest answer.
        adapter_names: An adapter for each row.
        generation_kwargs: Passed to `generate` (`num_beams`, `do_sample`, `streamer`, …).
    """
    device = model.get_input_embeddings().weight.device
    ids = model.generate(
        **tensors(processor, rows).to(device),
        adapter_names=adapter_names,
        max_new_tokens=max_new_tokens,
        **{"do_sample": False, **processor.generation_kwargs, **generation_kwargs},
    )
    return processor.batch_decode(ids)


def prompt_of(
    processor: CromeProcessor, row: Row, adapter: str | None = None, tenant: str = ""
) -> Prompt:
    """One row for the engine, its pictures named by their content.

    Args:
        processor: Of the model.
        row: A question with its images and earlier turns.
        adapter: Key of a loaded adapter; None for the base's own.
        tenant: See `Prompt`.
    """
    batch = tensors(processor, [row])
    distinct = list(
        {
            id(image) if isinstance(image, Image.Image) else str(image): image
            for image in row.images
        }.values()
    )  # in the processor's order
    return Prompt(
        batch["input_ids"],
        batch["visual_position"],
        tuple(digest(image) for image in distinct),
        batch.get("pixel_values"),
        batch.get("image_index"),
        {k: v for k, v in batch.items() if k.startswith("qformer_")},
        adapter,
        tenant,
    )


def digest(image: Image.Image | Path | str) -> str:
    """A name for a picture's content: its pixels, or the bytes of its file."""
    if not isinstance(image, Image.Image):
        return hashlib.sha256(Path(image).read_bytes()).hexdigest()
    head = f"{image.mode} {image.size}".encode()
    return hashlib.sha256(head + image.tobytes()).hexdigest()
