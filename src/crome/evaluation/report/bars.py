"""Scores and records as the bars and the examples of a page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from crome.evaluation.predictions import Prediction
from crome.evaluation.report.gallery import Example
from crome.evaluation.report.page import Score
from crome.evaluation.task import Metric, Record, Scores, gold_text
from crome.rows import Row

MODEL = "model"
FEWEST = 5  # units of a part that gets bars of its own
KINDS = ("category", "subject", "subtask", "type", "kind")


def bars(scored: Mapping[str, Scores], constants: Mapping[str, Mapping[str, float]]) -> list[Score]:
    """One bar per metric and run, constants first and the model last."""
    if not scored:
        return []
    made = []
    for key in charted(scored[MODEL].metrics):
        metric = scored[MODEL].metrics[key]
        for name, values in constants.items():
            if key in values:
                made.append(bar(name, key, Metric(values[key], metric.n, metric.unit), metric))
        for name, scores in reversed(list(scored.items())):
            if key in scores.metrics:
                made.append(bar(name, key, scores.metrics[key], metric))
    return made


def charted(metrics: Mapping[str, Metric]) -> list[str]:
    """The headline, and the parts that say something it does not; `scores.json` has them all."""
    first, *parts = metrics
    return [first, *(p for p in parts if metrics[p].n >= FEWEST and metrics[p] != metrics[first])]


def bar(run: str, group: str, metric: Metric, like: Metric) -> Score:
    """A metric on the scale 0 to 1, with its own number as the label."""
    top = {"fraction": 1.0, "percent": 100.0}.get(metric.unit) or like.maximum or 1.0
    low, high = metric.interval or (float("nan"), float("nan"))
    labels = {"percent": f"{metric.value:.1f} %", "points": f"{metric.value:.1f} of {top:.0f}"}
    value, low, high = (
        min(1.0, max(0.0, x / top)) if x == x else x for x in (metric.value, low, high)
    )
    return Score(run, group, metric.n, value, low, high, labels.get(metric.unit))


def examples(
    records: Sequence[Record],
    rows: Sequence[Row],
    runs: Mapping[str, Mapping[str, Prediction]],
    scored: Mapping[str, Scores],
    picture: Callable[[Row], Any] | None = None,
) -> list[Example]:
    """Records that were asked with their answers, the model's first, for the gallery."""
    by_id = {row.id: row for row in rows}
    judged = {MODEL: scored[MODEL]} if MODEL in scored else {}
    answered = [record for record in records if record["id"] in by_id]
    return [
        replace(
            example(record, dict(reversed(list(runs.items()))), judged, scored),
            gold=(row := by_id[record["id"]]).answer,
            images=row.images,
            prompt=runs[MODEL][row.id].prompt,
            drawn=partial(picture, row) if picture and row.images else None,
        )
        for record in answered
    ]


def example(
    record: Record,
    runs: Mapping[str, Mapping[str, Prediction]],
    judged: Mapping[str, Scores],
    scored: Mapping[str, Scores],
) -> Example:
    """One record with what every run answered.

    Args:
        record: A record of the benchmark.
        runs: Predictions by name of the run, in the order of the page.
        judged: Scores of the runs whose answers are marked as right or wrong.
        scored: Scores of the runs, with the replies of a judge.
    """
    identity = record["id"]
    outcomes = {name: outcome(scores, record) for name, scores in judged.items()}
    return Example(
        id=identity,
        question=record["question"],
        gold=gold_text(record),
        answers={name: run[identity].response for name, run in runs.items() if identity in run},
        correct={name: right for name, right in outcomes.items() if right is not None},
        kind=next((str(record[k]) for k in KINDS if record.get(k)), None),
        replies={name: reply for name, s in scored.items() if (reply := s.replies.get(identity))},
    )


def outcome(scores: Scores, record: Record) -> bool | None:
    """Whether a record, or the group it belongs to, is right; None where grades are no shares."""
    value = scores.rows.get(record["id"], scores.rows.get(record.get("group", "")))
    return None if value is None or not 0 <= value <= 1 else value >= 0.5
