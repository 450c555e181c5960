"""Two variants compared on the same questions with the same seeds."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from crome.intervals import Interval, clustered_mean, t_quantile


class Difference(NamedTuple):
    """A mean paired difference with its 95 % interval, and how many seeds it rests on."""

    value: float
    interval: Interval
    seeds: int

    @property
    def verdict(self) -> str:
        """What the interval says of "the first is better"."""
        low, high = self.interval
        if low > 0:
            return "holds here"
        return "does not hold here" if high < 0 else "cannot be decided"


def difference(
    first: Sequence[Sequence[float]],
    second: Sequence[Sequence[float]],
    pictures: Sequence[Hashable],
) -> Difference:
    """The first minus the second, over questions and seeds.

    Questions, which are correlated within a picture, and seeds are both samples. Their squared
    errors are added, which counts what a seed and a question have in common twice, so that the
    interval is rather too wide. The degrees of freedom are Welch and Satterthwaite's. With one seed
    it is unknown how much seeds differ, and the interval is over questions alone.

    Args:
        first: (seeds, questions) scores of the first variant.
        second: The same seeds and questions of the second.
        pictures: What each question is about.
    """
    each = np.asarray(first, float) - np.asarray(second, float)  # (seeds, questions)
    over_questions = clustered_mean(each.mean(0), pictures)
    parts = [(over_questions.error**2, over_questions.freedom)]
    if len(each) > 1:
        over_seeds = clustered_mean(each.mean(1))
        parts.append((over_seeds.error**2, over_seeds.freedom))
    variance = sum(part for part, _ in parts)
    spread = sum(part**2 / freedom for part, freedom in parts if freedom > 0)
    half = t_quantile(variance**2 / spread) * variance**0.5 if spread else 0.0
    value = float(each.mean())
    return Difference(value, (value - half, value + half), len(each))
