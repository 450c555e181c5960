"""Paired differences over questions and seeds: width, level, and what is said of them."""

import numpy as np
import pytest

from crome.intervals import clustered_mean, t_quantile
from crome.studies.differences import Difference, difference


def test_one_seed_is_the_interval_over_questions():
    first, second = [[1, 0, 1, 1, 0, 1]], [[0, 0, 1, 0, 1, 1]]
    found = difference(first, second, pictures=range(6))
    alone = clustered_mean(np.subtract(first[0], second[0]))
    assert found.value == pytest.approx(alone.value)
    assert found.interval == pytest.approx(alone.t_interval())
    assert found.seeds == 1


def test_two_sources_of_error_add_up():
    """By hand: squared errors are added, and freedom is Welch and Satterthwaite's."""
    each = np.array([[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 1.0]])
    found = difference(each, np.zeros_like(each), pictures=range(4))
    over_questions = each.mean(0).var(ddof=1) / 4
    over_seeds = each.mean(1).var(ddof=1) / 3
    variance = over_questions + over_seeds
    freedom = variance**2 / (over_questions**2 / 3 + over_seeds**2 / 2)
    half = t_quantile(freedom) * variance**0.5
    assert found.interval == pytest.approx((each.mean() - half, each.mean() + half))


def test_equal_variants_are_rarely_told_apart():
    """Under the null, with an error for each seed, picture and question: 5 % at most, nearly."""
    draw, wrong, times = np.random.default_rng(0), 0, 600
    pictures = np.repeat(np.arange(40), 5)
    for _ in range(times):
        each = (
            draw.normal(0, 0.03, (4, 1))
            + draw.normal(0, 0.2, 40)[pictures]
            + draw.normal(0, 0.5, (4, 200))
        )
        low, high = difference(each, np.zeros_like(each), list(pictures)).interval
        wrong += not low <= 0 <= high
    assert 0.01 < wrong / times < 0.075


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.1, 0.3), "holds here"),
        ((-0.3, -0.1), "does not hold here"),
        ((-0.1, 0.1), "cannot be decided"),
        ((0.0, 0.0), "cannot be decided"),
    ],
)
def test_verdicts(interval, verdict):
    assert Difference(sum(interval) / 2, interval, 3).verdict == verdict


def test_equal_answers_have_no_width():
    assert difference([[1, 0]], [[1, 0]], "ab").interval == (0.0, 0.0)
