"""Two sets of row scores on the same rows: by how much they differ, and whether beyond chance."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from crome.errors import InputError
from crome.evaluation.predictions import named
from crome.intervals import LEVEL, Interval, paired_difference


@dataclass(frozen=True)
class Comparison:
    """A paired comparison of B against A.

    Attributes:
        n: Rows in common.
        pictures: Independent units among them: rows on one picture count together.
        a: Mean score of A.
        b: Mean score of B.
        difference: b − a.
        interval: 95 % interval of the difference.
        test: The name of the test.
        p_value: Two-sided.
        gained: Rows where B scores higher.
        lost: Rows where B scores lower.
    """

    n: int
    pictures: int
    a: float
    b: float
    difference: float
    interval: Interval
    test: str
    p_value: float
    gained: tuple[str, ...]
    lost: tuple[str, ...]

    @property
    def differ(self) -> bool:
        """Whether the runs differ beyond chance, at the level of 5 %."""
        return self.p_value < LEVEL


def paired(
    a: Mapping[str, float], b: Mapping[str, float], pictures: Mapping[str, str] | None = None
) -> Comparison:
    """Compares two sets of row scores by the paired t test over pictures.

    Args:
        a: Scores of the first run by id.
        b: Scores of the second run.
        pictures: What a row shares with others that are not independent of it, by id; a row
            without an entry stands alone.

    Raises:
        InputError: They are not of the same rows, or a score is no finite number.
    """
    only_a, only_b = [i for i in a if i not in b], [i for i in b if i not in a]
    if only_a or only_b or not a:
        raise InputError(
            f"the runs are not on the same rows: {len(only_a)} only in A ({named(only_a)}), "
            f"{len(only_b)} only in B ({named(only_b)}), {len(set(a) & set(b))} in both."
        )
    bad = [i for i in a if not math.isfinite(b[i] - a[i])]
    if bad:
        raise InputError(f"{len(bad)} rows have a score that is no number ({named(bad)}).")
    difference = np.array([b[i] - a[i] for i in a])
    units = [("picture", pictures[i]) if pictures and i in pictures else ("row", i) for i in a]
    scores = np.array([*a.values(), *b.values()])
    within_one = bool((scores >= 0).all() and (scores <= 1).all())
    largest = 1.0 if within_one else float(np.ptp(scores)) or 1.0
    p_value, interval = paired_difference(difference, units, largest)
    count = len(set(units))
    return Comparison(
        n=len(a),
        pictures=count,
        a=float(np.mean(list(a.values()))),
        b=float(np.mean([b[i] for i in a])),
        difference=float(difference.mean()),
        interval=interval,
        test="paired t test" + (f" over {count} pictures" if count < len(a) else ""),
        p_value=p_value,
        gained=tuple(i for i, d in zip(a, difference, strict=True) if d > 0),
        lost=tuple(i for i, d in zip(a, difference, strict=True) if d < 0),
    )
