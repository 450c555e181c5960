"""What the yes/no benchmarks share: constant answers, a tolerant reading, precision and recall."""

from collections.abc import Sequence

import numpy as np

from crome.evaluation.predictions import Prediction
from crome.evaluation.replies import tolerant_yes_no
from crome.evaluation.tally import cluster_of
from crome.evaluation.task import Answer, Answers, Metric, Record
from crome.intervals import bootstrap


def constant_yes_no(records: Sequence[Record]) -> dict[str, dict[str, Answer]]:
    """The two constant answers to yes/no questions."""
    return {f"always {word}": {r["id"]: word for r in records} for word in ("yes", "no")}


def tolerant(record: Record, prediction: Prediction) -> str | None:
    """Yes or no stated anywhere in the response; no benchmark's rule."""
    return tolerant_yes_no(prediction.response)


def yes_metrics(name: str, records: Sequence[Record], answers: Answers) -> dict[str, Metric]:
    """F1, precision and recall of "yes", and how often it is the answer.

    Args:
        name: In front of the metrics' names.
        records: Records with "yes" or "no" as their answer.
        answers: By id; absent ones are no "yes".
    """
    given = np.array([answers.get(r["id"]) == "yes" for r in records])
    gold = np.array([r["answer"] == "yes" for r in records])
    table = np.column_stack([given & gold, given & ~gold, ~given & gold]).astype(float)

    def f1(means: np.ndarray) -> np.ndarray:
        hit, false, missed = means[..., 0], means[..., 1], means[..., 2]
        return 2 * hit / np.maximum(2 * hit + false + missed, 1e-12)

    n, (hit, false, missed) = len(records), table.mean(0)
    interval = bootstrap(table, f1, [cluster_of(record) for record in records])
    known = interval if np.isfinite(interval).all() else None
    return {
        f"{name}/f1": Metric(float(f1(table.mean(0))), n, interval=known),
        f"{name}/precision": Metric(float(hit / max(hit + false, 1e-12)), n),
        f"{name}/recall": Metric(float(hit / max(hit + missed, 1e-12)), n),
        f"{name}/yes-ratio": Metric(float(given.mean()), n),
    }
