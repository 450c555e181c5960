"""Rows and candidate answers → losses: answers by ranking instead of generation."""

from collections.abc import Sequence
from typing import Any

import torch

from crome.data.rows import Row
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor


@torch.inference_mode()
def rank(
    model: CromeForConditionalGeneration,
    processor: CromeProcessor,
    rows: Sequence[Row],
    options: Sequence[Sequence[str]],
    *,
    per_token: bool = False,
    adapter_names: Sequence[str | None] | None = None,
) -> list[tuple[float, ...]]:
    """Losses of each row's candidate answers; the smallest is the answer.

    Args:
        model: In eval mode.
        processor: Of the model.
        rows: Questions with their images and earlier turns; an image is read once a batch.
        options: The candidates of each row, any number each.
        per_token: Means over an option's tokens instead of sums, which favour short options.
        adapter_names: An adapter for each row.

    Raises:
        InputError: A row without options.
    """
    device = next(model.parameters()).device
    candidates: dict[str, Any] = {k: v.to(device) for k, v in processor.options(options).items()}
    prompts = processor(
        images=[row.images for row in rows],
        text=[row.question for row in rows],
        histories=[row.history for row in rows],
    ).to(device)
    losses = model.option_losses(**candidates, **prompts, adapter_names=adapter_names).sum(1)
    if per_token:
        losses = losses / (candidates["option_ids"] != -100).sum(1)
    of_rows = losses.cpu().split([len(of_row) for of_row in options])
    return [tuple(of_row.tolist()) for of_row in of_rows]
