"""Any encoder of transformers: its class, and how wide its tokens are."""

import inspect
from typing import Any

import torch
import transformers
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from crome.errors import InputError

EXPECTED = (
    "an encoder of pictures of one size, such as CLIP, SigLIP (SigLIP 2 without naflex), DINOv2 or "
    "ViT"
)


def build_vision_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Builds an encoder from its config alone, with random (or meta) weights."""
    encoder_class(config)
    return AutoModel.from_config(config)


def encoder_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of an encoder, which `AutoModel` knows from then on.

    Towers of pairs (InstructBLIP, BLIP, CLIPSeg, …) have classes that `AutoModel` does not list.

    Raises:
        InputError: It reads something else than single pictures of one size.
    """
    mapping: Any = AutoModel._model_mapping
    if type(config) not in mapping:
        named = type(config).__name__.removesuffix("Config") + "Model"
        found = getattr(transformers, named, None)
        if found is None:
            raise InputError(f"transformers has no encoder {named}; expected {EXPECTED}.")
        AutoModel.register(type(config), found, exist_ok=True)
    model_class: type[PreTrainedModel] = mapping[type(config)]
    parameters = inspect.signature(model_class.forward).parameters
    extra = [
        name
        for name, p in parameters.items()
        if p.default is p.empty
        and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        and name not in ("self", "pixel_values")
    ]
    reason = None
    if "pixel_values" not in parameters:
        reason = "does not take pictures (pixel_values)"
    elif extra:
        reason = f"wants {' and '.join(extra)} beside the pixels"
    elif config.model_type == "vit_mae":
        reason = "hides random patches from itself"
    elif hasattr(config, "num_frames") or hasattr(config, "tubelet_size"):
        reason = "reads videos"
    if reason:
        raise InputError(f"the vision encoder {config.model_type!r} {reason}; expected {EXPECTED}.")
    return model_class


def vision_width(config: PreTrainedConfig) -> int:
    """Width of the tokens an encoder returns; some know it only as a model."""
    for name in ("output_channels", "hidden_size", "num_features"):  # the first is SAM's neck's
        if isinstance(width := getattr(config, name, None), int):
            return width
    if config.model_type == "timm_wrapper":
        import timm

        return int(timm.create_model(config.architecture, pretrained=False).num_features)
    side = getattr(config, "image_size", None) or 224
    height, width = (side, side) if isinstance(side, int) else side
    try:
        with torch.device("meta"), torch.no_grad():
            pixels = torch.empty(1, 3, height, width)
            model = build_vision_model(config).float().eval()  # whatever type its weights have
            shape = model(pixel_values=pixels).last_hidden_state.shape
    except (AttributeError, RuntimeError, TypeError, NotImplementedError) as error:
        raise InputError(
            f"the vision encoder {config.model_type!r} names no token width (hidden_size); "
            "wrap it in a model whose config has one."
        ) from error
    return int(shape[1] if len(shape) == 4 else shape[-1])
