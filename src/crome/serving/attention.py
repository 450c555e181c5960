"""Which regions of a picture the Q-Former's queries looked at for a question.

Shapes: Q queries, N encoder tokens, h × w regions, S instruction tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from crome.errors import InputError
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.vision import num_prefix_tokens
from crome.serving.prefill import Prompt, device_of


@torch.inference_mode()
def attention(model: CromeForConditionalGeneration, prompt: Prompt) -> Tensor:
    """Cross-attention of each query over the first picture's regions.

    Averaged over layers and heads; class and register tokens are left out, and what is left sums
    to one. The adapter comes after the Q-Former, so all adapters of a base look alike.

    Args:
        model: In eval mode, used by nobody else meanwhile.
        prompt: With a picture.

    Returns:
        (Q, h, w).

    Raises:
        InputError: This model has no queries, or the prompt shows no picture.
    """
    if "query" not in model.config.branches:
        raise InputError("this model has no queries that look at the picture.")
    if prompt.pixel_values is None:
        raise InputError("there is no picture to look at.")
    device = device_of(model)
    pixels = prompt.pixel_values[:1].to(device)
    keys = model.visual_features(pixels).queries  # (1, N, D)
    visible = torch.ones(1, model.query_tokens.shape[1], dtype=torch.long, device=device)
    mask = prompt.instruction.get("qformer_attention_mask")
    ids = prompt.instruction.get("qformer_input_ids")
    with _weights_shown(model.qformer.config):
        output = model.qformer(
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
    return weights.reshape(-1, *_grid(weights.shape[1], pixels.shape[-2] / pixels.shape[-1]))


@contextmanager
def _weights_shown(config: Any) -> Iterator[None]:
    """Has the Q-Former compute its attention weights, which fused kernels never hold."""
    before = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = before


def _grid(regions: int, aspect: float) -> tuple[int, int]:
    """Rows and columns of so many regions on a picture of this height to width."""
    rows = max(1, round((regions * aspect) ** 0.5))
    return (rows, regions // rows) if regions % rows == 0 else (1, regions)
