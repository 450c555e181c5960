"""Duplicates and the cap: counts, and that order does not matter."""

from collections import Counter

import numpy as np
import pytest

from crome.data.mixture.selection import place_in_run, scrambled, select
from crome.data.sampler import scramble


def keys(numbers) -> np.ndarray:
    return np.array(list(numbers), dtype=np.uint64)


@pytest.fixture
def sources():
    """Three sources with rows in common; names → (images, texts)."""
    rng = np.random.default_rng(0)
    made = {}
    for name, count in (("a", 300), ("b", 200), ("c", 50)):
        images = rng.integers(0, 30, count)
        made[name] = keys(images), keys(images * 100 + rng.integers(0, 20, count))
    return made


def contents(sources, order, **settings) -> dict[str, Counter]:
    """What each source keeps, as texts, with the sources and their rows in some order."""
    rng = np.random.default_rng(len(order[0]))
    turned = {name: rng.permutation(len(sources[name][0])) for name in order}
    images = [sources[name][0][turned[name]] for name in order]
    texts = [sources[name][1][turned[name]] for name in order]
    kept = select(images, texts, order, **settings)
    return {name: Counter(texts[n][kept[n].rows].tolist()) for n, name in enumerate(order)}


@pytest.mark.parametrize("across", [True, False])
def test_conformance_10_neither_depends_on_the_order(sources, across):
    found = [
        contents(sources, order, cap=4, across=across, seed=1)
        for order in (["a", "b", "c"], ["c", "a", "b"], ["b", "c", "a"])
    ]
    assert found[0] == found[1] == found[2]
    assert contents(sources, ["a", "b", "c"], cap=4, across=across, seed=2) != found[0]


def test_one_of_equal_rows_stays(sources):
    names = list(sources)
    images, texts = zip(*sources.values(), strict=True)
    kept = select(images, texts, names)
    left = np.concatenate([t[k.rows] for t, k in zip(texts, kept, strict=True)])
    assert sorted(left) == sorted(set(np.concatenate(texts).tolist()))
    assert sum(k.duplicates for k in kept) == 550 - len(left)
    assert select(images, texts, names, duplicates=True)[0].duplicates == 0


@pytest.mark.parametrize(("across", "most"), [(True, 1), (False, 3)])
def test_the_cap_counts_rows_on_an_image(sources, across, most):
    images, texts = zip(*sources.values(), strict=True)
    kept = select(images, texts, list(sources), cap=4, across=across, duplicates=True)
    left = np.concatenate([i[k.rows] for i, k in zip(images, kept, strict=True)])
    counts = Counter(left.tolist())
    text_only = sum(int((i == 0).sum()) for i in images)
    assert counts.pop(0) == text_only  # is never too many
    assert max(counts.values()) <= 4 * most
    if across:
        assert set(counts.values()) == {4}  # every image has more than four rows
    assert sum(len(k.rows) + k.over_cap for k in kept) == 550


def test_the_cap_keeps_every_row_as_often():
    """100 images with 8 rows, 4 kept: each place 50 times of 100, with a deviation of 5."""
    images = keys(np.repeat(np.arange(1, 101), 8))
    (kept,) = select([images], [keys(range(1000, 1800))], ["a"], cap=4)
    places = Counter((kept.rows % 8).tolist())
    assert all(30 < places[n] < 70 for n in range(8))


def test_small_helpers():
    assert place_in_run(keys([1, 1, 1, 5, 7, 7])).tolist() == [0, 1, 2, 0, 0, 1]
    words = [0, 1, 2**63 + 12345, 2**64 - 1]
    assert scrambled(keys(words)).tolist() == [scramble(word) for word in words]
