"""A short hash that stands for the values of many tensors."""

import hashlib

import torch
from torch import Tensor


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
