"""How a language model continues prompts that are embeddings.

transformers counts a prompt's ids where it penalises repetitions, forbids pairs or bounds lengths.
Embeddings have no ids, so here such settings concern the generated tokens, and a row's answer does
not depend on what stands beside it.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
)

from crome.errors import InputError
from crome.model.families import forget_lengths
from crome.model.language import head_rows

IDLE_IN_GREEDY = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "max_length", "use_cache"),
    *("do_sample", "temperature", "top_k", "top_p", "min_p"),
    *("output_attentions", "output_hidden_states", "transformers_version", "_from_model_config"),
}
"""Defaults of a language model that greedy decoding overrules or does not read; others, such as a
repetition penalty, are left to transformers."""


class Greedy(NamedTuple):
    """A request for greedy decoding and no more."""

    max_new_tokens: int
    eos_token_id: list[int]
    pad_token_id: int


def plainly_greedy(settings: dict[str, Any], model: PreTrainedModel) -> Greedy | None:
    """A request as greedy decoding, or None where it asks for anything else.

    Args:
        settings: Keywords of `generate`.
        model: The model, whose own defaults apply too.
    """
    names = {"do_sample", *Greedy._fields}
    defaults = model.generation_config
    if settings.keys() != names or settings["do_sample"] is not False:
        return None
    if not defaults.to_diff_dict().keys() <= IDLE_IN_GREEDY:
        return None
    length, ends, pad = (settings[name] for name in Greedy._fields)
    ends = [ends] if isinstance(ends, int) else ends
    whole = isinstance(ends, list) and len(ends) > 0 and all(isinstance(i, int) for i in ends)
    if not whole or not isinstance(pad, int) or not isinstance(length, int) or length < 1:
        return None
    return Greedy(length, ends, pad)


def behind_embeddings(
    settings: dict[str, Any], model: PreTrainedModel, default_length: int
) -> dict[str, Any]:
    """Keywords of `generate` as they are meant behind a prompt of embeddings.

    Lengths become those of the answer, and a repetition penalty counts the answer's tokens alone:
    transformers would leave out as many of them as a row has padding.

    Args:
        settings: Keywords as they were given.
        model: The model, whose own defaults apply too.
        default_length: Longest answer where neither says.

    Raises:
        InputError: A setting needs the ids of the prompt.
    """
    settings = dict(settings)
    given: GenerationConfig | None = settings.get("generation_config")
    requested = {} if given is None else given.to_diff_dict()
    requested |= {name: value for name, value in settings.items() if value is not None}
    defaults = model.generation_config.to_diff_dict()
    for name in ("prompt_lookup_num_tokens", "encoder_no_repeat_ngram_size", "token_healing"):
        if requested.get(name):
            raise InputError(f"{name} reads the ids of the prompt, and a picture has none.")
    if not model.config.is_encoder_decoder:
        for bound in ("max", "min"):
            length = requested.get(f"{bound}_length")
            if length is not None and requested.get(f"{bound}_new_tokens") is None:
                settings[f"{bound}_new_tokens"] = length
            settings.pop(f"{bound}_length", None)
        if "min_length" in defaults:  # of a prompt that had ids
            settings["min_length"] = 0
    if (settings.get("max_new_tokens") or requested.get("max_new_tokens")) is None:
        settings["max_new_tokens"] = requested.get("max_length", default_length)
    if settings.get("max_new_tokens") == 0:
        raise InputError("max_new_tokens is 0; expected a number above 0.")
    penalty = {**defaults, **requested}.get("repetition_penalty")
    if penalty is not None and penalty != 1 and not model.config.is_encoder_decoder:
        settings["repetition_penalty"] = 1.0
        own = RepetitionPenaltyLogitsProcessor(float(penalty))
        settings["logits_processor"] = LogitsProcessorList(
            [own, *(settings.get("logits_processor") or [])]
        )
    return settings


def generate(
    model: PreTrainedModel, embeds: Tensor, mask: Tensor, settings: dict[str, Any]
) -> Tensor:
    """Continues prompts as transformers does it.

    Args:
        model: Any language model.
        embeds: (B, L, d), padded on the left for a decoder-only model.
        mask: (B, L).
        settings: From `behind_embeddings`.

    Returns:
        (B, new tokens) ids.
    """
    forget_lengths(model)
    with head_rows(model, None):
        ids: Tensor = model.generate(  # type: ignore[operator]
            inputs_embeds=embeds, attention_mask=mask, **settings
        )
    return ids


def padded_together(parts: list[Tensor], order: Tensor, pad_token_id: int) -> Tensor:
    """Answers of groups of rows in one tensor, in the order of the rows.

    Args:
        parts: (rows, new tokens) ids of each group.
        order: The row of each answer, on the CPU.
        pad_token_id: What stands behind shorter ones.
    """
    longest = max(part.shape[1] for part in parts)
    whole = torch.cat([F.pad(p, (0, longest - p.shape[1]), value=pad_token_id) for p in parts])
    return whole[order.argsort().to(whole.device)]
