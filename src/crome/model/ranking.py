"""Losses of candidate answers, with the prompt in front of them read once.

Shapes: B rows (questions), N options over all rows, A tokens of the longest option, T prompt
tokens, d width of the language model.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, PreTrainedModel

from crome.model.language import decoder_inputs, head_rows
from crome.model.losses import IGNORED


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
        cache: What stands in front of `prompt`, a row for each question; may be empty.
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
    """The same for an encoder-decoder: the encoder reads each prompt once.

    Args:
        language_model: An encoder-decoder.
        embeds: (B, T, d).
        mask: (B, T).
        option_ids: See `losses_behind_cache`, as for what is returned.
        option_rows: See `losses_behind_cache`.
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
