"""The sampler: exact shuffles, shares, groups, and the same order however it is read."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from crome.data.sampler import (
    Sampler,
    apportion,
    keys,
    lay_out,
    permute,
    square_root_weights,
)

# Sizes and ratios of BLIVA's training mixture (arXiv 2308.09936), the sizes inverted from them.
BLIVA = {
    "OCR-VQA": (798_245, 0.204821), "COCO captions": (566_747, 0.172584),
    "VQAv2": (443_752, 0.152713), "VQAv2 question generation": (443_752, 0.152713),
    "LLaVA-150K": (361_411, 0.137818), "TextCaps": (109_765, 0.075952),
    "A-OKVQA": (17_056, 0.029940), "A-OKVQA question generation": (17_056, 0.029940),
    "OK-VQA": (9_009, 0.021759), "OK-VQA question generation": (9_009, 0.021759),
}  # fmt: skip


def test_conformance_10_square_roots_give_the_published_ratios():
    weights = square_root_weights([size for size, _ in BLIVA.values()])
    assert [round(w, 6) for w in weights] == [ratio for _, ratio in BLIVA.values()]


# ---------------------------------------------------------------------- the permutation


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 9, 31, 100, 1025])
def test_it_is_a_permutation(size):
    found = [permute(i, size, keys("a", size)) for i in range(size)]
    assert sorted(found) == list(range(size))


def test_every_order_is_as_likely():
    """24 orders of 4, 2,400 keys: chi-square with 23 degrees is above 58 once in 10,000 times."""
    counts = Counter(tuple(permute(i, 4, keys(key)) for i in range(4)) for key in range(2400))
    assert set(counts) == set(permutations(range(4)))
    assert sum((n - 100) ** 2 / 100 for n in counts.values()) < 58


def test_large_shuffles_look_random():
    """Correlations of 20,000 independent pairs have a standard deviation of 0.007."""
    size = 20_000
    found = np.array([permute(i, size, keys("b")) for i in range(size)])
    other = np.array([permute(i, size, keys("c")) for i in range(size)])
    for a, b in ((found, np.arange(size)), (found[1:], found[:-1]), (found, other)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.03


def test_keys_are_the_same_everywhere():
    """A run may go on on another machine: these numbers may never change."""
    assert [permute(i, 10, keys(0, "mixture", 0)) for i in range(10)] == [
        1,
        6,
        3,
        7,
        5,
        9,
        2,
        4,
        0,
        8,
    ]


# ---------------------------------------------------------------------- layouts


@pytest.mark.parametrize("group", [1, 2, 3, 4, 6, 12])
def test_a_layout_has_every_row_once_in_groups_on_one_image(group):
    rng = np.random.default_rng(group)
    images = rng.integers(0, 60, 500).astype(np.uint64)  # 0: without image
    layout = lay_out(images, group)
    assert sorted(layout.rows.tolist()) == list(range(500))
    assert layout.sizes[-1] == 1
    for size, first, end in zip(layout.sizes, layout.firsts, layout.firsts[1:], strict=False):
        assert group % size == 0
        assert (end - first) % group == 0  # whole blocks
        groups = images[layout.rows[first:end]].reshape(-1, size)
        assert (groups == groups[:, :1]).all()
        assert (groups > 0).all()  # text-only rows are no group


def test_a_layout_groups_all_it_can():
    images = np.repeat(np.arange(1, 101, dtype=np.uint64), 7)
    assert lay_out(images, 4).firsts == [0, 400, 600]  # groups of 4, 2 and 1 of each image


# ---------------------------------------------------------------------- the order


@pytest.fixture
def sources():
    """Images of three sources: 400, 100 and 25 rows, four on each image, the last text-only."""
    images = [np.arange(400) // 4 + 1, np.arange(100) // 4 + 1001, np.zeros(25)]
    return [lay_out(keys.astype(np.uint64), 4) for keys in images]


def read(sampler, count, start=0) -> list[int]:
    return [sampler(i) for i in range(start, start + count)]


def source_of(row: int) -> int:
    return int(np.searchsorted([400, 500], row, side="right"))


def test_shares_follow_the_weights_in_every_epoch(sources):
    sampler = Sampler(sources, 4, weights=square_root_weights([400, 100, 25]))
    epoch = 4 * sampler.ends[-1]
    assert epoch == 524
    for number in range(3):
        found = Counter(source_of(row) for row in read(sampler, epoch, number * epoch))
        # 20 : 10 : 5 of 131 blocks, to the block
        assert [found[n] for n in range(3)] == [300, 148, 76]


def test_a_weighted_source_repeats_its_rows_evenly(sources):
    sampler = Sampler(sources, 4, weights=[1, 1, 1])
    epoch = 4 * sampler.ends[-1]
    counts = Counter()
    for number in range(5):
        counts.update(read(sampler, epoch, number * epoch))
        seen = [counts[row] for row in range(500)]
        assert max(seen[:400]) - min(seen[:400]) <= 1
        assert max(seen[400:]) - min(seen[400:]) <= 1
    # 25 rows are no whole number of blocks: each of about 35 passes leaves out one of them
    text_only = [counts[row] for row in range(500, 525)]
    assert max(text_only) <= 36
    assert min(text_only) >= 28


def test_rows_of_an_image_come_together_in_a_mixture(sources):
    rows = read(Sampler(sources, 4, weights=[1, 1, 1]), 400)
    for i in range(0, 400, 4):
        block = rows[i : i + 4]
        assert source_of(block[0]) == 2 or len({row // 4 for row in block}) == 1


def test_sources_smaller_than_a_group_are_repeated():
    layouts = [lay_out(np.arange(n, dtype=np.uint64) + 1, 8) for n in (3, 64)]
    rows = read(Sampler(layouts, 8, weights=[1, 3]), 8 * 80)
    assert set(rows) == set(range(67))
    counts = Counter(row for row in rows if row < 3)
    assert max(counts.values()) <= 1.5 * min(counts.values())


def test_it_starts_anywhere(sources):
    whole = read(Sampler(sources, 4, seed=3, weights=[3, 2, 1]), 2000)
    assert read(Sampler(sources, 4, seed=3, weights=[3, 2, 1]), 300, 1700) == whole[1700:]
    assert read(Sampler(sources, 4, seed=4, weights=[3, 2, 1]), 2000) != whole


def test_a_step_has_the_same_rows_for_every_number_of_processes(sources):
    """As Accelerate deals batches out: batch i of a sequential loader goes to process i mod W."""
    sampler = Sampler(sources, 4, weights=[3, 2, 1])

    def step(number: int, processes: int) -> list[int]:
        size = 16 // processes
        starts = [(number * processes + rank) * size for rank in range(processes)]
        return [row for start in starts for row in read(sampler, size, start)]

    for number in (0, 7, 1_000_000):
        assert step(number, 1) == step(number, 2) == step(number, 4)


def test_apportioning_gives_everyone_something_and_all_of_it():
    assert apportion([0.5, 0.25, 0.25], 8) == [4, 2, 2]
    assert sum(apportion(square_root_weights(range(1, 50)), 1000)) == 1000
    assert apportion([1e-9, 1], 10) == [1, 10]
