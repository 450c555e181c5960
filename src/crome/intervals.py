"""95 % intervals and the paired test: what the choice of questions leaves open.

Answers to questions on one picture are correlated, so pictures, not questions, are the independent
units wherever several questions share one. Errors come from the variation between such clusters.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

Z = 1.959963984540054  # two-sided 95 % point of the normal distribution
LEVEL = 0.05
RESAMPLES = 2000  # percentiles at 2.5 % then rest on 50 resamples a side
SEED = 0  # fixed: the same predictions always print the same interval
Interval = tuple[float, float]


@dataclass(frozen=True)
class ClusteredMean:
    """A mean over rows, and its error from the variation between clusters of rows.

    Attributes:
        value: The mean over all rows.
        error: Its standard error; NaN with a single cluster, 0 where all clusters agree.
        n: How many rows.
        clusters: How many clusters.
        freedom: Degrees of freedom of the error: one less than there are clusters of one size, and
            fewer where a few large clusters make up most of the rows.
    """

    value: float
    error: float
    n: int
    clusters: int
    freedom: float

    @property
    def settled(self) -> bool:
        """Whether clusters differ by more than the rounding of floats, so that the error counts."""
        return self.error > 1e-12 * max(1.0, abs(self.value))

    def t_interval(self) -> Interval:
        """Mean ± t · error."""
        half = t_quantile(self.freedom) * self.error
        return self.value - half, self.value + half


def clustered_mean(
    values: Sequence[float] | np.ndarray, clusters: Sequence[Hashable] | None = None
) -> ClusteredMean:
    """The mean of rows whose clusters are independent of each other.

    The error is the cluster-robust CR2 (Bell and McCaffrey 2002) with its degrees of freedom. It is
    unbiased when the variance of a cluster's sum is proportional to its number of rows. For rows
    that all stand alone it is the usual standard error.

    Args:
        values: One number a row, shape (n,).
        clusters: What each row belongs to, such as its picture; every row alone when None.
    """
    rows = np.asarray(values, dtype=float)
    n, value = len(rows), float(np.mean(rows))
    sums, sizes = cluster_sums(rows, clusters)
    count = len(sums)
    if count < 2:
        return ClusteredMean(value, float("nan"), n, count, 0.0)
    rest = 1 - sizes / n  # the share of the rows in other clusters
    variance = float(((sums - value * sizes) ** 2 / rest).sum()) / n**2
    joint = sizes**2 / n / rest
    freedom = n**2 / float((sizes**2).sum() + joint.sum() ** 2 - (joint**2).sum())
    return ClusteredMean(value, variance**0.5, n, count, freedom)


def cluster_sums(
    rows: np.ndarray, clusters: Sequence[Hashable] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Sum and size of each cluster, shapes (G,) or (G, k) and (G,), for rows (n,) or (n, k)."""
    if clusters is None:
        return rows, np.ones(len(rows))
    places: dict[Hashable, int] = {}
    index = np.array([places.setdefault(cluster, len(places)) for cluster in clusters])
    sums = np.zeros((len(places), *rows.shape[1:]))
    np.add.at(sums, index, rows)
    return sums, np.bincount(index).astype(float)


def mean_interval(
    values: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable] | None = None,
    bounds: Interval = (0.0, 1.0),
) -> Interval:
    """The 95 % interval of a mean of scores that lie within bounds.

    Scores that are all or nothing get Wilson's interval, for the number of independent rows with
    the same error; graded scores get the t interval over clusters. The interval never has zero
    width: scores that are all alike are treated as all or nothing.

    Args:
        values: One score a row, shape (n,).
        clusters: What each row belongs to; every row alone when None.
        bounds: Least and largest score there is.
    """
    low, high = bounds
    shares = (np.asarray(values, dtype=float) - low) / (high - low)
    found = clustered_mean(shares, clusters)
    if set(np.unique(shares)) <= {0.0, 1.0} or not found.settled:
        ends = _clustered_wilson(found)
    else:
        ends = tuple(np.clip(found.t_interval(), 0.0, 1.0))
    return low + float(ends[0]) * (high - low), low + float(ends[1]) * (high - low)


def _clustered_wilson(found: ClusteredMean) -> Interval:
    """Wilson's interval of a share whose rows come in clusters.

    The effective number of rows is that of independent rows with the same standard error. It is at
    most the actual number, and it is the number of clusters where all clusters agree.
    """
    if found.clusters == found.n:
        return wilson(found.value * found.n, found.n)
    alone = found.value * (1 - found.value)
    worth = float(min(found.n, alone / found.error**2)) if found.settled else found.clusters
    return wilson(found.value * worth, worth, t_quantile(found.freedom))


def wilson(correct: float, n: float, z: float = Z) -> Interval:
    """The Wilson score interval of a share.

    Args:
        correct: Number of right answers; partial credit makes the interval too wide, never narrow.
        n: Number of answers.
        z: Two-sided 95 % point of the distribution that the share is judged by.

    Returns:
        Lower and upper end, both within [0, 1].
    """
    share, spread = correct / n, z * z / n
    if not np.isfinite(spread):  # a single cluster says nothing about others
        return 0.0, 1.0
    centre = (share + spread / 2) / (1 + spread)
    half = z * np.sqrt(max(0.0, share * (1 - share)) / n + spread / (4 * n)) / (1 + spread)
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def sum_interval(parts: Sequence[Sequence[float]], bounds: Interval) -> Interval:
    """The 95 % interval of a sum of means over independent sets of units, such as subtasks.

    The variances of the means add up; the degrees of freedom are Welch's and Satterthwaite's. A
    part whose units are all alike adds the variance of its Wilson interval, not zero.

    Args:
        parts: The units' scores of each part.
        bounds: Least and largest score of a unit.
    """
    low, high = bounds
    total, variance, spread = 0.0, 0.0, 0.0
    for part in parts:
        found = clustered_mean(part)
        error = found.error
        if not found.settled:
            ends = mean_interval(part, bounds=bounds)
            error = (ends[1] - ends[0]) / (2 * Z)
        total, variance = total + found.value, variance + error**2
        spread += error**4 / max(1, found.n - 1)
    half = t_quantile(variance**2 / spread) * variance**0.5
    return max(low * len(parts), total - half), min(high * len(parts), total + half)


def bootstrap(
    values: Sequence[float] | np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray] = lambda means: means[..., 0],
    clusters: Sequence[Hashable] | None = None,
) -> Interval:
    """The 95 % percentile bootstrap interval of a function of means; clusters are resampled.

    Args:
        values: One row per unit, shape (n,) or (n, k).
        statistic: From resampled means, shape (…, k), to the number, shape (…).
        clusters: What each row belongs to; every row alone when None.
    """
    from scipy import stats  # takes longer to import than all else here

    rows = np.asarray(values, dtype=float).reshape(len(values), -1)
    sums, sizes = cluster_sums(rows, clusters)
    table = np.column_stack([sums, sizes])
    if len(table) < 2:
        return float("nan"), float("nan")

    def of_resample(*columns: np.ndarray, axis: int = -1) -> np.ndarray:
        means = np.stack([column.mean(axis) for column in columns], axis=-1)
        return statistic(means[..., :-1] / means[..., -1:])

    found = stats.bootstrap(
        tuple(table.T), of_resample, paired=True, vectorized=True, method="percentile",
        n_resamples=RESAMPLES, batch=200, rng=SEED,
    )  # fmt: skip
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def paired_difference(
    differences: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable] | None = None,
    largest: float = 1.0,
) -> tuple[float, Interval]:
    """Two-sided p-value and 95 % interval of a mean paired difference.

    The t test over clusters, with at most 6 % of false positives at a level of 5 %, for graded and
    for all-or-nothing scores (`docs/results/compare-calibration.md`). Where all clusters differ by
    the same the t test is not defined. The p-value is then that of the sign test, and the interval
    covers by how much clusters outside the sample could differ.

    Args:
        differences: B − A of each row, shape (n,).
        clusters: What each row belongs to; every row alone when None.
        largest: By how much two scores can differ.
    """
    from scipy.stats import t

    found = clustered_mean(differences, clusters)
    if found.settled:
        p_value = 2 * float(t.sf(abs(found.value) / found.error, found.freedom))
        return p_value, found.t_interval()
    # With G clusters alike, a share of up to 1 − 0.025^(1 / G) of all clusters may be otherwise.
    half = (largest + abs(found.value)) * (1 - (LEVEL / 2) ** (1 / found.clusters))
    ends = (max(-largest, found.value - half), min(largest, found.value + half))
    same = abs(found.value) < 1e-12 * max(1.0, largest)
    return 1.0 if same else min(1.0, 2 * 0.5**found.clusters), ends


def over_runs(values: Sequence[float]) -> Interval:
    """The 95 % t interval of the mean of a few independent runs; NaN for a single one."""
    if len(values) < 2:
        return float("nan"), float("nan")
    return clustered_mean(values).t_interval()


def t_quantile(freedom: float) -> float:
    """The two-sided 95 % point of Student's t distribution; infinite without freedom."""
    from scipy.stats import t

    return float(t.ppf(1 - LEVEL / 2, freedom)) if freedom > 0 else float("inf")
