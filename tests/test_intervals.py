import numpy as np
import pytest
from scipy import stats

from crome.intervals import (
    bootstrap,
    clustered_mean,
    mean_interval,
    over_runs,
    paired_difference,
    sum_interval,
    wilson,
)


def test_wilson_solves_its_equation() -> None:
    # The ends are the shares whose distance from 7/20 is 1.96 of their own standard errors.
    for end in wilson(7, 20):
        assert abs(7 / 20 - end) == pytest.approx(1.959964 * np.sqrt(end * (1 - end) / 20))
    exact = stats.binomtest(7, 20).proportion_ci(0.95, "wilson")
    assert wilson(7, 20) == pytest.approx((exact.low, exact.high))


@pytest.mark.parametrize(("correct", "n"), [(0, 1), (1, 1), (0, 50), (50, 50)])
def test_wilson_stays_a_share(correct: int, n: int) -> None:
    low, high = wilson(correct, n)
    assert 0 <= low < high <= 1


def test_wilson_covers_about_95_percent() -> None:
    right = np.random.default_rng(1).binomial(100, 0.3, size=2000)
    covered = np.mean([low <= 0.3 <= high for low, high in (wilson(k, 100) for k in right)])
    # Exact coverage at n = 100, p = 0.3 is 0.950 (discrete); 2,000 draws have a spread of 0.005.
    assert 0.93 < covered < 0.97


def test_the_error_of_a_clustered_mean_is_that_of_its_clusters() -> None:
    values = np.random.default_rng(3).normal(size=(50, 4))
    pictures = np.repeat(np.arange(50), 4)
    found = clustered_mean(values.ravel(), pictures)
    assert found.value == pytest.approx(values.mean())
    assert found.error == pytest.approx(values.mean(1).std(ddof=1) / np.sqrt(50))
    assert (found.n, found.clusters, found.freedom) == (200, 50, pytest.approx(49))
    alone = clustered_mean(values[:, 0])
    assert alone.error == pytest.approx(stats.sem(values[:, 0]))


def test_the_freedom_of_clusters_of_several_sizes_is_bell_and_mccaffreys() -> None:
    sizes = np.array([1.0, 2, 5, 9])
    pictures = np.repeat(np.arange(4), sizes.astype(int))
    values = np.random.default_rng(7).normal(size=17)
    residual = np.eye(4) - np.outer(sizes, np.ones(4)) / 17
    weights = residual.T @ np.diag(1 / (1 - sizes / 17)) @ residual @ np.diag(sizes)
    expected = np.trace(weights) ** 2 / np.trace(weights @ weights)
    assert clustered_mean(values, pictures).freedom == pytest.approx(expected)


def test_rows_that_say_the_same_count_once() -> None:
    once = (np.random.default_rng(4).random(100) < 0.3).astype(float)
    low, high = mean_interval(np.repeat(once, 5), np.repeat(np.arange(100), 5))
    expected = wilson(once.sum(), 100)
    # The t quantile and G / (G − 1) make it a little wider than Wilson's of the 100 pictures.
    assert high - low == pytest.approx(expected[1] - expected[0], rel=0.03)
    assert mean_interval(once) == wilson(once.sum(), 100)


def test_clustered_intervals_cover_about_95_percent() -> None:
    generator = np.random.default_rng(5)
    covered = []
    for _ in range(400):
        chance = generator.beta(2, 2, size=40)  # of each picture; their mean is 0.5
        right = (generator.random((40, 5)) < chance[:, None]).astype(float)
        low, high = mean_interval(right.ravel(), np.repeat(np.arange(40), 5))
        covered.append(low <= 0.5 <= high)
    assert 0.92 < np.mean(covered) < 0.98  # 400 draws have a spread of 0.011


@pytest.mark.parametrize(
    "values", [[1.0], [1.0, 1.0, 1.0], [0.0], [0.5, 0.5], [1.0, 0.0, 1.0, 0.0]]
)
def test_no_interval_has_zero_width(values: list[float]) -> None:
    for clusters in (None, [k // 2 for k in range(len(values))]):
        low, high = mean_interval(values, clusters)
        assert 0 <= low < high <= 1


def test_bounds_scale_the_interval() -> None:
    values = [0.0, 0.3, 1.0, 0.8]
    low, high = mean_interval(values)
    scaled = mean_interval([100 * x for x in values], bounds=(0, 100))
    assert scaled == pytest.approx((100 * low, 100 * high))


def test_a_sum_of_independent_parts_has_the_sum_of_their_variances() -> None:
    parts = [list(np.random.default_rng(k).uniform(0, 200, size=60)) for k in range(10)]
    low, high = sum_interval(parts, (0, 200))
    error = np.sqrt(sum(stats.sem(part) ** 2 for part in parts))
    assert (low + high) / 2 == pytest.approx(sum(np.mean(part) for part in parts))
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.02)
    alike = sum_interval([[200.0] * 20], (0, 200))
    assert alike[0] < 190
    assert alike[1] == 200


def test_bootstrap_agrees_with_the_t_interval() -> None:
    values = np.random.default_rng(2).normal(3, 2, size=400)
    low, high = bootstrap(values)
    half = 1.96 * values.std() / 20
    # 2,000 resamples place a 2.5 % point to about 6 % of the half width.
    assert low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.15 * half)
    pictures = np.repeat(np.arange(100), 4)
    clustered = bootstrap(np.repeat(values[:100], 4), clusters=pictures)
    assert clustered == pytest.approx(bootstrap(values[:100]))


def test_bootstrap_is_repeatable_and_takes_columns() -> None:
    table = np.arange(20.0).reshape(10, 2)
    low, high = bootstrap(table, lambda means: means[..., 1] - means[..., 0])
    assert low == pytest.approx(1)
    assert high == pytest.approx(1)
    assert bootstrap(table[:, 0]) == bootstrap(table[:, 0])


def test_paired_difference_is_the_t_test() -> None:
    differences = np.random.default_rng(6).normal(0.2, 1, size=30)
    p_value, interval = paired_difference(differences)
    expected = stats.ttest_1samp(differences, 0)
    assert p_value == pytest.approx(expected.pvalue)
    assert interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    pictures = np.repeat(np.arange(10), 3)
    clustered, _ = paired_difference(differences, pictures)
    means = differences.reshape(10, 3).mean(1)
    assert clustered == pytest.approx(stats.ttest_1samp(means, 0).pvalue)


def test_differences_without_spread_keep_a_width_and_a_level() -> None:
    assert paired_difference([0.0] * 8)[0] == 1
    assert paired_difference([1.0] * 5)[0] == pytest.approx(2 / 32)
    assert paired_difference([1.0])[0] == 1
    for differences in ([0.0], [0.0] * 8, [1.0] * 5, [-0.5] * 3):
        p_value, (low, high) = paired_difference(differences)
        assert -1 <= low < high <= 1
        assert (low <= 0 <= high) == (p_value >= 0.05)


def test_over_runs_is_the_t_interval() -> None:
    expected = stats.ttest_1samp([0.5, 0.6, 0.8], 0).confidence_interval(0.95)
    assert over_runs([0.5, 0.6, 0.8]) == pytest.approx((expected.low, expected.high))
    assert all(np.isnan(end) for end in over_runs([0.5]))
