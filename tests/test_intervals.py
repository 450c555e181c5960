import numpy as np
import pytest

from crome.intervals import bootstrap, resampled_means, wilson


def test_wilson_solves_its_equation() -> None:
    # The ends are the shares whose distance from 7/20 is 1.96 of their own standard errors.
    for end in wilson(7, 20):
        assert abs(7 / 20 - end) == pytest.approx(1.959964 * np.sqrt(end * (1 - end) / 20))


@pytest.mark.parametrize(("correct", "n"), [(0, 1), (1, 1), (0, 50), (50, 50)])
def test_wilson_stays_a_share(correct: int, n: int) -> None:
    low, high = wilson(correct, n)
    assert 0 <= low < high <= 1


def test_wilson_covers_about_95_percent() -> None:
    right = np.random.default_rng(1).binomial(100, 0.3, size=2000)
    covered = np.mean([low <= 0.3 <= high for low, high in (wilson(k, 100) for k in right)])
    # Exact coverage at n = 100, p = 0.3 is 0.950 (discrete); 2,000 draws have a spread of 0.005.
    assert 0.93 < covered < 0.97


def test_bootstrap_agrees_with_the_normal_interval() -> None:
    values = np.random.default_rng(2).normal(3, 2, size=400)
    low, high = bootstrap(values)
    half = 1.96 * values.std() / 20
    # 2,000 resamples place a 2.5 % point to about 6 % of the half width.
    assert low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_bootstrap_is_repeatable_and_takes_columns() -> None:
    table = np.arange(20.0).reshape(10, 2)
    assert (resampled_means(table) == resampled_means(table)).all()
    low, high = bootstrap(table, lambda means: means[:, 1] - means[:, 0])
    assert low == pytest.approx(1)
    assert high == pytest.approx(1)
