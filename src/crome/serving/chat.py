"""Rows → answers: the one prompt path that `ask`, evaluation and the server share."""

from collections.abc import Sequence
from typing import Any

import torch

from crome.data.rows import Row
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor


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
    batch = processor(
        images=[row.images for row in rows],
        text=[row.question for row in rows],
        histories=[row.history for row in rows],
    ).to(device)
    ids = model.generate(
        **batch,
        adapter_names=adapter_names,
        max_new_tokens=max_new_tokens,
        **{"do_sample": False, **processor.generation_kwargs, **generation_kwargs},
    )
    return processor.batch_decode(ids)
