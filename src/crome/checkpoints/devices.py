"""From the name of a device to the device of this process, and a model onto it."""

import os
import re
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from crome.errors import InputError

NAMES = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def device_named(name: str) -> torch.device:
    """The device that a name stands for in this process.

    Args:
        name: "cpu", "cuda", "cuda:N", "mps", or "auto" for a CUDA GPU where there is one and the
            CPU elsewhere. With several processes on a machine, "auto" and "cuda" give each a GPU
            of its own.

    Raises:
        InputError: The name is none of these, or this machine has no such device.
    """
    if not NAMES.fullmatch(name):
        raise InputError(f"--device is {name!r}; expected auto, cpu, cuda, cuda:N or mps.")
    kind, _, number = name.partition(":")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError("--device mps: this machine has no GPU of Apple's; give --device auto.")
    return cuda_device(number) if kind == "cuda" else torch.device(kind)


def cuda_device(number: str) -> torch.device:
    """The CUDA GPU of a number, or that of this process where the number is empty."""
    if not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch finds no GPU of CUDA here; give --device auto.")
    if number and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        raise InputError(
            f"--device cuda:{number} would put several processes on one GPU; give --device cuda, "
            "and each takes its own."
        )
    chosen, count = int(number or os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if chosen >= count:
        raise InputError(f"--device cuda:{chosen}: there are {count} GPUs here, from cuda:0 on.")
    return torch.device("cuda", chosen)


def move(module: nn.Module, device: torch.device, fixed: Collection[nn.Module]) -> None:
    """Moves a module to a device, except for the modules in `fixed`, which stay where they are."""
    for child in module.children():
        if child not in fixed:
            move(child, device, fixed)
    module._apply(lambda tensor: tensor.to(device), recurse=False)


def placed(module: Any) -> bool:
    """Whether a library has put a model where it belongs, and it must not be moved."""
    return hasattr(module, "hf_device_map") or getattr(module, "is_quantized", False)
