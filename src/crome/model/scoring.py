"""Losses of the answers that a batch is labelled with.

Shapes: B rows, A answer tokens, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from crome.errors import InputError
from crome.model.batch import PromptBatch
from crome.model.families import forget_lengths, rows_disturb
from crome.model.language import decoder_inputs
from crome.model.losses import IGNORED, answer_losses, predicting_rows
from crome.model.reading import Prompts, Reader

Losses = tuple[Tensor | None, Tensor]
"""(A, V) logits, None where they were made in chunks; and the (A,) losses, in order of rows."""


def label_losses(model: Reader, prompts: Prompts) -> Losses:
    """Losses of the labels in a batch's layout.

    Raises:
        InputError: There is not one label for each token.
    """
    layout = prompts.layout
    labels = layout.labels
    assert labels is not None
    encodes = model.config.text_config.is_encoder_decoder
    if not encodes and labels.shape != layout.input_ids.shape:
        raise InputError(
            f"labels is {tuple(labels.shape)} and input_ids {tuple(layout.input_ids.shape)}; "
            "expected one label for each token, -100 outside answers."
        )
    if rows_disturb(model.language_model.config, prompts.lengths):
        return _one_length_at_a_time(model, prompts, labels)
    forget_lengths(model.language_model)
    if encodes:
        return _behind_encoder(model, prompts, labels)
    if (prefix := model.prefix(prompts, packed=True)) is not None:
        return prefix.losses(model.language_model, labels, model.may_run_twice)
    embeds, mask, spliced = model.spliced(prompts, labels=labels)
    assert spliced is not None
    rows, targets = (x.to(embeds.device) for x in predicting_rows(spliced))
    return answer_losses(
        model.language_model, rows, targets, use_cache=False,
        inputs_embeds=embeds, attention_mask=mask,
    )  # fmt: skip


def _behind_encoder(model: Reader, prompts: Prompts, labels: Tensor) -> Losses:
    embeds, mask, _ = model.spliced(prompts)
    rows = (labels != IGNORED).flatten().nonzero().squeeze(1)
    targets = labels.flatten()[rows]
    return answer_losses(
        model.language_model, rows.to(embeds.device), targets.to(embeds.device), use_cache=False,
        inputs_embeds=embeds, attention_mask=mask,
        decoder_input_ids=decoder_inputs(model.language_model, labels.to(embeds.device)),
    )  # fmt: skip


def _one_length_at_a_time(model: Reader, prompts: Prompts, labels: Tensor) -> Losses:
    """For models whose rows would disturb each other."""
    groups = rows_of_one_length(prompts.lengths)
    parts = [
        label_losses(model, model.prompts(prompts.batch.rows(rows), labels[rows]))[1]
        for rows in groups
    ]
    answers = (labels != IGNORED).sum(1)
    owners = torch.cat([rows.repeat_interleave(answers[rows]) for rows in groups])
    return None, torch.cat(parts)[owners.argsort(stable=True).to(parts[0].device)]


def independent_options(
    model: Any, option_ids: Tensor, option_rows: Tensor, batch: PromptBatch
) -> Tensor:
    """`option_losses` with a whole row for each option: for models without a plain cache.

    Args:
        model: The composite.
        option_ids: (N, A), -100 behind an option's end.
        option_rows: (N,) the row each option answers.
        batch: The prompts.
    """
    rows = batch.rows(option_rows.cpu())
    wanted = option_ids != IGNORED
    labels = option_ids
    if not model.config.text_config.is_encoder_decoder:
        mask = rows.attention_mask
        mask = torch.ones_like(rows.input_ids) if mask is None else mask
        labels = torch.cat([torch.full_like(rows.input_ids, IGNORED), option_ids], 1)
        rows.attention_mask = torch.cat([mask, wanted.to(mask.dtype)], 1)
        rows.input_ids = torch.cat([rows.input_ids, option_ids.clamp(min=0)], 1)
    losses = option_ids.new_zeros(option_ids.shape, dtype=torch.float32)
    losses[wanted] = model(**vars(rows), labels=labels).token_losses.float()
    return losses


def rows_of_one_length(lengths: Tensor) -> list[Tensor]:
    """The rows of each length, the shortest first."""
    return [(lengths == n).nonzero().squeeze(1) for n in lengths.unique().tolist()]
