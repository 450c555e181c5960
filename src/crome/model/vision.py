"""Any vision encoder → the two token sequences CROME reads, from one forward pass.

Shapes: I images, N encoder tokens with class and register tokens, P patch tokens, D encoder width.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    InstructBlipVisionConfig,
    InstructBlipVisionModel,
    PreTrainedConfig,
)

from crome.model.configuration import CromeConfig
from crome.model.shards import by_prefix

# InstructBLIP's ViT-g has a config of its own but no entry in AutoModel.
AutoModel.register(InstructBlipVisionConfig, InstructBlipVisionModel, exist_ok=True)


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
    config = AutoConfig.from_pretrained(name, revision=kwargs.get("revision"))
    if config.model_type in ("instructblip", "blip-2"):
        # By prefix: the language model beside it is some ten times larger.
        tensors, _ = by_prefix(name, ("vision_model.",), kwargs.pop("revision", None))
        state = {key.removeprefix("vision_model."): value for key, value in tensors.items()}
        model = InstructBlipVisionModel.from_pretrained(
            None, config=config.vision_config, state_dict=state, **kwargs
        )
        if missing := sorted(model.state_dict().keys() - state.keys()):
            raise OSError(f"it lacks vision_model.{missing[0]}")
        return model.eval()
    tower: PreTrainedConfig = getattr(config, "vision_config", config)
    return AutoModel.from_pretrained(name, config=tower, **kwargs).eval()


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
    outputs = model(pixel_values=pixel_values.to(next(model.parameters()).dtype), **kwargs)

    def layer(index: int) -> Tensor:
        # -1 is the encoder's own output, which has the final norm that hidden_states[-1] may lack.
        states = outputs.last_hidden_state if index == -1 else outputs.hidden_states[index]
        if states.ndim == 4:  # a convolutional map (I, D, h, w)
            states = states.flatten(2).mT
        return F.layer_norm(states, states.shape[-1:]) if config.normalize_features else states

    queries, patches = layer(layers[0]), layer(layers[1])
    if config.drop_prefix_tokens:
        patches = patches[:, num_prefix_tokens(model, pixel_values, patches.shape[1]) :]
    return VisualFeatures(queries, patches)


def num_prefix_tokens(model: Any, pixel_values: Tensor, num_tokens: int) -> int:
    """Class and register tokens in front of the patches: what the patch grid does not explain.

    Convolutional encoders have a grid and nothing else, rounded up at odd sizes.
    """
    timm_embedding: Any = getattr(getattr(model, "timm_model", None), "patch_embed", None)
    if timm_embedding is None and not hasattr(model.config, "num_attention_heads"):
        return 0
    patch_size: Any = (model.config if timm_embedding is None else timm_embedding).patch_size
    height, width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    grid = (pixel_values.shape[-2] // height) * (pixel_values.shape[-1] // width)
    return max(0, num_tokens - grid)  # hierarchical encoders merge patches on their way
