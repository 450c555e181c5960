"""Scoring: predictions and records to metrics with baselines, and the report that is printed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from crome.errors import InputError
from crome.evaluation.predictions import Prediction
from crome.evaluation.replies import without_reasoning
from crome.evaluation.sources import fingerprint, without_surrogates
from crome.evaluation.tally import cluster_of
from crome.evaluation.task import Answers, Metric, Record, Scores, Task, hidden
from crome.storage import write_text

MISSING = "missing_verdicts"
JUDGED = "judge"  # name of the protocol that needs one
MUCH_UNREAD = 1 / 3  # of the responses, from which a reader of the number has to know


def score_answers(
    task: Task,
    records: Sequence[Record],
    predictions: Mapping[str, Prediction],
    protocol: str | None = None,
) -> tuple[Scores, dict[str, dict[str, float]]]:
    """Scores by a protocol that needs no judge.

    Args:
        task: The benchmark.
        records: Its records.
        predictions: By id; a record without one is wrong.
        protocol: Its name, the task's first when None.

    Returns:
        The scores, and the values that constant answers reach by the same rule.

    Raises:
        InputError: The task has no such protocol, or right answers are hidden.
    """
    protocol = protocol or next(iter(task.protocols))
    if protocol not in task.protocols:
        names = [*task.protocols, *([JUDGED] if task.judged else [])]
        raise InputError(
            f"{task.name} has no protocol {protocol!r}: choose from {', '.join(names)}."
        )
    if without := hidden(records):
        raise InputError(
            f"{len(without)} of {len(records)} records have no answer, such as {without[0]}: "
            f"{task.name}'s test answers are hidden. Write a submission with --export instead."
        )
    chosen = task.protocols[protocol]
    name = f"{task.name}/{protocol}{label_of_settings(predictions, task.style)}"
    answered = {r["id"]: predictions[r["id"]] for r in records if r["id"] in predictions}
    spoken = {i: replace(p, response=spoken_reply(p)) for i, p in answered.items()}
    answers = {r["id"]: chosen.parse(r, spoken[r["id"]]) for r in records if r["id"] in spoken}
    scores = chosen.tally(name, records, answers)
    scores.counts["unreadable"] = sum(answer is None for answer in answers.values())
    thought = sum(len(spoken[i].response) != len(p.response) for i, p in answered.items())
    if thought:
        scores.counts["reasoning_removed"] = thought
    scores.warnings.extend(unread(task, protocol, answers, spoken))
    baselines = {
        baseline: {key: m.value for key, m in chosen.tally(name, records, constant).metrics.items()}
        for baseline, constant in task.baselines(records).items()
    }
    return scores, baselines


def spoken_reply(prediction: Prediction) -> str:
    """A response as scorers read it: without reasoning, and as text that can be encoded."""
    return str(without_surrogates(without_reasoning(prediction.response)))


def unread(
    task: Task, protocol: str, answers: Answers, predictions: Mapping[str, Prediction]
) -> list[str]:
    """A warning where a protocol could not read many of the responses."""
    lost = [identity for identity, answer in answers.items() if answer is None]
    if len(lost) < MUCH_UNREAD * len(answers) or not lost:
        return []
    example = predictions[lost[0]].response[:60]
    others = [name for name in task.protocols if "tolerant" in name and name != protocol]
    remedy = f"; --protocol {others[0]} reads more" if others else ""
    return [
        f"{len(lost)} of {len(answers)} responses could not be read by {protocol} and count as "
        f"wrong, such as {example!r}{remedy}"
    ]


def label_of_settings(predictions: Mapping[str, Prediction], style: str = "llava") -> str:
    """A label for unusual settings of a predictions file, which becomes part of its metrics' names.

    Greedy answers to prompts of the task's style, losses behind `rank` prompts, and files of other
    programs, which name no settings, are usual. Baselines have a run of their own.

    Args:
        predictions: By id.
        style: The task's usual one.

    Raises:
        InputError: The predictions were made in different ways.
    """
    labels = {_settings_label(prediction.generation, style) for prediction in predictions.values()}
    if len(labels) > 1:
        raise InputError(
            "these predictions were made in different ways: "
            f"{', '.join(label or 'as usual' for label in sorted(labels))}."
        )
    return labels.pop() if labels else ""


def _settings_label(generation: Mapping[str, Any], usual: str) -> str:
    if generation.get("ranked"):
        usual = "rank"
    style, beams = generation.get("style", usual), generation.get("num_beams", 1)
    named = [style] * (style != usual) + [f"{beams} beams"] * (beams != 1)
    named += ["sampled"] * bool(generation.get("do_sample"))
    return f"[{', '.join(named)}]" if named else ""


def as_report(
    task: Task,
    records: Sequence[Record],
    scores: Scores,
    baselines: Mapping[str, Mapping[str, float]],
    bad_ids: Mapping[str, int],
) -> dict[str, Any]:
    """Everything `crome score` prints, as plain values."""
    treated = {
        "missing": "without a verdict" if MISSING in scores.counts else "counted as wrong",
        "unknown": "left out",
        "duplicate": "the last holds",
    }
    warnings = [
        f"{n} prediction {'id was' if n == 1 else 'ids were'} {kind}: {treated[kind]}"
        for kind, n in bad_ids.items()
    ]
    if task.releases and len(records) not in task.releases:
        known = ", ".join(f"{n} ({what})" for n, what in task.releases.items())
        warnings.append(
            f"the references hold {len(records)} records, {task.name} has {known}: these numbers "
            "are not comparable with published ones"
        )
    warnings += scores.warnings
    return ({"confusion": scores.confusion} if scores.confusion else {}) | {
        "task": task.name,
        "records": len(records),
        "metrics": {name: as_values(metric) for name, metric in scores.metrics.items()},
        "counts": {**scores.counts, **{f"{kind}_ids": n for kind, n in bad_ids.items()}},
        "baselines": {name: dict(values) for name, values in baselines.items()},
        "warnings": warnings,
    }


def as_values(metric: Metric) -> dict[str, Any]:
    """A metric as it stands in JSON."""
    interval = list(metric.interval) if metric.interval else None
    return {
        "value": metric.value, "n": metric.n, "unit": metric.unit, "interval_95": interval,
    }  # fmt: skip


def print_table(report: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints metrics with intervals and baselines, and the counts, for people."""
    table = Table(
        Column("metric", overflow="fold"), "value", "95 % interval", "n", *report["baselines"]
    )
    for name, metric in report["metrics"].items():
        interval = metric["interval_95"]
        table.add_row(
            name,
            f"{metric['value']:.4g}",
            f"{interval[0]:.4g} to {interval[1]:.4g}" if interval else "",
            str(metric["n"]),
            *(f"{values.get(name, float('nan')):.4g}" for values in report["baselines"].values()),
        )
    console = console or Console(markup=False)  # names may hold brackets
    console.print(table)
    console.print(", ".join(f"{name} {count}" for name, count in report["counts"].items()))
    if report.get("confusion"):
        console.print(confusion_table(report["confusion"]))
    for toolkit, theirs in report.get("cross_check", {}).items():
        for name, value in theirs.items():
            console.print(f"{toolkit}: {name} {value:.6g}")


def confusion_table(confusion: Mapping[str, Mapping[str, int]]) -> Table:
    """Right answers by row, given answers by column."""
    given = list(dict.fromkeys([*confusion, *(name for row in confusion.values() for name in row)]))
    table = Table("right answer", *(Column(name, justify="right") for name in given))
    for right, row in confusion.items():
        table.add_row(right, *(str(row.get(name, "")) for name in given))
    return table


def write_rows(
    path: str, rows: Mapping[str, float], pictures: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Writes row scores as JSON lines, `{"id", "score"}`, and a digest of the row's "picture"."""
    lines = []
    for key, value in rows.items():
        picture = {"picture": fingerprint(pictures[key])} if key in pictures else {}
        lines.append(json.dumps({"id": key, "score": value} | picture) + "\n")
    write_text(Path(path), "".join(lines))


def pictures_of(task: Task, records: Sequence[Record]) -> dict[str, str]:
    """The pictures that each scored row shares with others, by record and by question.

    Records without pictures share nothing and have no entry.
    """
    shared = [record for record in records if "cluster" in record or record.get("images")]
    return {
        name: cluster_of(record) for record in shared for name in (record["id"], task.unit(record))
    }
