"""Weights in large pages of memory, where Linux offers them.

A decoding step reads every weight once. In pages of 4 KiB the processor has to look up an address
for each 4 KiB that it reads, which takes a third of the time of reading, and several times as long
on a busy virtual machine. Pages of 2 MiB need a five-hundredth of the look-ups; no number changes.
"""

import ctypes
import logging
import re
from collections.abc import Iterator
from itertools import groupby
from mmap import PAGESIZE
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)
LARGE = 2 << 20
"""Bytes of a large page."""
FULL = 0.9
"""Share of a large page that must be in use already, so that memory does not grow."""
SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_HUGEPAGE, _COLLAPSE = 14, 25  # MADV_HUGEPAGE; MADV_COLLAPSE, since Linux 6.1


def use_large_pages() -> int:
    """Moves what this process holds in memory to large pages; call it once weights are in place.

    Does nothing where the system does not offer them. It copies the memory, at some hundreds of
    MB a second, so it pays for a process that answers more than a few questions.

    Returns:
        Number of bytes that are in large pages now.
    """
    if not SWITCH.exists() or "[never]" in SWITCH.read_text():
        return 0
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    libc.mincore.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p
    moved = 0
    for begin, end in _private_mappings(Path("/proc/self/maps").read_text()):
        for first, last in _in_use(libc, begin, end):
            libc.madvise(first, last - first, _HUGEPAGE)
            if libc.madvise(first, last - first, _COLLAPSE) == 0:
                moved += last - first
    logger.info("%.0f MiB are in large pages of memory", moved / 2**20)
    return moved


def _private_mappings(maps: str) -> Iterator[tuple[int, int]]:
    """Begin and end of this process's own memory, in whole large pages.

    Args:
        maps: What the system tells about the process's memory: `/proc/self/maps`.
    """
    line = r"^([0-9a-f]+)-([0-9a-f]+) rw-p \S+ 00:00 0 *(?:\[heap\])?$"
    for begin, end in re.findall(line, maps, re.MULTILINE):
        first, last = -(-int(begin, 16) // LARGE) * LARGE, int(end, 16) // LARGE * LARGE
        if first < last:
            yield first, last


def _in_use(libc: ctypes.CDLL, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Begin and end of what lies between two addresses and is in memory, in whole large pages."""
    pages = np.zeros((end - begin) // PAGESIZE, np.uint8)
    libc.mincore(begin, end - begin, pages.ctypes.data)
    held = (pages.reshape(-1, LARGE // PAGESIZE) & 1).mean(1) >= FULL
    for wanted, numbers in groupby(range(len(held)), key=held.__getitem__):
        if wanted:
            run = list(numbers)
            yield begin + run[0] * LARGE, begin + (run[-1] + 1) * LARGE
