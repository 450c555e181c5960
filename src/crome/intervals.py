"""95 % intervals: Wilson for shares of independent answers, bootstrap for everything else."""

from collections.abc import Callable, Sequence

import numpy as np

Z = 1.959963984540054  # two-sided 95 % point of the normal distribution
RESAMPLES = 2000  # percentiles at 2.5 % then rest on 50 resamples a side
SEED = 0  # fixed: the same predictions always print the same interval


def wilson(correct: float, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share.

    Args:
        correct: Number of right answers; partial credit makes the interval too wide, never narrow.
        n: Number of answers.

    Returns:
        Lower and upper end, both within [0, 1].
    """
    share, spread = correct / n, Z * Z / n
    centre = (share + spread / 2) / (1 + spread)
    half = Z * np.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def resampled_means(values: Sequence[float] | np.ndarray, seed: int = SEED) -> np.ndarray:
    """Means of bootstrap resamples.

    Rows that are equal are drawn together, so a million 0/1 scores cost no more than two rows.

    Args:
        values: One row per independent unit (a question, an image, a group of questions), shape
            `(n,)` or `(n, k)`.
        seed: Of the resampling.

    Returns:
        Shape `(RESAMPLES,)` or `(RESAMPLES, k)`.
    """
    rows, times = np.unique(np.asarray(values, dtype=float), axis=0, return_counts=True)
    n = int(times.sum())
    draws = np.random.default_rng(seed).multinomial(n, times / n, size=RESAMPLES)
    return draws @ rows / n


def percentile_interval(replicates: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of bootstrap replicates, shape `(R,)`."""
    low, high = np.percentile(replicates, [2.5, 97.5])
    return float(low), float(high)


def bootstrap(
    values: Sequence[float] | np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray] = lambda means: means,
) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of a function of means.

    Args:
        values: One row per independent unit, shape `(n,)` or `(n, k)`.
        statistic: From the resampled means, shape `(R,)` or `(R, k)`, to the number, shape `(R,)`.
    """
    return percentile_interval(statistic(resampled_means(values)))


def over_runs(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % t interval of the mean of a few independent runs; NaN for a single one."""
    from scipy.stats import t  # takes longer to import than all else here

    n = len(values)
    if n < 2:
        return float("nan"), float("nan")
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / n**0.5
    half = float(t.ppf(0.975, n - 1)) * error
    return mean - half, mean + half
