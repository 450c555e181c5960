"""What an adapter is valid for: fingerprints of the frozen parts that it was trained on."""

import hashlib
from typing import Any

import torch
from torch import Tensor

from crome.model.pretrained import bridge_state


def base_identity(model: Any) -> dict[str, Any]:
    """What an adapter of a model is valid for; names of fingerprints end in `_fingerprint`."""
    identity: dict[str, Any] = model.base_identity()
    return identity


def crome_identity(model: Any) -> dict[str, Any]:
    """What an adapter of CROME is valid for: both towers and the bridge without its adapter."""
    config = model.config
    bridge = {k: v for k, v in bridge_state(model).items() if not k.startswith("adapter.")}
    return {
        "checkpoint": config.name_or_path,
        "vision_model": config.vision_model_id,
        "language_model": config.language_model_id,
        "width": config.hidden_size,
        **(model.tower_fingerprints or tower_fingerprints(model)),
        "bridge_fingerprint": fingerprint(bridge),
    }


def tower_fingerprints(model: Any) -> dict[str, str | None]:
    """Of both towers; None for a quantised language model, whose values are not those on disk."""
    quantised = getattr(model.language_model, "is_quantized", False)
    return {
        "vision_fingerprint": fingerprint(model.vision_model.state_dict()),
        "language_fingerprint": None
        if quantised
        else fingerprint(model.language_model.state_dict()),
    }


def fingerprint(state: dict[str, Tensor]) -> str:
    """A short hash of tensor names, shapes and sampled values, the same in float32 and bfloat16.

    At most 64 values of a tensor are read, so that 13 B parameters take a moment; they are rounded
    to bfloat16, because a tower may be loaded in either type.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        if tensor.is_floating_point() and tensor.numel():
            flat = tensor.reshape(-1)
            samples = min(64, flat.numel())
            picks = torch.arange(samples) * (flat.numel() - 1) // max(1, samples - 1)
            sample = flat[picks.to(flat.device)].to(torch.bfloat16).cpu().float()
            digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]
