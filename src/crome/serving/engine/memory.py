"""How much memory is free, and giving back what is not used."""

import ctypes
from contextlib import suppress
from pathlib import Path

import torch

FALLBACK = 4 << 30


def free_memory(device: torch.device) -> int:
    """Bytes that are free where a model computes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [FALLBACK]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable"))
        found = [int(line.split()[1]) << 10]
    with suppress(OSError, ValueError):  # in a container
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        found.append(limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return max(min(found), 0)


def return_memory() -> None:
    """Gives freed memory back to the system, where the C library offers it (glibc).

    Buffers of many sizes, such as those of decoded pictures, leave gaps that it keeps otherwise.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
