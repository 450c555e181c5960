"""Facts about a language model that follow from its family and configuration."""

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from crome.errors import InputError


def text_inside(config: PreTrainedConfig) -> bool:
    """Whether a language model is part of one that sees, such as Gemma 3 from 4 B on."""
    return config.get_text_config() is not config and not config.is_encoder_decoder


UNFIT = {
    "rwkv": "does not mask padding",
    "minimax": "does not mask padding",
    "fsmt": "takes zeros in its input for padding",
    "git": "numbers tokens by their place in a row, padding included",
    "moshi": "decodes otherwise than it reads",
    "prophetnet": "predicts several tokens at a time",
    "falcon_h1": "scales words, but not embeddings that are given",
}
"""Families that would give wrong answers, and why."""


CAUSAL_ANYWAY = ("gpt_neox", "gpt_neox_japanese", "trocr")
"""Families whose `is_decoder` is false and which read from left to right all the same."""

BY_PLACE = ("trocr",)
"""Decoders that number tokens by their place in the row, padding in front of them included."""

SCALED_BY_LENGTH = ("dynamic", "longrope")
"""Rotary positions that change for all rows of a batch once the longest passes a length."""


def check_family(config: PreTrainedConfig, auto: Any) -> None:
    """Refuses language models that cannot work between embeddings and answers.

    Raises:
        InputError: The message says what the language model does that does not fit.
    """
    kind, text = config.model_type, config.get_text_config()
    reason = UNFIT.get(kind)
    if type(config) not in auto._model_mapping:
        if hasattr(config, "auto_map"):  # code of its own
            return
        reason = f"is not among those of {auto.__name__}"
    elif (
        not config.is_encoder_decoder
        and getattr(config, "is_decoder", None) is False
        and kind not in CAUSAL_ANYWAY
    ):
        reason = "reads text in both directions (its is_decoder is false)"
    elif getattr(text, "hidden_size_per_layer_input", 0):
        reason = "reads token ids in every layer, and pictures have none"
    elif not text_inside(config):
        prepare = auto._model_mapping[type(config)].prepare_inputs_for_generation
        if "inputs_embeds" not in inspect.signature(prepare).parameters:
            reason = "cannot generate from embeddings"
    if reason:
        raise InputError(
            f"the language model {kind!r} {reason}; expected a causal language model or an "
            "encoder-decoder, such as Llama, Qwen3, Gemma 3, SmolLM or T5."
        )


def rope_tables(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """The settings of a language model's rotary positions, one for each kind of layer."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    tables = [rope, *(table for table in rope.values() if isinstance(table, dict))]
    return [table for table in tables if "rope_type" in table]


def context_length(config: PreTrainedConfig) -> int | None:
    """Tokens that a language model can tell apart by position; None where it sets no limit."""
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(longest, int) or longest <= 0:
        return None
    factors = [
        float(table.get("factor") or 1)
        for table in rope_tables(config)
        if table["rope_type"] in ("dynamic", "linear")  # the others' limit has it already
    ]
    return int(longest * max([1.0, *factors]))


class LongRowError(InputError):
    """A row of a batch is longer than a language model has positions for.

    Args:
        place: Of the row in its batch.
        reason: What is to be said of it.
    """

    def __init__(self, place: int, reason: str) -> None:
        super().__init__(f"row {place} of the batch {reason}")
        self.place, self.reason = place, reason


def require_room(config: PreTrainedConfig, lengths: Tensor, new_tokens: int = 0) -> None:
    """Refuses rows that are longer than a language model has positions for.

    Args:
        config: Configuration of the language model.
        lengths: (B,) positions that each row takes.
        new_tokens: The most tokens that may follow them.

    Raises:
        LongRowError: The message names the longest row.
    """
    limit = context_length(config)
    if limit is None or (longest := int(lengths.max())) + new_tokens <= limit:
        return
    more = f" and an answer of up to {new_tokens}" if new_tokens else ""
    raise LongRowError(
        int(lengths.argmax()),
        f"has {longest} tokens with its pictures{more}; the language model reads {limit}. Shorten "
        "the question or its history, show fewer pictures, or ask for a shorter answer.",
    )


def rows_disturb(config: PreTrainedConfig, lengths: Tensor, new_tokens: int = 0) -> bool:
    """Whether rows of other lengths in a batch would change a row's result.

    Then rows of one length at a time have the results of each row alone.

    Args:
        config: Configuration of the language model.
        lengths: (B,) tokens of each row with its visual ones.
        new_tokens: That are generated behind them; 0 for a pass over whole rows.
    """
    if len(lengths) < 2 or bool((lengths == lengths[0]).all()):
        return False
    text, longest = config.get_text_config(), int(lengths.max()) + new_tokens
    if new_tokens and text.model_type in BY_PLACE:
        return True
    return past_a_limit(config, longest)


def past_a_limit(config: PreTrainedConfig, longest: int) -> bool:
    """Whether rows of this length are read in another way than shorter ones.

    Attention that picks its keys picks among padding, too, once there are more than it picks; and
    some rotary positions are scaled by the longest row.
    """
    text = config.get_text_config()
    chosen = getattr(text, "index_topk", None)
    if isinstance(chosen, int) and longest > chosen:
        return True
    for table in rope_tables(config):
        original = table.get("original_max_position_embeddings") or text.max_position_embeddings
        if table["rope_type"] in SCALED_BY_LENGTH and longest > original:
            return True
    return False


def forget_lengths(model: PreTrainedModel) -> None:
    """Resets dynamic rotary positions to their original length, whatever was read before."""
    if all(table["rope_type"] != "dynamic" for table in rope_tables(model.config)):
        return
    for module in model.modules():
        if getattr(module, "rope_type", None) == "dynamic":
            one = torch.zeros(1, 1, dtype=torch.long, device=model.device)
            module(one.float(), position_ids=one)


def positions_tell(model: PreTrainedModel) -> bool:
    """Whether position ids and mask alone tell a decoder where a token stands.

    ALiBi's bias and GPT-Neo's local windows count places in the sequence, with padding and other
    questions' tokens between.
    """
    text = model.config.get_text_config()
    takes = "position_ids" in inspect.signature(model.get_decoder().forward).parameters
    by_place = getattr(text, "alibi", False) or "local" in getattr(text, "attention_layers", ())
    return takes and not by_place


def new_cache(model: PreTrainedModel) -> DynamicCache:
    """An empty cache of keys and values, as a decoder wants it."""
    return DynamicCache(config=model.config.get_text_config())


def keeps_plainly(model: PreTrainedModel) -> bool:
    """Whether the cache only grows, and padding inside it changes no position.

    Caches of sliding windows and recurrent states do not grow.
    """
    growing = all(type(layer) is DynamicLayer for layer in new_cache(model).layers)
    return growing and positions_tell(model)
