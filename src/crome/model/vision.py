"""Any vision encoder → the two token sequences CROME reads, from one forward pass.

Shapes: I images, N encoder tokens with class and register tokens, P patch tokens, D encoder width.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
)

from crome.errors import InputError
from crome.model.configuration import CromeConfig
from crome.model.encoders import EXPECTED, build_vision_model, encoder_class
from crome.model.hub import reach_hub
from crome.model.tensors import by_prefix, require_sound


class VisualFeatures(NamedTuple):
    """What the bridge reads of an image: frozen, so it can be kept and reused."""

    queries: Tensor
    """(I, N, D): keys and values of the Q-Former's cross-attention."""
    patches: Tensor
    """(I, P, D): input of the patch projection."""
    outputs: Tensor | None = None
    """(R, Q, ·): what the Q-Former made of `queries` for each block of a batch, where it was kept;
    `queries` is then not read."""


def load_vision_model(name: str, **kwargs: Any) -> nn.Module:
    """Loads the vision tower of a checkpoint: an encoder's own, or that of an image-text pair.

    Args:
        name: Hub id or folder.
        kwargs: Passed to `from_pretrained` (`dtype`, `revision`, `device_map`, …).

    Returns:
        The encoder in eval mode.
    """
    if not Path(name).is_dir():
        reach_hub()
    trusted = kwargs.setdefault("trust_remote_code", False)
    config = AutoConfig.from_pretrained(
        name, revision=kwargs.get("revision"), trust_remote_code=trusted
    )
    tower: PreTrainedConfig = getattr(config, "vision_config", config)
    encoder_class(tower)
    model: Any = None
    lacking: list[str] = []
    if tower is not config:
        model = part_of(name, tower, **kwargs)
    if model is None:
        model, found = AutoModel.from_pretrained(
            name, config=tower, output_loading_info=True, **kwargs
        )
        missing = sorted(found["missing_keys"])
        lacking = [key for key in missing if not key.startswith("pooler.")]
        # A classifier has no pooler, which is not read here; drawn at random it would make another
        # tower of every load, and adapters would be refused.
        state = model.state_dict()
        for key in missing:
            state[key].zero_()
    require_sound(model, lacking)
    return model.eval()


def part_of(name: str, config: PreTrainedConfig, **kwargs: Any) -> nn.Module | None:
    """Loads a tower from the checkpoint of a larger model, whose other tensors are not read.

    Args:
        name: Hub id or folder.
        config: Configuration of the tower.
        kwargs: See `load_vision_model`.

    Returns:
        The tower; None where its tensors are not found under one prefix.
    """
    revision = kwargs.get("revision")
    with torch.device("meta"):
        expected = list(build_vision_model(config).state_dict())
    try:
        _, names = by_prefix(name, ("no tensor, only names",), revision)
    except InputError:  # no safetensors
        return None
    stems = {key.removesuffix(expected[0]) for key in names if key.endswith(expected[0])}
    whole = [stem for stem in sorted(stems) if {stem + key for key in expected} <= set(names)]
    if not whole:
        return None
    tensors, _ = by_prefix(name, tuple(whole[0] + key for key in expected), revision)
    state = {key: tensors[whole[0] + key] for key in expected}
    kwargs = {k: v for k, v in kwargs.items() if k not in ("revision", "trust_remote_code")}
    return encoder_class(config).from_pretrained(None, config=config, state_dict=state, **kwargs)


@torch.no_grad()
def visual_features(model: nn.Module, pixel_values: Tensor, config: CromeConfig) -> VisualFeatures:
    """Runs the frozen encoder once and takes both layers from that pass (BLIVA runs it twice).

    Args:
        model: The vision encoder.
        pixel_values: (I, 3, H, W), preprocessed.
        config: Names the two layers and whether prefix tokens and norms apply.
    """
    layers = (config.qformer_feature_layer, config.patch_feature_layer)
    kwargs = {} if layers == (-1, -1) else {"output_hidden_states": True}
    weight = next(model.parameters())
    outputs = run_encoder(model, pixel_values.to(weight.device, weight.dtype), kwargs)

    def layer(index: int) -> Tensor:
        # -1 is the encoder's own output, which has the final norm that hidden_states[-1] may lack.
        states = outputs.last_hidden_state if index == -1 else outputs.hidden_states[index]
        check_tokens(states, outputs.last_hidden_state, pixel_values.shape[0], index, model)
        if states.ndim == 4:  # a convolutional map (I, D, h, w)
            states = states.flatten(2).mT
        return F.layer_norm(states, states.shape[-1:]) if config.normalize_features else states

    queries, patches = layer(layers[0]), layer(layers[1])
    if config.drop_prefix_tokens and outputs.last_hidden_state.ndim == 3:
        patches = patches[:, num_prefix_tokens(model, pixel_values, patches.shape[1]) :]
    return VisualFeatures(queries, patches)


def run_encoder(model: Any, pixel_values: Tensor, kwargs: dict[str, Any]) -> Any:
    """The outputs of an encoder.

    Raises:
        InputError: It cannot do with pictures alone, or gives no tokens.
    """
    reason = "gives no tokens (last_hidden_state)"
    try:
        outputs = model(pixel_values=pixel_values, **kwargs)
        if getattr(outputs, "last_hidden_state", None) is not None:
            return outputs
    except (AttributeError, TypeError, ValueError) as error:
        reason = f"cannot read pictures alone: {' '.join(str(error).split())[:150]}"
    raise InputError(
        f"the vision encoder {model.config.model_type!r} {reason}; expected {EXPECTED}."
    )


def check_tokens(states: Tensor, output: Tensor, images: int, layer: int, model: Any) -> None:
    """Refuses what would be read wrongly: tokens of several images mixed, maps of another width."""
    kind = model.config.model_type
    if states.shape[0] != images:  # exporters keep a shape symbolic, but not a length
        raise InputError(
            f"the vision encoder {kind!r} does not give each image tokens of its own; expected one "
            "that does, such as CLIP or SigLIP."
        )
    axis = 1 if output.ndim == 4 else 2
    if states.ndim != output.ndim or states.shape[axis] != output.shape[axis]:
        raise InputError(
            f"layer {layer} of the vision encoder {kind!r} is not as wide as its output; set "
            "patch_feature_layer and qformer_feature_layer to -1."
        )


def num_prefix_tokens(model: Any, pixel_values: Tensor, num_tokens: int) -> int:
    """Class and register tokens in front of the patches: what the patch grid does not explain.

    Convolutional encoders have a grid and nothing else, rounded up at odd sizes.
    """
    timm_embedding: Any = getattr(getattr(model, "timm_model", None), "patch_embed", None)
    if timm_embedding is None and model.config.model_type == "dinov3_convnext":
        return 1  # the mean of its map
    if timm_embedding is None and not hasattr(model.config, "num_attention_heads"):
        return 0
    source = model.config if timm_embedding is None else timm_embedding
    patch_size: Any = getattr(source, "patch_size", None)
    if patch_size is None:  # several, one a stage
        return 0
    height, width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    grid = (pixel_values.shape[-2] // height) * (pixel_values.shape[-1] // width)
    return max(0, num_tokens - grid)  # hierarchical encoders merge patches on their way
