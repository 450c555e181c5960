"""From a name to a model with its processor: a trained checkpoint, or a new bridge."""

from typing import Any

import torch
from transformers import AutoModel

from crome import assets
from crome.model import presets
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor
from crome.model.qformer import initialise_qformer, reduced_tokenizer

Loaded = tuple[CromeForConditionalGeneration, CromeProcessor]

SENTENCE_ENCODER = "minilm-l6"
QFORMER: dict[str, Any] = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "vocab_size": 30522,
}
"""The sentence encoder's own sizes, for bridges that name none."""


def load(name: str, dtype: str = "bfloat16", attention: str = "auto") -> Loaded:
    """Loads a checkpoint and its processor.

    Args:
        name: A folder, a hub id, or a preset that has weights.
        dtype: Type of the frozen towers: "bfloat16", "float32", or "auto" for each tower's own.
        attention: Of the language model; "auto" takes eager on the CPU in bfloat16, where the fused
            kernel's backward is slow, and the model's own choice elsewhere.
    """
    model = CromeForConditionalGeneration.from_pretrained(name, **tower_kwargs(dtype, attention))
    return to_device(model), CromeProcessor.from_pretrained(name)


def new_bridge(
    vision_model_id: str,
    language_model_id: str,
    dtype: str = "bfloat16",
    attention: str = "auto",
    **settings: Any,
) -> Loaded:
    """Joins two pretrained towers with an untrained bridge.

    The Q-Former starts from a packaged sentence encoder, whose tokenizer it uses.

    Args:
        vision_model_id: Hub id, folder or asset of a vision encoder or image-text pair.
        language_model_id: Hub id, folder, asset or `.gguf` file of a language model.
        dtype: See `load`.
        attention: See `load`.
        settings: Fields of `CromeConfig`.
    """
    settings = {"qformer_config": QFORMER, "normalize_features": True, **settings}
    model = CromeForConditionalGeneration.from_backbones(
        vision_model_id, language_model_id, **tower_kwargs(dtype, attention), **settings
    )
    folder = assets.resolve(SENTENCE_ENCODER)
    tokenizer, kept = reduced_tokenizer(folder, settings["qformer_config"]["vocab_size"])
    if "query" in model.config.branches:
        with assets.quiet_transformers():
            initialise_qformer(model.qformer, AutoModel.from_pretrained(folder), kept)
    return to_device(model), CromeProcessor.from_config(model.config, tokenizer)


def new_tiny(dtype: str = "bfloat16", attention: str = "auto") -> Loaded:
    """The packaged towers with an untrained bridge: where training of `crome-tiny` starts."""
    return new_bridge(**presets.TINY, dtype=dtype, attention=attention)


def tower_kwargs(dtype: str, attention: str) -> dict[str, Any]:
    """Keywords for loading the towers."""
    if attention == "auto" and dtype == "bfloat16" and not torch.cuda.is_available():
        attention = "eager"
    return {
        "dtype": dtype if dtype == "auto" else getattr(torch, dtype),
        "language_kwargs": {} if attention == "auto" else {"attn_implementation": attention},
    }


def to_device(model: CromeForConditionalGeneration) -> CromeForConditionalGeneration:
    """Moves a model to the GPU where there is one."""
    if torch.cuda.is_available():
        torch.nn.Module.cuda(model)
    return model
