"""Which regions of a picture the Q-Former's queries look at for a question.

Shapes: Q queries, N encoder tokens, h × w regions, S instruction tokens.
"""

import copy
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from crome.errors import InputError
from crome.images import load_image
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor
from crome.model.vision import num_prefix_tokens
from crome.rows import Row

OPACITY = 0.75  # of the shade over regions that no query looks at


def has_queries(model: Any) -> bool:
    """Whether a model has the queries of a Q-Former; an attached one has none."""
    return "query" in getattr(model.config, "branches", ())


@torch.inference_mode()
def query_attention(
    model: CromeForConditionalGeneration,
    pixel_values: Tensor,
    qformer_input_ids: Tensor | None = None,
    qformer_attention_mask: Tensor | None = None,
) -> Tensor:
    """Cross-attention of each query over the regions of one picture.

    Averaged over layers and heads. Class and register tokens are left out, and the weights of the
    regions sum to one. The adapter comes after the Q-Former, so all adapters of a base look alike.

    Args:
        model: In eval mode; other threads may use it meanwhile.
        pixel_values: (1, 3, H, W).
        qformer_input_ids: (1, S) instruction tokens; None for queries that see no text.
        qformer_attention_mask: (1, S).

    Returns:
        (Q, h, w).

    Raises:
        InputError: This model has no queries.
    """
    if not has_queries(model):
        raise InputError("this model has no queries that look at the picture.")
    device = model.query_tokens.device
    pixels = pixel_values.to(device)
    keys = model.visual_features(pixels).queries  # (1, N, D)
    visible = torch.ones(1, model.query_tokens.shape[1], dtype=torch.long, device=device)
    ids, mask = qformer_input_ids, qformer_attention_mask
    output = eager_twin(model.qformer)(
        input_ids=None if ids is None else ids.to(device),
        attention_mask=visible if mask is None else torch.cat([visible, mask.to(device)], 1),
        query_embeds=model.query_tokens,
        encoder_hidden_states=keys.to(model.query_tokens.dtype),
        output_attentions=True,
    )
    weights = torch.stack(output.cross_attentions).mean((0, 2))[0]  # (Q, N)
    tokens = weights.shape[1]
    weights = weights[:, num_prefix_tokens(model.vision_model, pixels, tokens) :]
    weights = weights / weights.sum(1, keepdim=True)
    return weights.reshape(-1, *grid(weights.shape[1], pixels.shape[-2] / pixels.shape[-1]))


def eager_twin(module: nn.Module) -> nn.Module:
    """A module with the same tensors that computes its attention weights.

    Fused kernels never hold them, and the module itself is left as it is: other threads use it.
    """
    tensors = (*module.parameters(), *module.buffers())
    twin = copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
    twin.config._attn_implementation = "eager"  # type: ignore[union-attr]
    return twin


def grid(regions: int, aspect: float) -> tuple[int, int]:
    """Rows and columns of `regions` on a picture whose height is `aspect` times its width."""
    wanted = (regions * aspect) ** 0.5
    divisors = [rows for rows in range(1, regions + 1) if regions % rows == 0]
    rows = min(divisors, key=lambda rows: abs(rows - wanted))
    return rows, regions // rows


def attention_picture(
    model: CromeForConditionalGeneration, processor: CromeProcessor, row: Row
) -> Image.Image | None:
    """The first picture of a row, dark where the queries do not look.

    Args:
        model: In eval mode.
        processor: The model's own.
        row: A question about a picture.

    Returns:
        The picture; None for a model without a Q-Former.
    """
    if not has_queries(model):
        return None
    pixels = processor.pixel_values(row.images[:1])
    weights = query_attention(model, pixels, **processor.instructions([row.question]))
    return shaded(load_image(row.images[0]), weights.mean(0).float().cpu().numpy())


def shaded(picture: Image.Image, weights: np.ndarray) -> Image.Image:
    """Darkens a picture by (h, w) weights, from full light at the largest to little at none."""
    light = weights / max(float(weights.max()), 1e-12)
    small = Image.fromarray((255 * light).round().astype(np.uint8))
    mask = small.resize(picture.size, Image.Resampling.BICUBIC)
    dark = Image.blend(picture, Image.new("RGB", picture.size), OPACITY)
    return Image.composite(picture, dark, mask)
