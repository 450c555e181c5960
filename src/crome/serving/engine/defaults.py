"""A language model's own generation settings, obeyed as `generate` obeys them."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessorList

from crome.serving.engine.sampling import Sampling

LIKELIHOODS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
"""Settings that a request may replace; `Sampling` has them."""


def model_processors(language_model: Any, end_ids: Sequence[int]) -> LogitsProcessorList | None:
    """What a model's settings do to logits besides `model_sampling`; None for nothing.

    Such as suppressed tokens, forbidden words, or no n-gram twice. As in `generate` behind
    embeddings, they look at the answer alone.
    """
    config = copy.deepcopy(language_model.generation_config)
    config.update(do_sample=False, **dict.fromkeys(LIKELIHOODS))
    # Forced ends depend on lengths that a request has, and guidance needs a second pass.
    config.update(forced_eos_token_id=None, guidance_scale=None, min_length=None)
    device = language_model.get_input_embeddings().weight.device
    config._eos_token_tensor = torch.tensor(list(end_ids), device=device) if end_ids else None
    found = language_model._get_logits_processor(
        generation_config=config, input_ids_seq_length=0, device=device, model_kwargs={}
    )
    return found or None


def model_sampling(language_model: Any) -> Sampling:
    """How a model's settings choose tokens, as far as they say anything.

    The temperature is not among it: a request that names none gets the likeliest answer.
    """
    config = language_model.generation_config
    return Sampling(
        top_p=_or(config.top_p, 1.0),
        top_k=_or(config.top_k, 0),
        min_p=_or(config.min_p, 0.0),
        repetition_penalty=_or(config.repetition_penalty, 1.0),
    )


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
