"""The name of an encoder that changes whenever its features would."""

import hashlib
from pathlib import Path
from typing import Any

import torch


def fingerprint(
    name: str, preprocessing: Any, models: tuple[torch.nn.Module, ...], dtype: str
) -> str:
    """Name an encoder by every value of its weights, its preprocessing and its precision.

    Args:
        name: What the user calls it; only its last part is shown.
        preprocessing: Its ``repr`` counts.
        models: Its towers.
        dtype: In which it computes.
    """
    digest = hashlib.sha256(f"{preprocessing!r} {dtype}".encode())
    for model in models:
        for key, tensor in model.state_dict().items():
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            values = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(values.view(torch.uint8).numpy().data)
    return f"{_readable(name)}-{digest.hexdigest()[:16]}"


def former_fingerprint(name: str, preprocessing: Any, models: tuple[torch.nn.Module, ...]) -> str:
    """The name that version 0.1 gave, by the first values of every tensor.

    Classifiers saved by it are accepted with an encoder that still has this name.
    """
    digest = hashlib.sha256(repr(preprocessing).encode())
    for model in models:
        for key, tensor in model.state_dict().items():
            digest.update(key.encode())
            digest.update(tensor.flatten()[:256].float().cpu().numpy().tobytes())
    return f"{_readable(name)}-{digest.hexdigest()[:12]}"


def _readable(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in Path(name).name)
