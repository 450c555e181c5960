"""Settings of a model's own `generate`: what is a batch's, how long an answer may be, who reads it.

Shapes: B rows, T tokens.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import GenerationConfig

from crome.attached.batches import MEDIA, is_beside
from crome.attached.encoding import MAIN_INPUTS
from crome.errors import InputError

WHOLE = ("inputs_embeds", "past_key_values", "mm_encoder_outputs")
"""What `generate` of transformers takes in the place of a batch's own parts."""
LENGTH = 20
"""Tokens of an answer where neither a call nor a model's defaults say, as in transformers."""


def divided(model: Any, keywords: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keywords of `generate` as parts of a batch, and settings.

    Args:
        model: An `AttachedModel`.
        keywords: Of the call.

    Raises:
        InputError: One stands for a part of the batch that this model takes in another way.
    """
    raw = {*WHOLE, *(name for names in MAIN_INPUTS.values() for name in names)}
    of_batch = {
        name
        for name in keywords
        if name in MEDIA or name in raw or name in model.positions.inputs or is_beside(name)
    }
    batch = {name: keywords[name] for name in of_batch}
    return batch, {name: value for name, value in keywords.items() if name not in of_batch}


def answer_length(settings: Mapping[str, Any], defaults: GenerationConfig, prompt: int) -> int:
    """The most tokens that a call of `generate` may add.

    Args:
        settings: Of the call.
        defaults: Of the model.
        prompt: T, which transformers counts where it bounds the whole.

    Raises:
        InputError: There would be none.
    """
    given = settings.get("generation_config")
    for source in (settings, *(vars(one) for one in (given, defaults) if one is not None)):
        if (length := source.get("max_new_tokens")) is not None:
            break
        if (whole := source.get("max_length")) is not None:
            length = whole - prompt
            break
    else:
        length = LENGTH
    if length < 1:
        raise InputError(
            f"an answer of {length} tokens; expected max_new_tokens above 0 (max_length counts the "
            f"{prompt} tokens of the prompt, too)."
        )
    return int(length)


def answer_in(found: Any, prompt: int) -> Any:
    """What `generate` gave without the prompt's ids, which may be part of a larger output.

    Args:
        found: (B, T) ids, or with `return_dict_in_generate` what has them as `sequences`.
        prompt: How many of the ids are the prompt's.
    """
    if isinstance(found, Tensor):
        return found[:, prompt:]
    found.sequences = found.sequences[:, prompt:]
    return found
