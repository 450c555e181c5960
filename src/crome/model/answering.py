"""Rows → answers or rankings: the one prompt path of training, evaluation and serving."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from crome.errors import InputError
from crome.model.families import LongRowError
from crome.model.protocol import Processor, VisionLanguageModel
from crome.rows import Row


@torch.inference_mode()
def answer(
    model: VisionLanguageModel,
    processor: Processor,
    rows: Sequence[Row],
    *,
    max_new_tokens: int = 32,
    adapter_names: Sequence[str | None] | None = None,
    **generation_kwargs: Any,
) -> list[str]:
    """Answers a batch of rows, by greedy decoding unless `generation_kwargs` say otherwise.

    Args:
        model: In eval mode.
        processor: The model's own.
        rows: Questions with their images and earlier turns; their answers are not read.
        max_new_tokens: The most tokens an answer may have.
        adapter_names: The name of an adapter for each row; by default the active one.
        generation_kwargs: Passed to `generate` (`num_beams`, `do_sample`, `streamer`, …).

    Raises:
        InputError: A row is longer than the model reads.
    """
    device = model.get_input_embeddings().weight.device
    with by_name(rows):
        ids = model.generate(
            **processor.encode(rows).to(device),
            adapter_names=adapter_names,
            max_new_tokens=max_new_tokens,
            **{"do_sample": False, **processor.generation_kwargs, **generation_kwargs},
        )
    return processor.batch_decode(ids)


@contextmanager
def by_name(rows: Sequence[Row]) -> Iterator[None]:
    """Names a row that is too long by its id, which a user knows, and not by its place in a batch.

    Raises:
        InputError: There is one.
    """
    try:
        yield
    except LongRowError as error:
        raise InputError(f"row {rows[error.place].id} {error.reason}") from error


@torch.inference_mode()
def rank(
    model: VisionLanguageModel,
    processor: Processor,
    rows: Sequence[Row],
    options: Sequence[Sequence[str]],
    *,
    per_token: bool = False,
    adapter_names: Sequence[str | None] | None = None,
) -> list[tuple[float, ...]]:
    """Losses of each row's candidate answers; the smallest is the answer.

    Args:
        model: In eval mode.
        processor: The model's own.
        rows: Questions with their images and earlier turns; an image is read once a batch.
        options: The candidates of each row, any number each.
        per_token: Whether a candidate's loss is the mean over its tokens instead of their sum,
            which favours short candidates.
        adapter_names: The name of an adapter for each row; by default the active one.

    Returns:
        For each row the losses of its candidates, in their order.

    Raises:
        InputError: A row has no options, or is longer than the model reads.
    """
    device = model.get_input_embeddings().weight.device
    candidates: dict[str, Any] = {k: v.to(device) for k, v in processor.options(options).items()}
    prompts = processor.encode(rows).to(device)
    with by_name(rows):
        losses = model.option_losses(**candidates, **prompts, adapter_names=adapter_names).sum(1)
    if per_token:
        losses = losses / (candidates["option_ids"] != -100).sum(1)
    per_row = losses.cpu().split([len(candidates) for candidates in options])
    return [tuple(row.tolist()) for row in per_row]
