"""A row as the prompt that an engine takes."""

import hashlib
from typing import Any

import torch
from PIL import Image

from crome.images import load_image
from crome.rows import Picture, Row
from crome.serving.engine.protocol import Prompt


def prompt_of(processor: Any, row: Row, adapter: str | None = None, tenant: str = "") -> Prompt:
    """One row for the engine, its pictures named by their content.

    Args:
        processor: Of the model.
        row: A question with its images and earlier turns.
        adapter: Key of a loaded adapter; None for the base's own.
        tenant: See `Prompt`.
    """
    batch = processor.encode([row])
    distinct = list(
        {
            id(image) if isinstance(image, Image.Image) else str(image): image
            for image in row.images
        }.values()
    )  # in the processor's order
    if "visual_position" not in batch:  # a model that has its own places for pictures
        return Prompt(
            batch["input_ids"],
            torch.zeros(1, dtype=torch.long),
            tuple(digest(image) for image in distinct),
            adapter=adapter,
            tenant=tenant,
            batch=batch,
            messages=processor.messages(row),
        )
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


def digest(image: Picture) -> str:
    """A name for a picture's content: of what it shows, palette and orientation included."""
    pixels = load_image(image)
    head = f"{pixels.mode} {pixels.size}".encode()
    return hashlib.sha256(head + pixels.tobytes()).hexdigest()
