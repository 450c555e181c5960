"""What is kept of a set of media in place of its pixels.

The frozen features, the small tensors that positions hang on (grids, sizes), and the form of what
the sub-processors gave: a processor expands its text from shapes, so that it runs as ever on
tensors that have a shape and no pixels.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature
from transformers.video_utils import VideoMetadata

from crome.attached.encoding import Encoded, Visual
from crome.attached.media import SUBPROCESSORS, Media

SMALL = 4096
"""Elements of a tensor that is kept whole."""
STRUCTURE = "structure"
METADATA = {field.name for field in fields(VideoMetadata)}
"""What processors say of a film beside its frames; they ask for it by attribute."""


class NotKept(Exception):  # noqa: N818
    """Something that cannot be written down; the media then go through the encoder each time."""


@dataclass(frozen=True)
class Kept:
    """A set of media without its pixels.

    Attributes:
        features: By modality.
        tensors: The small ones of the model's inputs, and its lists of numbers.
        outputs: What each sub-processor gave, without its pixels.
        sizes: (width, height) of the pictures.
        lengths: Samples of the recordings.
    """

    features: Visual
    tensors: dict[str, Any]
    outputs: dict[str, dict[str, Any]]
    sizes: tuple[tuple[int, int], ...]
    lengths: tuple[int, ...] = ()

    def blanks(self) -> list[Image.Image]:
        """Pictures of the same sizes that show nothing."""
        return [Image.new("L", size).convert("RGB") for size in self.sizes]

    def silences(self) -> list[Any]:
        """Recordings of the same lengths in which there is nothing to be heard."""
        return [np.broadcast_to(np.float32(0), length) for length in self.lengths]

    def written(self) -> dict[str, Tensor]:
        """As tensors by name.

        Raises:
            NotKept: A processor gave something that is neither numbers nor text.
        """
        found: dict[str, Tensor] = {}
        structure = {
            "features": {k: taken_apart(dict(v), found, True) for k, v in self.features.items()},
            "tensors": taken_apart(self.tensors, found, True),
            "outputs": taken_apart(self.outputs, found, False),
            "sizes": self.sizes,
            "lengths": self.lengths,
        }
        text = json.dumps(structure).encode()
        found[STRUCTURE] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        return found

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor]) -> "Kept":
        """Of what `written` gave."""
        structure = json.loads(bytes(tensors[STRUCTURE].numpy().tobytes()))
        put = {
            name: put_together(structure[name], tensors)
            for name in ("features", "tensors", "outputs")
        }
        features = {k: Encoded(**v) for k, v in put["features"].items()}
        sizes = tuple((int(w), int(h)) for w, h in structure["sizes"])
        lengths = tuple(structure.get("lengths", ()))
        return cls(features, put["tensors"], put["outputs"], sizes, lengths)


class Keeper(Protocol):
    """Where sets of media are kept."""

    def find(self, media: Media) -> Kept | None:
        """What stands for a set, None where it is not kept."""
        ...


def outputs_of(worker: Any) -> dict[str, dict[str, Any]]:
    """What the sub-processors of one row gave, by name.

    Raises:
        NotKept: One of them was called more than once.
    """
    found = {}
    for name in SUBPROCESSORS:
        kept = list(getattr(getattr(worker, name, None), "kept", {}).values())
        if len(kept) > 1:
            raise NotKept
        if kept:
            output = kept[0][1]
            found[name] = dict(output.data if isinstance(output, BatchFeature) else output)
    return found


def small(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors that are kept whole, and lists of numbers."""
    return {
        name: value
        for name, value in tensors.items()
        if not isinstance(value, Tensor) or value.numel() <= SMALL
    }


def is_numbers(value: Any) -> bool:
    """Whether something is a list of numbers, nested or not, as processors count tiles with."""
    if isinstance(value, list | tuple):
        return all(is_numbers(item) for item in value)
    return isinstance(value, int | float)


def taken_apart(value: Any, found: dict[str, Tensor], whole: bool) -> Any:
    """A nested value as JSON, its tensors put into `found`.

    Large ones are kept as their shape unless whole, and as their lengths if they are masks.

    Raises:
        NotKept: There is something else in it.
    """
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Tensor):
        if not whole and value.numel() > SMALL:
            dtype = str(value.dtype).removeprefix("torch.")
            if is_prefix_mask(value):
                return {"ones": value.sum(1).tolist(), "of": value.shape[1], "dtype": dtype}
            return {"shape": list(value.shape), "dtype": dtype}
        found[str(len(found))] = value.detach().cpu().clone().contiguous()
        return {"tensor": str(len(found) - 1)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {"map": {str(k): taken_apart(v, found, whole) for k, v in value.items()}}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [taken_apart(item, found, whole) for item in value]}
    raise NotKept


def is_prefix_mask(value: Tensor) -> bool:
    """Whether a (rows, n) tensor has ones at the beginning of each row and zeros behind them."""
    if value.ndim != 2 or value.is_floating_point():
        return False
    steps = torch.arange(value.shape[1], device=value.device)
    return torch.equal(value, (steps < value.sum(1, keepdim=True)).to(value.dtype))


def put_together(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `taken_apart` took apart; a shape becomes a tensor of zeros that takes no room."""
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "ones" in value:
        ones = torch.tensor(value["ones"])[:, None]
        return (torch.arange(value["of"]) < ones).to(getattr(torch, value["dtype"]))
    if "shape" in value:
        return torch.zeros((), dtype=getattr(torch, value["dtype"])).expand(value["shape"])
    if "map" in value:
        read = {k: put_together(v, tensors) for k, v in value["map"].items()}
        return VideoMetadata(**read) if read.keys() == METADATA else read
    for kind, build in (("list", list), ("tuple", tuple)):
        if kind in value:
            return build(put_together(item, tensors) for item in value[kind])
    return {k: put_together(v, tensors) for k, v in value.items()}
