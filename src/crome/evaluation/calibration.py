"""How often `crome compare` tells apart two runs that do not differ: its false positives.

Both runs answer the same rows with the same chances of being right, drawn independently. The share
of pairs of runs that the test tells apart should be its level, 5 %.
"""

import numpy as np

from crome.intervals import LEVEL, paired_difference

KINDS = ("right or wrong", "graded", "rarely right")
QUESTIONS_PER_PICTURE = 4  # on average; pictures have one to many
PICTURE_EFFECT = 1.5  # on the scale of log odds: how alike a run does on questions of one picture


def false_positives(
    kind: str,
    n: int,
    *,
    clustered: bool,
    ignore_pictures: bool = False,
    fewest_pictures: int = 1,
    level: float = LEVEL,
    draws: int = 10_000,
    seed: int = 0,
) -> float:
    """The share of draws in which the test tells two equal runs apart.

    Args:
        kind: "right or wrong" answers (half of them right), "graded" ones in tenths, or "rarely
            right" ones (one in ten).
        n: Rows.
        clustered: Whether several rows are on one picture, on which a run does alike.
        ignore_pictures: Whether clustered rows are compared as if they stood alone.
        fewest_pictures: How many pictures clustered rows show at least; two runs on a single one
            are never told apart.
        level: Level of the test.
        draws: Pairs of runs.
        seed: Seed of the draws.
    """
    generator = np.random.default_rng(seed)
    found = 0
    for _ in range(draws):
        pictures = _pictures(generator, n, fewest_pictures) if clustered else np.arange(n)
        shared = generator.normal(size=n)  # how hard the rows are, the same for both runs
        a, b = (_scores(kind, generator, shared, pictures, clustered) for _ in range(2))
        alone = not clustered or ignore_pictures
        p_value, _ = paired_difference(b - a, None if alone else pictures.tolist())
        found += p_value < level
    return found / draws


def _pictures(generator: np.random.Generator, n: int, fewest: int) -> np.ndarray:
    """The picture of each row: sizes vary around `QUESTIONS_PER_PICTURE`."""
    while True:
        sizes = 1 + generator.poisson(QUESTIONS_PER_PICTURE - 1, size=n)
        pictures = np.repeat(np.arange(n), sizes)[:n]
        if pictures[-1] + 1 >= fewest:
            return pictures


def _scores(
    kind: str,
    generator: np.random.Generator,
    shared: np.ndarray,
    pictures: np.ndarray,
    clustered: bool,
) -> np.ndarray:
    effect = generator.normal(scale=PICTURE_EFFECT, size=pictures.max() + 1) * clustered
    odds = shared + effect[pictures] - (3.0 if kind == "rarely right" else 0.0)
    chance = 1 / (1 + np.exp(-odds))
    if kind == "graded":
        return generator.binomial(10, chance) / 10
    return (generator.random(len(chance)) < chance).astype(float)
