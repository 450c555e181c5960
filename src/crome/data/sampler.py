"""The order of training rows, as a pure function of seed and position.

A common sampler shuffles a list of all rows and walks along it, and a resumed run has to walk there
again. Here the row at a position is computed: a division gives the pass over the data and the place
in it, and a keyed permutation gives the row at that place. So no list is kept, and a run resumes at
any step as fast as at the first.

With b rows a batch on each of W processes, process r reads at step t the positions from
(t·W + r)·b to (t·W + r + 1)·b. Accelerate does so with any loader that reads 0, 1, 2, …. The rows
of a step depend only on the global batch b·W: a run may go on with another number of processes.
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ROUNDS = 3  # pairs of Feistel rounds; 2 pairs already make a pseudorandom permutation
WORD = 2**64 - 1


class Layout(NamedTuple):
    """The rows of one source, ordered so that rows on the same images form groups.

    Groups of one size stand together, the largest first.

    Attributes:
        rows: Row numbers (rows,). Nothing else is kept in memory: four bytes a row.
        sizes: The sizes of groups in falling order; the last is 1.
        firsts: Where in `rows` the groups of each size begin.
    """

    rows: NDArray[np.uint32]
    sizes: list[int]
    firsts: list[int]


class Sampler:
    """Maps a position in training to the number of a row, counted through all sources.

    Rows on the same images stay together in groups of up to `group`, so that a batch computes once
    what they share.

    Without weights every epoch has every row exactly once. With weights an epoch has as many rows,
    and every source contributes its exact share. A source is read in endless passes, which go on
    where the last epoch stopped, so that at the end of an epoch no row of a source has come two
    times more often than another. (A pass over a weighted source leaves out fewer than `group`
    rows, different ones each time.)

    Args:
        layouts: One for each source, or a single one of all rows where there are no weights.
        group: The most rows of one image that stay together; the layouts were made with it.
        seed: For all shuffles.
        weights: Shares of the sources, in any unit; None for every row once an epoch.
    """

    def __init__(
        self,
        layouts: Sequence[Layout],
        group: int = 4,
        seed: int = 0,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.passes = [Passes(layout, group, seed, n) for n, layout in enumerate(layouts)]
        self.group = group
        self.seed = seed
        self.starts = np.cumsum([0, *map(len, self.passes)]).tolist()
        self.weighted = weights is not None
        self.blocks = apportion(weights or [1.0], max(1, self.starts[-1] // group))
        self.ends = np.cumsum(self.blocks).tolist()

    def __call__(self, position: int) -> int:
        """The row at a position from 0 on."""
        if not self.weighted:
            return self.passes[0](*divmod(position, self.starts[-1]))
        block, member = divmod(position, self.group)
        epoch, block = divmod(block, self.ends[-1])
        slot = permute(block, self.ends[-1], keys(self.seed, "mixture", epoch))
        source = bisect_right(self.ends, slot)
        count = self.blocks[source]
        taken = epoch * count + slot - (self.ends[source] - count)  # blocks of this source so far
        rows = self.passes[source]
        number, block = divmod(taken, max(1, len(rows) // self.group))
        # a source smaller than a group fills its block with repetitions
        place = (block * self.group + member) % len(rows)
        return int(self.starts[source]) + rows(number, place)


class Passes:
    """Endless passes over the rows of one source; each is a shuffle that keeps groups together.

    Two permutations make a pass: one of the blocks of `group` rows, and one of the groups of each
    size among themselves.

    Args:
        layout: The rows in groups.
        group: Size of the largest.
        seed: For the shuffles.
        source: Number of the source, so that no two sources are shuffled alike.
    """

    def __init__(self, layout: Layout, group: int, seed: int = 0, source: int = 0) -> None:
        self.layout, self.group, self.seed, self.source = layout, group, seed, source
        self.ends = [*layout.firsts[1:], len(layout.rows)]

    def __len__(self) -> int:
        return len(self.layout.rows)

    def __call__(self, number: int, place: int) -> int:
        """The row at a place of a pass, counted from 0."""
        block, member = divmod(place, self.group)
        blocks = len(self) // self.group
        if block < blocks:  # the few rows behind the last whole block stay there
            place = permute(block, blocks, self._keys(number, 0)) * self.group + member
        kind = bisect_right(self.ends, place)
        size, first = self.layout.sizes[kind], self.layout.firsts[kind]
        group, member = divmod(place - first, size)
        group = permute(group, (self.ends[kind] - first) // size, self._keys(number, size))
        return int(self.layout.rows[first + group * size + member])

    def _keys(self, number: int, size: int) -> tuple[int, ...]:
        return keys(self.seed, self.source, number, size)


def lay_out(images: NDArray[np.uint64], group: int) -> Layout:
    """Orders rows so that rows on the same images form groups.

    The sizes of groups are the divisors of the largest. With 4, an image with 7 rows gives groups
    of 4, 2 and 1. Groups then fill whole blocks of `group` places; only single rows may not.

    Args:
        images: A number (rows,) for the images of each row; 0 for a row without images, which is a
            group of its own.
        group: The largest size of a group.
    """
    order = np.argsort(images, kind="stable").astype(np.uint32)  # (rows,), an image's together
    ordered = images[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (ordered[1:] != ordered[:-1]) | (ordered[1:] == 0)
    start = np.flatnonzero(new)  # (images,), the first place of each not yet in a group
    left = np.diff(start, append=len(order))  # (images,), rows not yet in a group
    rows: list[NDArray[np.uint32]] = []
    singles: list[NDArray[np.uint32]] = []
    sizes: list[int] = []
    firsts: list[int] = []
    filled = 0
    for size in (n for n in range(group, 0, -1) if group % n == 0):
        count = left // size * size
        before = np.cumsum(count) - count
        places = np.repeat(start - before, count) + np.arange(count.sum())
        start, left = start + count, left - count
        whole = len(places) // group * group if size > 1 else 0
        singles.append(order[places[whole:]])
        if whole:
            sizes, firsts = [*sizes, size], [*firsts, filled]
            rows.append(order[places[:whole]])
            filled += whole
    return Layout(np.concatenate([*rows, *singles]), [*sizes, 1], [*firsts, filled])


def apportion(weights: Sequence[float], total: int) -> list[int]:
    """Divides a total in the proportion of weights, by largest remainders; no part is below 1."""
    shares = np.asarray(weights, dtype=np.float64) / sum(weights) * total
    counts = np.floor(shares).astype(int)
    most = np.argsort(counts - shares, kind="stable")[: total - int(counts.sum())]
    counts[most] += 1
    return [max(1, int(n)) for n in counts]


def square_root_weights(sizes: Sequence[int]) -> list[float]:
    """Shares in proportion to the square roots of sizes, as in InstructBLIP (arXiv 2305.06500)."""
    roots = np.sqrt(np.asarray(sizes, dtype=np.float64))
    return (roots / roots.sum()).tolist()


def permute(number: int, size: int, keys: Sequence[int]) -> int:
    """Where a keyed permutation of 0 … size - 1 takes a number.

    The permutation is a Feistel network on the next power of two. A result of `size` or more is put
    through it again until it is below (cycle walking), which takes less than two turns on average.
    """
    bits = (size - 1).bit_length()
    low = (bits + 1) // 2
    left_mask, right_mask = (1 << (bits - low)) - 1, (1 << low) - 1
    while True:
        left, right = number >> low, number & right_mask
        for i in range(0, 2 * ROUNDS, 2):
            left ^= scramble(right ^ keys[i]) & left_mask
            right ^= scramble(left ^ keys[i + 1]) & right_mask
        number = left << low | right
        if number < size:
            return number


def scramble(word: int) -> int:
    """The finaliser of SplitMix64: each bit of the result depends on every bit of the word."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & WORD
    return word ^ (word >> 31)


@lru_cache(maxsize=4096)
def keys(*names: int | str) -> tuple[int, ...]:
    """The round keys of a permutation, from its name; the same on every machine and Python."""
    digest = blake2b(repr(names).encode(), digest_size=16 * ROUNDS).digest()
    return tuple(int.from_bytes(digest[i : i + 8], "little") for i in range(0, len(digest), 8))
