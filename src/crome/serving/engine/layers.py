"""Keys and values of running rows, and how they are put side by side.

Shapes: B rows, N tokens, H heads, D head width.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 64
"""Places for further tokens that a layer gets at once."""
Layers = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, both (B, H, N, D); an empty list where nothing was read."""


class RoomyLayer(DynamicLayer):
    """Keys and values with room behind them, so that a step writes one token and copies no other.

    Whoever replaces `keys` and `values` takes the room away; the next step makes a new one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rooms: tuple[Tensor, Tensor] | None = None
        self._last: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Adds (B, H, n, D) keys and values; returns all (B, H, N + n, D)."""
        # Of a prompt, which may be kept, nothing but itself is held.
        if self.keys is None or not self.get_seq_length() or key_states.shape[2] > 1:
            return super().update(key_states, value_states)
        before = self.keys.shape[2]
        after = before + 1
        if self.keys is not self._last or self._rooms is None or self._rooms[0].shape[2] < after:
            assert self.values is not None
            self._rooms = _roomy(self.keys, after + ROOM), _roomy(self.values, after + ROOM)
        for room, new in zip(self._rooms, (key_states, value_states), strict=True):
            room[:, :, before:after] = new
        self.keys, self.values = (room[:, :, :after] for room in self._rooms)
        self._last = self.keys
        return self.keys, self.values


def _roomy(known: Tensor, length: int) -> Tensor:
    room = known.new_empty(*known.shape[:2], length, known.shape[3])
    room[:, :, : known.shape[2]] = known
    return room


def cache_of(layers: Layers) -> DynamicCache:
    """A cache that begins with keys and values, which it leaves as they are."""
    cache = DynamicCache()
    cache.layer_class_to_replicate = RoomyLayer
    for keys, values in layers:
        layer = RoomyLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


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
    if len(parts) == 1:  # nothing is written into what is there, so it is not copied
        return cache_of(parts[0][0]), parts[0][1]
    longest = max(mask.shape[1] for _, mask in parts)
    some: Layers = next((layers for layers, _ in parts if layers), [])
    nothing = [(keys[:1, :, :0], values[:1, :, :0]) for keys, values in some]
    columns = zip(*(layers or nothing for layers, _ in parts), strict=True)  # a layer of every part
    joined: Any = [
        tuple(
            torch.cat([_padded(x, longest) for x in side])
            for side in zip(*column, strict=True)  # its keys, then its values
        )
        for column in columns
    ]
    return cache_of(joined), torch.cat(
        [F.pad(mask, (longest - mask.shape[1], 0)) for _, mask in parts]
    )


def _padded(values: Tensor, length: int) -> Tensor:
    """(B, H, N, D) padded on the left to a length."""
    missing = length - values.shape[2]
    return F.pad(values, (0, 0, missing, 0)) if missing else values
