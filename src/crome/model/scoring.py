"""Losses of the answers that a batch is labelled with, and of candidate answers.

Shapes: B rows, A answer tokens, N options over all rows, T prompt tokens, d width of the language
model, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, PreTrainedModel

from crome.errors import InputError
from crome.model.batch import CromeOutput, PromptBatch
from crome.model.bridge import Bridge, Prompts
from crome.model.families import forget_lengths, rows_disturb
from crome.model.language import decoder_inputs, head_rows
from crome.model.losses import IGNORED, answer_losses, predicting_rows


def losses_behind_cache(
    language_model: PreTrainedModel,
    cache: Cache,
    prompt: Tensor,
    mask: Tensor,
    option_ids: Tensor,
    option_rows: Tensor,
) -> Tensor:
    """Reads each prompt once, repeats its keys and values, and reads the options behind it.

    Args:
        language_model: A decoder with a plain growing cache.
        cache: Keys and values in front of `prompt`, a row for each question; may be empty.
        prompt: (B, T, d) the embeddings that are not in the cache yet, padded on the right.
        mask: (B, cached + T).
        option_ids: (N, A), -100 behind an option's end.
        option_rows: (N,) the row each option answers.

    Returns:
        (N, A) cross-entropy of each token, 0 behind an option's end.
    """
    model: Any = language_model
    start, width = mask.shape[1] - prompt.shape[1], prompt.shape[1]
    last = torch.arange(len(prompt), device=mask.device) * width + mask[:, start:].sum(1) - 1
    with head_rows(language_model, last):
        first = model(
            inputs_embeds=prompt, attention_mask=mask, past_key_values=cache, use_cache=True
        ).logits
    losses = [F.cross_entropy(first[option_rows].float(), option_ids[:, 0], reduction="none")]
    if option_ids.shape[1] > 1:
        cache.batch_select_indices(option_rows)
        mask, inputs = mask[option_rows], option_ids[:, :-1]
        positions = mask.sum(1, keepdim=True) + torch.arange(inputs.shape[1], device=mask.device)
        targets = option_ids[:, 1:].flatten()
        wanted = (targets != IGNORED).nonzero().squeeze(1)
        with head_rows(language_model, wanted):
            logits = model(
                inputs_embeds=model.get_input_embeddings()(inputs.clamp(min=0)),
                attention_mask=torch.cat([mask, (inputs != IGNORED).to(mask.dtype)], 1),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            ).logits
        losses.append(_spread(logits, targets, wanted))
    return torch.cat([x.view(len(option_ids), -1) for x in losses], 1)


def losses_behind_encoder(
    language_model: PreTrainedModel,
    embeds: Tensor,
    mask: Tensor,
    option_ids: Tensor,
    option_rows: Tensor,
) -> Tensor:
    """`losses_behind_cache` for an encoder-decoder, whose encoder reads each prompt once.

    Args:
        language_model: An encoder-decoder.
        embeds: (B, T, d).
        mask: (B, T).
        option_ids: See `losses_behind_cache`.
        option_rows: See `losses_behind_cache`.

    Returns:
        See `losses_behind_cache`.
    """
    model: Any = language_model
    read = model.get_encoder()(inputs_embeds=embeds, attention_mask=mask)
    read.last_hidden_state = read.last_hidden_state[option_rows]
    targets = option_ids.flatten()
    wanted = (targets != IGNORED).nonzero().squeeze(1)
    with head_rows(language_model, wanted):
        logits = model(
            encoder_outputs=read,
            attention_mask=mask[option_rows],
            decoder_input_ids=decoder_inputs(model, option_ids),
            use_cache=False,
        ).logits
    return _spread(logits, targets, wanted).view(option_ids.shape)


def _spread(logits: Tensor, targets: Tensor, wanted: Tensor) -> Tensor:
    """(tokens,) losses at the wanted places, 0 elsewhere."""
    losses = logits.new_zeros(len(targets), dtype=torch.float32)
    losses[wanted] = F.cross_entropy(logits.float(), targets[wanted], reduction="none")
    return losses


Losses = tuple[Tensor | None, Tensor]
"""(A, V) logits, None where they were made in chunks; and the (A,) losses, in order of rows."""


def label_losses(model: Bridge, prompts: Prompts) -> Losses:
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


def _behind_encoder(model: Bridge, prompts: Prompts, labels: Tensor) -> Losses:
    embeds, mask, _ = model.spliced(prompts)
    rows = (labels != IGNORED).flatten().nonzero().squeeze(1)
    targets = labels.flatten()[rows]
    return answer_losses(
        model.language_model, rows.to(embeds.device), targets.to(embeds.device), use_cache=False,
        inputs_embeds=embeds, attention_mask=mask,
        decoder_input_ids=decoder_inputs(model.language_model, labels.to(embeds.device)),
    )  # fmt: skip


def _one_length_at_a_time(model: Bridge, prompts: Prompts, labels: Tensor) -> Losses:
    """Losses for models in which rows of other lengths would change a row's result."""
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


def whole_logits(model: Bridge, prompts: Prompts, output_hidden_states: bool) -> CromeOutput:
    """Logits (B, L, V) over whole rows, and the hidden states of each layer where wanted.

    Raises:
        InputError: The language model is an encoder-decoder.
    """
    if model.config.text_config.is_encoder_decoder:
        raise InputError("an encoder-decoder needs labels in forward; use generate for answers.")
    language_model = model.language_model
    if rows_disturb(language_model.config, prompts.lengths) and not output_hidden_states:
        groups = rows_of_one_length(prompts.lengths)
        parts: list[Any] = [
            whole_logits(model, model.prompts(prompts.batch.rows(rows)), False).logits
            for rows in groups
        ]
        longest = int(prompts.lengths.max())
        padded = [F.pad(part, (0, 0, 0, longest - part.shape[1])) for part in parts]
        order = torch.cat(groups).argsort()
        return CromeOutput(logits=torch.cat(padded)[order.to(padded[0].device)])
    embeds, mask, _ = model.spliced(prompts)
    wanted = {"output_hidden_states": True} if output_hidden_states else {}
    forget_lengths(language_model)
    with head_rows(language_model, None):
        output = language_model(inputs_embeds=embeds, attention_mask=mask, **wanted)
    return CromeOutput(logits=output.logits, hidden_states=getattr(output, "hidden_states", None))


def rows_of_one_length(lengths: Tensor) -> list[Tensor]:
    """The rows of each length, the shortest first."""
    return [(lengths == n).nonzero().squeeze(1) for n in lengths.unique().tolist()]
