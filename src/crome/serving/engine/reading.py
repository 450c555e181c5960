"""Prompts on their way into the language model.

Shapes: N tokens of a stretch, d width of the language model, V vocabulary.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from transformers import DynamicCache

from crome.serving.engine.layers import Layers, cache_of, layers_of


@dataclass(frozen=True)
class Stretch:
    """Part of a prompt that other prompts may share.

    Attributes:
        embeds: (1, N, d).
        key: Names it and all that stands before it; None for what no other prompt shares.
    """

    embeds: Tensor
    key: Hashable = None


@dataclass
class Reading:
    """A prompt that is being read.

    Attributes:
        stretches: Its parts, in order.
        layers: Keys and values of what was read, one row.
        done: Stretches that were read whole.
        offset: Tokens read of the next one.
        reused: Tokens that were in the cache.
        cache: Holds `layers`, and room for the whole prompt, while it is read by itself.
        logits: (V,) of the first new token, once all was read.
    """

    stretches: Sequence[Stretch]
    layers: Layers = field(default_factory=list)
    done: int = 0
    offset: int = 0
    reused: int = 0
    cache: DynamicCache | None = None
    logits: Tensor | None = None

    @property
    def finished(self) -> bool:
        """Whether all was read."""
        return self.done == len(self.stretches)

    @property
    def key(self) -> Hashable:
        """The name of the stretch that is read next."""
        return self.stretches[self.done].key

    @property
    def left(self) -> int:
        """Tokens of the next stretch that were not read yet."""
        return self.stretches[self.done].embeds.shape[1] - self.offset

    def own_cache(self) -> DynamicCache:
        """The cache that goes on from `layers`, with room for the whole prompt."""
        if self.cache is None or not same_layers(self.cache, self.layers):
            length = sum(stretch.embeds.shape[1] for stretch in self.stretches)
            self.cache = cache_of(self.layers, length)
        return self.cache

    def pass_to(self, layers: Layers) -> None:
        """Takes keys and values up to the end of the next stretch."""
        self.layers, self.done, self.offset = layers, self.done + 1, 0


def same_layers(cache: DynamicCache, layers: Layers) -> bool:
    """Whether a cache holds these very keys; a pass that failed leaves others in some layers."""
    held = layers_of(cache)
    return len(held) == len(layers) and all(
        ours is theirs for (ours, _), (theirs, _) in zip(held, layers, strict=True)
    )
