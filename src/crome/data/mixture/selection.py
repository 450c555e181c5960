"""Selects the rows of a mixture: without duplicates, and only so many on one image."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crome.data.sampler import keys

Keys = NDArray[np.uint64]


class Kept(NamedTuple):
    """The numbers of the rows that are kept of one source, and how many were left out and why."""

    rows: NDArray[np.uint32]
    duplicates: int
    over_cap: int


def select(
    images: Sequence[Keys],
    texts: Sequence[Keys],
    names: Sequence[str],
    cap: int | None = None,
    across: bool = True,
    duplicates: bool = False,
    seed: int = 0,
) -> list[Kept]:
    """Removes duplicates, which have image and text of another row; then caps the rows of an image.

    The order of rows and sources makes no difference. Where several sources have the same row, a
    hash of their names decides which keeps it. Where an image has too many rows, hashes of the
    rows' contents decide which stay.

    Args:
        images: For each source the keys (rows,) of its images; 0 for a row without.
        texts: For each source the keys (rows,) of image and text together.
        names: Names of the sources.
        cap: Most rows on one image; None for all. Rows without image are never too many.
        across: Whether the cap counts the rows of all sources together.
        duplicates: Whether to keep duplicates.
        seed: Seed of the hashes.
    """
    source = np.repeat(np.arange(len(images), dtype=np.uint16), [len(i) for i in images])
    image = np.concatenate(list(images))
    text = np.concatenate(list(texts))
    again = np.zeros(len(text), dtype=bool) if duplicates else repeated(text, source, names, seed)
    over = np.zeros(len(text), dtype=bool)
    if cap is not None:
        counted = np.flatnonzero(~again & (image != 0))
        group = image[counted]
        if not across:
            group ^= scrambled(source[counted].astype(np.uint64) + np.uint64(1))
        luck = scrambled(text[counted] ^ np.uint64(keys(seed, "cap")[0]))
        order = np.lexsort((luck, group))
        over[counted[order[place_in_run(group[order]) >= cap]]] = True
    kept = ~again & ~over
    ends = np.cumsum([0, *(len(i) for i in images)])
    parts = [slice(a, b) for a, b in pairwise(ends)]
    return [
        Kept(
            np.flatnonzero(kept[part]).astype(np.uint32),
            int(again[part].sum()),
            int(over[part].sum()),
        )
        for part in parts
    ]


def repeated(
    text: Keys, source: NDArray[np.uint16], names: Sequence[str], seed: int
) -> NDArray[np.bool_]:
    """Marks (rows,) the duplicates of a row that is kept."""
    hashes = [keys(seed, "source", name)[0] for name in names]
    rank = np.argsort(np.argsort(np.array(hashes, dtype=np.uint64)))  # (sources,)
    order = np.lexsort((rank[source], text))
    again = np.zeros(len(text), dtype=bool)
    again[order[1:]] = text[order[1:]] == text[order[:-1]]
    return again


def place_in_run(values: Keys) -> NDArray[np.int64]:
    """Counts for each of sorted values (n,) the equal ones before it."""
    first = np.ones(len(values), dtype=bool)
    first[1:] = values[1:] != values[:-1]
    starts = np.flatnonzero(first)
    return np.arange(len(values)) - np.repeat(starts, np.diff(starts, append=len(values)))


def scrambled(words: Keys) -> Keys:
    """`crome.data.sampler.scramble` of each word; NumPy's unsigned products wrap as needed."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
