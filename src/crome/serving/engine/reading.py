"""Prompts on their way into the language model.

Shapes: N tokens of a stretch, d width of the language model, V vocabulary.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from crome.serving.engine.layers import Layers


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
        logits: (V,) of the first new token, once all was read.
    """

    stretches: Sequence[Stretch]
    layers: Layers = field(default_factory=list)
    done: int = 0
    offset: int = 0
    reused: int = 0
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

    def pass_to(self, layers: Layers) -> None:
        """Takes keys and values up to the end of the next stretch."""
        self.layers, self.done, self.offset = layers, self.done + 1, 0
