"""From a name to a model with its processor: a trained checkpoint, or a new bridge."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel
from transformers.utils.import_utils import is_flash_attn_2_available

from crome.assets import packages
from crome.checkpoints import presets
from crome.checkpoints.devices import device_named, move, placed
from crome.checkpoints.holding import PLAINLY as PLAINLY
from crome.checkpoints.holding import Holding as Holding
from crome.checkpoints.holding import layers
from crome.checkpoints.vlm import base_of, is_vlm, load_vlm
from crome.errors import InputError
from crome.model.adapter_files import locate_adapter, require_bridge
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor
from crome.model.qformer import initialise_qformer, reduced_tokenizer
from crome.verbosity import quiet_transformers

Loaded = tuple[CromeForConditionalGeneration, CromeProcessor]

SENTENCE_ENCODER = "minilm-l6"
TEXT_LIMITS = ("max_question_tokens", "max_answer_tokens")
"""Settings of a checkpoint that may be changed when it is loaded."""
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
    device: str = "auto",
    **settings: Any,
) -> Any:
    """Loads a model and its processor.

    Args:
        name: A folder, a hub id, or a preset that has weights; a CROME checkpoint, a
            vision-language model of transformers, or an adapter that was trained on one.
        dtype: Type of the frozen towers: "bfloat16", "float16", "float32", or "auto" for each
            tower's own.
        attention: The language model's attention; "auto" takes what was measured to be fastest for
            the device, the type and the length (`crome.model.kernels`), where the model allows it.
        holding: How the language model is kept in memory.
        device: Where the model computes; see `device_named`.
        settings: For a vision-language model, keywords of `crome.attach`. For a CROME checkpoint,
            how long questions and answers may be (`TEXT_LIMITS`).

    Returns:
        The model and its processor, as `crome.model.protocol` describes them.
    """
    place = device_named(device)
    towers = tower_kwargs(dtype, attention, holding, place)
    if is_vlm(name) or (Path(name).is_dir() and base_of(Path(name))):
        keywords = {"dtype": towers["dtype"], **towers["language_kwargs"]}
        attached, processor = load_vlm(name, keywords, **settings)
        return to_device(attached, place, holding), processor
    if others := settings.keys() - TEXT_LIMITS:
        raise InputError(
            f"{', '.join(sorted(others))} belongs to an adapter that is attached to a "
            f"vision-language model, and {name} is a CROME checkpoint, which has its own settings "
            f"but for {' and '.join(TEXT_LIMITS)}."
        )
    model = CromeForConditionalGeneration.from_pretrained(name, **towers, **settings)
    return to_device(model, place, holding), CromeProcessor.from_pretrained(name, **settings)


def adapter_for(checkpoint: str, adapter: Path) -> Path:
    """The folder of a task adapter, after a check that it belongs to a checkpoint.

    The check comes before either is loaded, so that a wrong adapter is refused at once.

    Args:
        checkpoint: A name as `load` takes it.
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
    require_bridge(checkpoint, folder)
    return folder


def new_bridge(
    vision_model_id: str,
    language_model_id: str,
    dtype: str = "bfloat16",
    attention: str = "auto",
    holding: Holding = PLAINLY,
    device: str = "auto",
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
        device: See `load`.
        settings: Fields of `CromeConfig`.
    """
    settings = {"qformer_config": QFORMER, "normalize_features": True, **settings}
    place = device_named(device)
    towers = tower_kwargs(dtype, attention, holding, place)
    model = CromeForConditionalGeneration.from_backbones(
        vision_model_id, language_model_id, **towers, **settings
    )
    folder = packages.resolve(SENTENCE_ENCODER)
    tokenizer, kept = reduced_tokenizer(folder, settings["qformer_config"]["vocab_size"])
    if "query" in model.config.branches:
        with quiet_transformers():
            initialise_qformer(model.qformer, AutoModel.from_pretrained(folder), kept)
    processor = CromeProcessor.from_config(model.config, tokenizer)
    return to_device(model, place, holding), processor


def new_tiny(
    dtype: str = "bfloat16",
    attention: str = "auto",
    holding: Holding = PLAINLY,
    device: str = "auto",
) -> Loaded:
    """The packaged towers with an untrained bridge: where training of `crome-tiny` starts."""
    return new_bridge(
        **presets.TINY, dtype=dtype, attention=attention, holding=holding, device=device
    )


def tower_kwargs(
    dtype: str,
    attention: str,
    holding: Holding = PLAINLY,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """Keywords for loading the towers.

    Args:
        dtype: See `load`.
        attention: See `load`.
        holding: See `load`.
        device: Where the model will be; None for the device that "auto" stands for.
    """
    device = device or device_named("auto")
    if attention == "flash_attention_2" and not is_flash_attn_2_available():
        raise InputError(
            "--attention flash_attention_2 needs the package flash-attn and a GPU; give "
            "--attention auto."
        )
    settings = {} if attention == "auto" else {"attn_implementation": attention}
    return {
        "dtype": dtype if dtype == "auto" else getattr(torch, dtype),
        "language_kwargs": settings | holding.keywords(device),
    }


def to_device(model: Any, device: torch.device, holding: Holding = PLAINLY) -> Any:
    """Moves a model to a device, except for parts that a library has placed already.

    The layers of a language model that will be sharded stay, too: they go to the device one by one
    while they are sharded, because together they may not fit it.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    fixed = {child for child in model.children() if placed(child)}
    for child in fixed:
        if hasattr(child, "hf_device_map"):  # a quantised model on one CPU has none
            model.hf_device_map = child.hf_device_map
        device = getattr(model, "place", device)  # an attached adapter stays with its embeddings
    if holding.shard:
        fixed |= set(layers(model.language_model))
    move(model, device, fixed)
    return model
