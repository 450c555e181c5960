"""Keys and values of running rows, and how they are put side by side.

Shapes: B rows, N tokens, H heads, D head width.
"""

from collections.abc import Sequence
from functools import partial
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
    """Keys and values with room behind them, so that new tokens are written and no others copied.

    Whoever replaces `keys` and `values` takes the room away; the next step makes a new one.

    Args:
        length: Tokens that will come to be held, where that is known. Otherwise a prompt gets no
            room, because it may be kept, and a token that follows it gets a little.
    """

    def __init__(self, length: int = 0) -> None:
        super().__init__()
        self._length = length
        self._rooms: tuple[Tensor, Tensor] | None = None
        self._last: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Adds (B, H, n, D) keys and values; returns all (B, H, N + n, D)."""
        before, new = self.get_seq_length(), key_states.shape[2]
        after = before + new
        if after > self._length and (new > 1 or not before):
            return super().update(key_states, value_states)
        if self._rooms is None or self.keys is not self._last or self._rooms[0].shape[2] < after:
            if not before:
                self.lazy_initialization(key_states, value_states)
            length = max(after + ROOM, self._length)
            self._rooms = (
                _roomy(key_states, self.keys, before, length),
                _roomy(value_states, self.values, before, length),
            )
        for room, states in zip(self._rooms, (key_states, value_states), strict=True):
            room[:, :, before:after] = states
        self.keys, self.values = (room[:, :, :after] for room in self._rooms)
        self._last = self.keys
        return self.keys, self.values


def _roomy(like: Tensor, known: Tensor | None, number: int, length: int) -> Tensor:
    """Room for a number of tokens that begins with those that are known."""
    room = like.new_empty(*like.shape[:2], length, like.shape[3])
    if known is not None and number:
        room[:, :, :number] = known
    return room


def cache_of(layers: Layers, length: int = 0) -> DynamicCache:
    """A cache that begins with keys and values, which it leaves as they are.

    Args:
        layers: Keys and values.
        length: See `RoomyLayer`.
    """
    cache = DynamicCache()
    cache.layer_class_to_replicate = partial(RoomyLayer, length)  # type: ignore[assignment]
    for keys, values in layers:
        layer = RoomyLayer(length)
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def layers_of(cache: DynamicCache) -> Layers:
    """Keys and values in a cache."""
    layers: list[Any] = cache.layers
    return [(layer.keys, layer.values) for layer in layers]


def own_copies(layers: Layers) -> Layers:
    """Keys and values that hold no room behind them, and are part of nothing else."""
    return [(keys.clone(), values.clone()) for keys, values in layers]


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
