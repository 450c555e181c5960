"""From a name to a model with its processor: a trained checkpoint, or a new bridge."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from crome.assets import packages
from crome.checkpoints import presets
from crome.checkpoints.holding import PLAINLY as PLAINLY
from crome.checkpoints.holding import Holding as Holding
from crome.checkpoints.vlm import base_of, is_vlm, load_vlm
from crome.errors import InputError
from crome.model.adapters import adapter_of, locate_adapter
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor
from crome.model.qformer import initialise_qformer, reduced_tokenizer
from crome.verbosity import quiet_transformers

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


def load(
    name: str,
    dtype: str = "bfloat16",
    attention: str = "auto",
    holding: Holding = PLAINLY,
    **settings: Any,
) -> Any:
    """Loads a model and its processor.

    Args:
        name: A folder, a hub id, or a preset that has weights; a CROME checkpoint, a
            vision-language model of transformers, or an adapter that was trained on one.
        dtype: Type of the frozen towers: "bfloat16", "float32", or "auto" for each tower's own.
        attention: Of the language model; "auto" takes eager on the CPU in bfloat16, where the fused
            kernel's backward is slow, and the model's own choice elsewhere.
        holding: How the language model is held.
        settings: Of `crome.attach`, where `name` is a vision-language model.

    Returns:
        The model and its processor, as `crome.model.protocol` describes them.
    """
    towers = tower_kwargs(dtype, attention, holding)
    if is_vlm(name) or (Path(name).is_dir() and base_of(Path(name))):
        keywords = {"dtype": towers["dtype"], **towers["language_kwargs"]}
        attached, processor = load_vlm(name, keywords, **settings)
        return to_device(attached), processor
    if settings:
        raise InputError(
            f"{', '.join(settings)} belongs to an adapter that is attached to a vision-language "
            f"model, and {name} is a CROME checkpoint, which has its own settings."
        )
    model = CromeForConditionalGeneration.from_pretrained(name, **towers)
    return to_device(model), CromeProcessor.from_pretrained(name)


def adapter_for(checkpoint: str, adapter: Path) -> Path:
    """The folder of a task adapter, told from one of another base before either is loaded.

    Args:
        checkpoint: What `load` takes.
        adapter: A folder or a hub id.

    Raises:
        InputError: There is no adapter, or it belongs to another base.
    """
    folder = locate_adapter(adapter)
    attached = base_of(folder)
    if is_vlm(checkpoint) or (Path(checkpoint).is_dir() and base_of(Path(checkpoint))):
        if attached is None:
            raise InputError(
                f"the adapter in {folder} belongs to a CROME checkpoint, and {checkpoint} is a "
                "vision-language model of transformers; give --checkpoint the adapter's base."
            )
        return folder  # the weights are compared when both are loaded
    if attached is not None:
        raise InputError(
            f"the adapter in {folder} belongs to {attached.get('checkpoint')}, and {checkpoint} is "
            f"a CROME checkpoint; give --checkpoint {attached.get('checkpoint')}."
        )
    return adapter_of(checkpoint, folder)


def new_bridge(
    vision_model_id: str,
    language_model_id: str,
    dtype: str = "bfloat16",
    attention: str = "auto",
    holding: Holding = PLAINLY,
    **settings: Any,
) -> Loaded:
    """Joins two pretrained towers with an untrained bridge.

    The Q-Former starts from a packaged sentence encoder, whose tokenizer it uses.

    Args:
        vision_model_id: Hub id, folder or asset of a vision encoder or image-text pair.
        language_model_id: Hub id, folder, asset or `.gguf` file of a language model.
        dtype: See `load`.
        attention: See `load`.
        holding: See `load`.
        settings: Fields of `CromeConfig`.
    """
    settings = {"qformer_config": QFORMER, "normalize_features": True, **settings}
    model = CromeForConditionalGeneration.from_backbones(
        vision_model_id, language_model_id, **tower_kwargs(dtype, attention, holding), **settings
    )
    folder = packages.resolve(SENTENCE_ENCODER)
    tokenizer, kept = reduced_tokenizer(folder, settings["qformer_config"]["vocab_size"])
    if "query" in model.config.branches:
        with quiet_transformers():
            initialise_qformer(model.qformer, AutoModel.from_pretrained(folder), kept)
    return to_device(model), CromeProcessor.from_config(model.config, tokenizer)


def new_tiny(
    dtype: str = "bfloat16", attention: str = "auto", holding: Holding = PLAINLY
) -> Loaded:
    """The packaged towers with an untrained bridge: where training of `crome-tiny` starts."""
    return new_bridge(**presets.TINY, dtype=dtype, attention=attention, holding=holding)


def tower_kwargs(dtype: str, attention: str, holding: Holding = PLAINLY) -> dict[str, Any]:
    """Keywords for loading the towers."""
    if attention == "auto" and dtype == "bfloat16" and not torch.cuda.is_available():
        attention = "eager"
    chosen = {} if attention == "auto" else {"attn_implementation": attention}
    return {
        "dtype": dtype if dtype == "auto" else getattr(torch, dtype),
        "language_kwargs": chosen | holding.keywords(),
    }


def to_device(model: Any) -> Any:
    """Moves a model to the GPU of this process where there is one; a placed tower stays."""
    if not torch.cuda.is_available():
        return model
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    for child in model.children():
        if placed(child):
            model.hf_device_map = getattr(child, "hf_device_map", None)
        else:
            torch.nn.Module.to(child, device)
    if hasattr(model, "query_tokens"):
        model.query_tokens.data = model.query_tokens.data.to(device)
    return model


def placed(language_model: Any) -> bool:
    """Whether a library has put a model where it belongs, and it must not be moved."""
    return hasattr(language_model, "hf_device_map") or getattr(
        language_model, "is_quantized", False
    )
