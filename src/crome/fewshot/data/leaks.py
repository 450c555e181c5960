"""Pictures that are in two parts of a draw, or in one with two labels.

Equal files are found by their bytes. Copies that were encoded anew, in another format or quality,
are found by the mean brightness of 8 × 8 cells of the picture and the mean colour of its quarters:
encoders of photographs change fine detail and leave these means within a grey level or two.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from crome.errors import InputError
from crome.fewshot.data.draws import Draw, identity
from crome.fewshot.data.sets import Item
from crome.images import load_image

CELLS, QUARTERS = 8, 2
NEAR = 2.3  # grey levels: root mean square difference of the cells' brightness
ALIKE = 0.4  # the same, as a share of the picture's own deviation over the cells
SAME_COLOUR = 4.0  # levels: root mean square difference of the quarters' colours
WIDTH = CELLS**2 + 3 * QUARTERS**2
ROWS = 4096


def find_leaks(draw: Draw) -> list[tuple[Path, Path]]:
    """Pairs (training file, validation file) and (either, test file) that show the same picture."""
    pairs = []
    known = list(draw.train)
    for part in (draw.val, draw.test):
        pairs += find_copies(known, part)
        known += part
    return pairs


def find_copies(known: Sequence[Item], others: Sequence[Item]) -> list[tuple[Path, Path]]:
    """Pairs (known file, other file) that show the same picture; the first for each other one."""
    by_content: dict[str, Path] = {}
    for item in known:
        by_content.setdefault(identity(item.path), item.path)
    found = {
        place: by_content[digest]
        for place, item in enumerate(others)
        if (digest := identity(item.path)) in by_content
    }
    rest = [place for place in range(len(others)) if place not in found]
    nearest = nearest_copies(
        signatures([item.path for item in known]),
        signatures([others[place].path for place in rest]),
    )
    for place, source in zip(rest, nearest.tolist(), strict=True):
        if source >= 0:
            found[place] = known[source].path
    return [(found[place], others[place].path) for place in sorted(found)]


def find_contradiction(items: Sequence[Item]) -> tuple[Path, Path] | None:
    """Two files with the same bytes and different labels, if there are any."""
    seen: dict[str, Item] = {}
    for item in items:
        first = seen.setdefault(identity(item.path), item)
        if first.label != item.label:
            return first.path, item.path
    return None


def signatures(paths: Sequence[Path]) -> NDArray[np.float32]:
    """Brightness of cells, then colours of quarters, (n, 76); NaN for what cannot be read."""
    rows = [_signature(path, identity(path)) for path in paths]
    return np.stack(rows) if rows else np.zeros((0, WIDTH), np.float32)


def nearest_copies(known: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.intp]:
    """Index of the known picture that each other one is a copy of; -1 for none.

    Args:
        known: Signatures, (m, 76).
        others: Signatures, (n, 76).

    Returns:
        (n,).
    """
    nearest = np.full(len(others), -1)
    usable = np.flatnonzero(np.isfinite(known).all(1))
    if not len(usable):
        return nearest
    table = known[usable].astype(np.float64)
    cells, colours = np.split(table, [CELLS**2], axis=1)
    spread = cells.std(1)
    for start in range(0, len(others), ROWS):
        block, colour = np.split(others[start : start + ROWS].astype(np.float64), [CELLS**2], 1)
        distance = _distances(block, cells)
        best = distance.argmin(1)
        least = distance[np.arange(len(block)), best]
        same = (least <= NEAR) & (least <= ALIKE * spread[best])
        same &= np.sqrt(((colour - colours[best]) ** 2).mean(1)) <= SAME_COLOUR
        nearest[start : start + len(block)][same] = usable[best[same]]
    return nearest


def _distances(rows: NDArray[np.float64], table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Root mean square differences (n, m); infinite for rows with NaN."""
    squares = (rows**2).sum(1)[:, None] + (table**2).sum(1) - 2 * rows @ table.T
    return np.sqrt(np.where(np.isfinite(squares), squares, np.inf).clip(0) / rows.shape[1])


@lru_cache(maxsize=1 << 18)
def _signature(path: Path, digest: str) -> NDArray[np.float32]:
    """The signature of a picture; ``digest`` tells a replaced file from the one before."""
    try:
        picture = load_image(path)
    except InputError:
        return np.full(WIDTH, np.nan, np.float32)
    parts = (
        view.resize((side, side), Image.Resampling.BILINEAR)
        for view, side in ((picture.convert("L"), CELLS), (picture, QUARTERS))
    )
    return np.concatenate([np.asarray(part, np.float32).ravel() for part in parts])
