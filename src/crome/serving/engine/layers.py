"""Keys and values of running rows, and how they are put side by side.

Shapes: B rows, N tokens, H heads, D head width.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

Layers = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, both (B, H, N, D); an empty list where nothing was read."""


def layers_of(cache: DynamicCache) -> Layers:
    """Keys and values in a cache."""
    layers: list[Any] = cache.layers
    return [(layer.keys, layer.values) for layer in layers]


def tokens_of(layers: Layers) -> int:
    """N."""
    return layers[0][0].shape[2] if layers else 0


def ones_of(layers: Layers) -> Tensor:
    """The mask (1, N) of one row without padding."""
    return torch.ones(1, tokens_of(layers), dtype=torch.long)


def side_by_side(parts: Sequence[tuple[Layers, Tensor]]) -> tuple[DynamicCache, Tensor]:
    """Puts rows beside each other, padded on the left to the longest.

    Args:
        parts: Some rows each, with their mask (rows, N); what is empty is one row.

    Returns:
        The cache, and its mask (B, N of the longest).
    """
    longest = max(mask.shape[1] for _, mask in parts)
    some: Layers = next((layers for layers, _ in parts if layers), [])
    nothing = [(keys[:1, :, :0], values[:1, :, :0]) for keys, values in some]
    columns = zip(*(layers or nothing for layers, _ in parts), strict=True)  # a layer of every part
    cache = DynamicCache(
        tuple(
            torch.cat([F.pad(x, (0, 0, longest - x.shape[2], 0)) for x in side])
            for side in zip(*column, strict=True)  # its keys, then its values
        )
        for column in columns
    )
    return cache, torch.cat([F.pad(mask, (longest - mask.shape[1], 0)) for _, mask in parts])
