"""Which row stands where in training: a pure function of (seed, position).

Nothing is drawn one after the other, so no list of what was drawn is kept and nothing is replayed.
A keyed permutation says for each place of a pass which row stands there; one division tells the
place from the position. Resuming at any step costs what the first step costs.

How several processes read it: with batches of b rows on each of W processes, process r takes at
step t the positions from (t·W + r)·b to (t·W + r + 1)·b. That is what Accelerate does with a loader
that reads 0, 1, 2, …. The rows of a step depend on the global batch b·W alone, so a run may
go on with another number of processes, and its whole state is three integers: the seed, the step
and the rows a step.
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
    """Rows of one source in groups on the same images, those of one size together.

    Attributes:
        rows: Row numbers (rows,), all that is kept in memory: four bytes a row.
        sizes: Sizes of groups, falling, the last 1.
        firsts: Where in `rows` the groups of each size begin.
    """

    rows: NDArray[np.uint32]
    sizes: list[int]
    firsts: list[int]


class Sampler:
    """Maps a position in training to a row, numbered through all sources.

    Rows on the same images stay together in groups of up to `group`, so that a batch computes what
    they share once.

    Without weights every epoch has every row exactly once. With weights an epoch is as many rows,
    and each source gives its exact share of them, the next blocks of its own endless passes: at
    the end of every epoch none of its rows has come more than once more than another. (A
    pass of a weighted source leaves out fewer than `group` rows, other ones each time.)

    Args:
        layouts: Of each source, or one of all rows where there are no weights.
        group: Rows of one image kept together, that of the layouts.
        seed: Of all shuffles.
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
        taken = epoch * count + slot - (self.ends[source] - count)  # its blocks before this one
        rows = self.passes[source]
        number, block = divmod(taken, max(1, len(rows) // self.group))
        # a source smaller than a group fills its block with repetitions
        place = (block * self.group + member) % len(rows)
        return int(self.starts[source]) + rows(number, place)


class Passes:
    """Endless passes over the rows of one source, each an exact shuffle by images.

    A pass is two permutations: of the blocks of `group` rows, and of the groups of one size.

    Args:
        layout: The rows in groups.
        group: Size of the largest.
        seed: Of the shuffles.
        source: Number of the source, so that no two have the same shuffle.
    """

    def __init__(self, layout: Layout, group: int, seed: int = 0, source: int = 0) -> None:
        self.layout, self.group, self.seed, self.source = layout, group, seed, source
        self.ends = [*layout.firsts[1:], len(layout.rows)]

    def __len__(self) -> int:
        return len(self.layout.rows)

    def __call__(self, number: int, place: int) -> int:
        """The row at a place (from 0 to the number of rows) of a pass."""
        block, member = divmod(place, self.group)
        blocks = len(self) // self.group
        if block < blocks:  # behind the last whole block there are single rows
            place = permute(block, blocks, self._keys(number, 0)) * self.group + member
        kind = bisect_right(self.ends, place)
        size, first = self.layout.sizes[kind], self.layout.firsts[kind]
        group, member = divmod(place - first, size)
        group = permute(group, (self.ends[kind] - first) // size, self._keys(number, size))
        return int(self.layout.rows[first + group * size + member])

    def _keys(self, number: int, size: int) -> tuple[int, ...]:
        return keys(self.seed, self.source, number, size)


def lay_out(images: NDArray[np.uint64], group: int) -> Layout:
    """Lays rows out in groups on the same images.

    The sizes of groups are the divisors of the largest: with 4, an image with 7 rows gives groups
    of 4, 2 and 1. So all but the single rows fill whole blocks of `group` places.

    Args:
        images: Keys (rows,) of the rows' images; 0 for a row without, which is alone.
        group: Largest size of a group.
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
    """Whole numbers in the proportion of weights, by largest remainders, none below 1."""
    shares = np.asarray(weights, dtype=np.float64) / sum(weights) * total
    counts = np.floor(shares).astype(int)
    most = np.argsort(counts - shares, kind="stable")[: total - int(counts.sum())]
    counts[most] += 1
    return [max(1, int(n)) for n in counts]


def square_root_weights(sizes: Sequence[int]) -> list[float]:
    """Shares in proportion to the square roots of the sizes (InstructBLIP, arXiv 2305.06500)."""
    roots = np.sqrt(np.asarray(sizes, dtype=np.float64))
    return (roots / roots.sum()).tolist()


def permute(number: int, size: int, keys: Sequence[int]) -> int:
    """The keyed permutation of 0 … size - 1, at one number.

    A Feistel network on the next power of two above, walked along until it is back below `size`:
    less than two turns on average.
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
    """Round keys that belong to a name, the same on every machine and version of Python."""
    digest = blake2b(repr(names).encode(), digest_size=16 * ROUNDS).digest()
    return tuple(int.from_bytes(digest[i : i + 8], "little") for i in range(0, len(digest), 8))
