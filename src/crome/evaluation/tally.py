"""Scores of records → metrics: means with intervals in which pictures are the independent units."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from math import fsum

from crome.evaluation.task import Answer, Answers, Metric, Record, Scores, Tally, grouped
from crome.intervals import mean_interval

Part = str | Callable[[Record], str | None]
"""A property to group records by, or the field that holds it; None leaves a record out."""
TOPS = {"fraction": 1.0, "percent": 100.0}


def averaged(
    score: Callable[[Record, Answer], float],
    *parts: Part,
    unit: str = "fraction",
    warn: Callable[[Sequence[Record]], list[str]] = lambda records: [],
) -> Tally:
    """The tally that averages a score of single answers, over all records and over their parts.

    Args:
        score: From a record and its answer to 0 to 1; records without an answer get 0.
        parts: What to average over beside all records.
        unit: Unit of the metrics.
        warn: What the records leave to be said about the numbers.
    """

    def tally(name: str, records: Sequence[Record], answers: Answers) -> Scores:
        given = {r["id"]: answers.get(r["id"]) for r in records}
        rows = {
            r["id"]: 0.0 if given[r["id"]] is None else float(score(r, given[r["id"]]))
            for r in records
        }
        metrics = mean_metrics(name, records, rows, parts, unit)
        return Scores(metrics, rows, correct(rows), warnings=warn(records))

    return tally


def accuracy(*parts: Part) -> Tally:
    """The tally of answers that must equal a record's "answer"."""
    return averaged(lambda record, answer: float(answer == record["answer"]), *parts)


def correct(rows: Mapping[str, float]) -> dict[str, int]:
    """How many rows are right, as a count, where each is right or wrong."""
    return {"correct": round(sum(rows.values()))} if {*rows.values()} <= {0.0, 1.0} else {}


def mean_metrics(
    name: str,
    records: Sequence[Record],
    rows: Mapping[str, float],
    parts: Sequence[Part] = (),
    unit: str = "fraction",
) -> dict[str, Metric]:
    """The mean as `name`, and of each part of the records as `name/part`.

    Args:
        name: Name of the metric.
        records: At least one.
        rows: Score by id, from 0 to 1.
        parts: Properties to group by.
        unit: See `Metric`.
    """
    metrics = {name: mean_metric(records, rows, unit)}
    for part in parts:
        key = part if callable(part) else lambda record, field=part: record.get(field)
        for group, members in grouped(records, key).items():
            metrics[f"{name}/{group}"] = mean_metric(members, rows, unit)
    return metrics


def mean_metric(
    records: Sequence[Record],
    rows: Mapping[str, float],
    unit: str = "fraction",
    maximum: float | None = None,
) -> Metric:
    """The mean score of records with its interval.

    Args:
        records: At least one.
        rows: Score by id, from 0 to 1.
        unit: See `Metric`.
        maximum: The most points there are to have, for a number in points.
    """
    top = maximum or TOPS[unit]
    values = [rows[record["id"]] for record in records]
    low, high = mean_interval(values, [cluster_of(record) for record in records])
    # Summed exactly: grades are tenths, and a mean of 24.25 must round as the official 24.25 does.
    value = top * fsum(values) / len(values)
    return Metric(value, len(values), unit, (top * low, top * high), maximum)


def cluster_of(record: Record) -> str:
    """What a record shares with others that are not independent of it: usually its pictures."""
    if "cluster" in record:
        return str(record["cluster"])
    images = record.get("images") or ()
    if not images:
        return f"record {record['id']}"
    return "\n".join(
        image if isinstance(image, str) else hashlib.sha256(image).hexdigest() for image in images
    )
