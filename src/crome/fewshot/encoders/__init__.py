"""Frozen encoders, by name: the embedded one, those of Hugging Face, those of open_clip.

An image feature row begins with the joint image-text embedding; further columns, where an encoder
has them, are image-only features. Read ``protocol`` first, then any of ``bridge``, ``dual`` and
``open_clip``; ``preprocessing`` is what pictures go through.
"""

from pathlib import Path

import torch

from crome.errors import InputError
from crome.fewshot.encoders.bridge import BRIDGE, BridgeEncoder
from crome.fewshot.encoders.dual import DualEncoder
from crome.fewshot.encoders.open_clip import OpenClipEncoder
from crome.fewshot.encoders.protocol import Encoder, check_dtype, choose_device
from crome.verbosity import no_bars

__all__ = ["BRIDGE", "Encoder", "load_encoder"]


def load_encoder(
    name: str | Path = BRIDGE,
    *,
    device: str | torch.device | None = None,
    dtype: str | None = None,
) -> Encoder:
    """Load an encoder by name.

    Args:
        name: ``bridge`` for the embedded default, ``open_clip:MODEL/PRETRAINED``, or a folder or
            hub id of an image-text model of Hugging Face.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``; by default a GPU of CUDA where there is
            one, else the CPU.
        dtype: ``float32``, ``bfloat16`` or ``float16``; by default float32, and for the embedded
            encoder on processors that multiply bfloat16 that. Features of different precisions are
            features of different encoders.

    Raises:
        InputError: There is no such encoder, device or precision.
        JobError: Its weights cannot be fetched.
    """
    place, precision, name = choose_device(device), check_dtype(dtype), str(name)
    if not name:
        raise InputError(f"the encoder has no name; expected {BRIDGE!r}, a folder or a hub id.")
    with no_bars():
        if name == BRIDGE:
            return BridgeEncoder(place, precision)
        if name.startswith("open_clip:"):
            return OpenClipEncoder(name.removeprefix("open_clip:"), place, precision)
        return DualEncoder(name, place, precision)
