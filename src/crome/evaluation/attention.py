"""What the Q-Former looks at: its cross-attention, drawn over the picture.

Shapes: R blocks (pictures of all rows), h heads, Q queries, S instruction tokens, N encoder tokens,
D width of the Q-Former, g × g the grid of patches.
"""

import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from crome.data.images import load_image
from crome.data.rows import Row
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor

OPACITY = 0.75  # of what is not looked at at all


@torch.inference_mode()
def query_attention(
    model: CromeForConditionalGeneration, processor: CromeProcessor, row: Row
) -> np.ndarray | None:
    """Where the queries look in the first picture of a row.

    The mean over layers, heads and queries of the cross-attention's weights; class tokens in front
    of the patches are left out.

    Args:
        model: In eval mode.
        processor: Of the model.
        row: With a picture.

    Returns:
        (g, g) weights that sum to 1 at most, or None for a model without a Q-Former, or whose
        tokens form no square grid.
    """
    if not hasattr(model, "qformer"):
        return None
    weights: list[Tensor] = []

    def look(module: Any, inputs: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        states = kwargs.get("hidden_states", inputs[0] if inputs else None)
        keys = kwargs.get("encoder_hidden_states", inputs[2] if len(inputs) > 2 else None)
        weights.append(cross_attention(module, states, keys))

    layers: Any = model.qformer.encoder.layer
    crossing = [x.crossattention.attention for x in layers if hasattr(x, "crossattention")]
    handles = [m.register_forward_pre_hook(look, with_kwargs=True) for m in crossing]
    batch = processor(images=[row.images[:1]], text=[row.question])
    batch = batch.to(model.get_input_embeddings().weight.device)
    try:
        pixels = processor.pixel_values(row.images[:1])  # the batch may hold kept features instead
        features = model.visual_features(pixels.to(batch["image_index"].device))
        model.visual_blocks(
            features,
            batch["image_index"],
            batch.get("qformer_input_ids"),
            batch.get("qformer_attention_mask"),
        )
    finally:
        for handle in handles:
            handle.remove()
    patches = features.patches.shape[1]
    side = math.isqrt(patches)
    if side * side != patches or not weights:
        return None
    mean = torch.stack(weights).mean(0)[-patches:]  # (N,) → (P,)
    return mean.reshape(side, side).cpu().numpy()


def cross_attention(module: Any, states: Any, keys: Any) -> Tensor:
    """(1, Q, D) queries and (1, N, D') encoder tokens → (N,) mean weight over heads and queries.

    Computed beside the module's own attention, since fused kernels do not give weights.
    """
    size = module.attention_head_size
    q = module.query(states).unflatten(-1, (-1, size)).transpose(1, 2)  # (1, h, Q, D / h)
    k = module.key(keys).unflatten(-1, (-1, size)).transpose(1, 2)  # (1, h, N, D / h)
    return (q.float() @ k.float().mT * size**-0.5).softmax(-1).mean((0, 1, 2))


def attention_picture(
    model: CromeForConditionalGeneration, processor: CromeProcessor, row: Row
) -> Image.Image | None:
    """The first picture of a row, dark where the queries do not look; None where there is none."""
    weights = query_attention(model, processor, row)
    return None if weights is None else shaded(load_image(row.images[0]), weights)


def shaded(picture: Image.Image, weights: np.ndarray) -> Image.Image:
    """Darkens a picture by (g, g) weights, from full light at the largest to little at none."""
    light = weights / max(float(weights.max()), 1e-12)
    small = Image.fromarray((255 * light).round().astype(np.uint8))
    mask = small.resize(picture.size, Image.Resampling.BICUBIC)
    dark = Image.blend(picture, Image.new("RGB", picture.size), OPACITY)
    return Image.composite(picture, dark, mask)
