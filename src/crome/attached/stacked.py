"""Pictures of several rows through a tower in one pass.

A tower is hundreds of short kernels, and a GPU computes those of one picture faster than a program
starts them. Sets of media whose tensors have the same shapes are therefore laid one behind the
other, and what the tower gives is cut into as many equal parts. That this is what each set gives by
itself is tried once for a model; a family for which it is not so is encoded set by set.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from crome.attached.encoding import LAYERS, MAIN_INPUTS, Encoded, Encoder, Visual

TOGETHER = 16
"""Sets in one pass at most: a tower's own memory grows with them."""
CLOSE = {torch.float32: 1e-4}
"""Relative difference that rounding makes between one set and several; 0.02 in 16 bits."""
Media = Mapping[str, Any]


class Stacked:
    """Runs an encoder over several sets of media.

    Args:
        encoder: Of one set.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.suits: bool | None = None
        """Whether parts are what sets give by themselves; None before it was tried."""

    def __call__(self, media: Sequence[Media], dtype: torch.dtype) -> list[Visual]:
        """What the encoder gives for each set.

        Args:
            media: The processor's tensors of each.
            dtype: Floating point type of the towers.
        """
        groups: dict[Any, list[int]] = {}
        for number, one in enumerate(media):
            groups.setdefault(shapes(one) or number, []).append(number)
        found: dict[int, Visual] = {}
        for numbers in groups.values():
            for start in range(0, len(numbers), TOGETHER):
                some = numbers[start : start + TOGETHER]
                found |= zip(some, self._alike([media[i] for i in some], dtype), strict=True)
        return [found[number] for number in range(len(media))]

    def _alike(self, media: Sequence[Media], dtype: torch.dtype) -> list[Visual]:
        parts = None
        if len(media) > 1 and self.suits is not False:
            parts = self._together(media, dtype)
        if parts is None:
            return [self.encoder(one, dtype) for one in media]
        if self.suits is None:
            alone = [self.encoder(one, dtype) for one in media]
            self.suits = all(close(*pair) for pair in zip(parts, alone, strict=True))
            return alone
        return parts

    def _together(self, media: Sequence[Media], dtype: torch.dtype) -> list[Visual] | None:
        """Parts of one pass; None, for good, where there is none or it cannot be cut."""
        try:
            behind = {name: torch.cat([one[name] for one in media]) for name in media[0]}
            return cut(self.encoder(behind, dtype)["image"], len(media))
        except torch.OutOfMemoryError:
            return None
        except Exception:  # of any kind: set by set, an error says what is wrong
            self.suits = False
            return None


def shapes(media: Media) -> Any:
    """Equal for sets of pictures that fit one behind the other; None for media that never do."""
    if not all(isinstance(value, Tensor) and value.ndim for value in media.values()):
        return None
    if any(name in media for name in (*MAIN_INPUTS["video"], *MAIN_INPUTS["audio"])):
        return None
    return tuple(sorted((name, tuple(value.shape)) for name, value in media.items()))


def cut(whole: Encoded, number: int) -> list[Visual]:
    """An encoder's output in equal parts.

    Raises:
        ValueError: It does not divide.
    """
    parts: list[dict[str, Any]] = [{} for _ in range(number)]
    for name, value in whole.items():
        if name == "visual_indicator_features":
            pieces = [value] * number  # the same for every picture
        elif name == LAYERS:
            layers = [cut_layer(layer, number) for layer in value]
            pieces = [list(one) for one in zip(*layers, strict=True)]
        else:
            pieces = cut_pieces(value, number)
        for part, piece in zip(parts, pieces, strict=True):
            part[name] = piece
    return [{"image": Encoded(**part)} for part in parts]


def cut_layer(layer: Any, number: int) -> list[Any]:
    """One layer's additions; Granite writes (number of the layer, additions)."""
    if isinstance(layer, list | tuple) and isinstance(layer[0], int):
        return [(layer[0], piece) for piece in cut_pieces(layer[1], number)]
    return cut_pieces(layer, number)


def cut_pieces(value: Any, number: int) -> list[Any]:
    """A tensor along its first dimension, or a list of tensors; copies, as each is kept apart."""
    each, rest = divmod(len(value), number)
    if rest or not each:
        raise ValueError("an encoder's output does not divide by sets")
    pieces = [value[i * each : (i + 1) * each] for i in range(number)]
    return [x.clone() if isinstance(x, Tensor) else [y.clone() for y in x] for x in pieces]


def close(part: Visual, alone: Visual) -> bool:
    """Whether two outputs hold the same tokens, up to rounding."""
    ours, theirs = tensors(part), tensors(alone)
    return [x.shape for x in ours] == [x.shape for x in theirs] and all(
        float((a - b).float().norm()) <= CLOSE.get(a.dtype, 0.02) * float(b.float().norm())
        for a, b in zip(ours, theirs, strict=True)
    )


def tensors(value: Any) -> list[Tensor]:
    """All tensors inside, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [inner for one in value for inner in tensors(one)]
