"""Memory in large pages: what is moved, and that nothing changes."""

import re
from pathlib import Path

import pytest
import torch

from crome.model import large_pages
from crome.model.large_pages import LARGE, use_large_pages

MAPS = """\
7f0000100000-7f0000900000 rw-p 00000000 00:00 0{name}
7f0001000000-7f0001800000 r--p 00000000 fe:00 17                         /weights.safetensors
7f0002000000-7f0002100000 rw-p 00000000 00:00 0
"""


@pytest.mark.parametrize(("name", "moved"), [("", True), ("  [heap]", True), ("  [stack]", False)])
def test_only_private_memory_is_moved(name, moved):
    mappings = list(large_pages._private_mappings(MAPS.format(name=name)))
    assert mappings == ([(0x7F0000200000, 0x7F0000800000)] if moved else [])


def test_numbers_stay_and_memory_does_not_grow():
    values = torch.arange(16 * LARGE // 8)
    untouched = torch.empty(512 * LARGE // 8)  # a gigabyte that is promised only
    before = _status("Rss:")
    if not use_large_pages():
        pytest.skip("this system offers no large pages")
    torch.testing.assert_close(values, torch.arange(len(values)))
    assert _large_around(values.data_ptr() + LARGE) >= values.nbytes - 2 * LARGE
    assert len(untouched)
    # A tenth of each page may be new.
    assert _status("Rss:") < 1.1 * before + 64 * LARGE


def test_nothing_is_done_where_it_is_switched_off(tmp_path, monkeypatch):
    monkeypatch.setattr(large_pages, "SWITCH", tmp_path / "enabled")
    assert use_large_pages() == 0
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    assert use_large_pages() == 0


def _status(field: str) -> int:
    """Bytes of this process."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) << 10


def _large_around(address: int) -> int:
    """Bytes in large pages of the mapping that an address lies in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no mapping holds the address")
