"""`crome score`: a predictions file and references to metrics, without a model."""

import json as jsonlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Column, Table

from crome.errors import InputError
from crome.evaluation import judges
from crome.evaluation.cross_check import cross_check as toolkit_scores
from crome.evaluation.predictions import OnBadId, Prediction, align, read_predictions
from crome.evaluation.task import Metric, Record, Scores, Task
from crome.evaluation.tasks import get_task, read_records
from crome.evaluation.vlmevalkit import columns, write_tsv

MISSING = "missing_verdicts"
JUDGED = "judge"  # name of the protocol that needs one


def score(
    task: str,
    *,
    predictions: str,
    references: str,
    protocol: str | None = None,
    verdicts: list[str] | str | None = None,
    judge: str | None = None,
    judge_prompt: str | None = None,
    judge_runs: int | None = None,
    on_bad_id: OnBadId = "error",
    rows: str | None = None,
    export: str | None = None,
    cross_check: Literal["lmms-eval"] | None = None,
    json: bool = True,
) -> None:
    """Scores a predictions file. No model is loaded.

    Args:
        task: The benchmark, such as mmmu or mme.
        predictions: The predictions file, or the benchmark's own result layout.
        references: The benchmark's records: a file, a folder or a hub id owner/name[:config]:split.
        protocol: Which of the task's protocols; its first when absent, judge when there are
            verdicts or a judge.
        verdicts: For judged benchmarks: the store of verdicts, or a grading in the official
            layout; several files as [A, B, C].
        judge: For judged benchmarks: the model to ask for the verdicts that are missing, at
            CROME_JUDGE_URL with CROME_JUDGE_KEY; with an official grading, its judge's name.
        judge_prompt: The benchmark's own judge wording, from the file its authors publish.
        judge_runs: Gradings per response; the authors' number when absent.
        on_bad_id: error refuses missing, unknown and repeated ids; report counts them, and a
            missing prediction is wrong.
        rows: Also write the score of each row here, as JSON lines, for crome compare.
        export: Also write predictions and references here, as a table that VLMEvalKit reads.
        cross_check: Also score with that toolkit's own functions, where it is installed, and print
            both numbers.
        json: Print JSON; false prints a table.
    """
    bench = get_task(task)
    records = read_records(bench, references)
    found = (bench.predictions or read_predictions)(predictions)
    aligned, bad_ids = align([record["id"] for record in records], found, on_bad_id)
    if export is not None:
        written = write_tsv(export, records, aligned, bench.cells or columns)
        print(f"{export}: {written} rows", file=sys.stderr)
        if all("answer" in record and record["answer"] is None for record in records):
            return  # hidden answers: the table is the submission, and there is nothing to score
    paths = (verdicts,) if isinstance(verdicts, str) else tuple(verdicts or ())
    grading = Grading(paths, judge, judge_prompt, judge_runs)
    if is_judged(bench, protocol, grading):
        scores = score_judged(bench, records, aligned, grading, Path(predictions))
        baselines: dict[str, dict[str, float]] = {}
    else:
        scores, baselines = score_answers(bench, records, aligned, protocol)
    if rows is not None:
        write_rows(rows, scores.rows)
    report = as_report(bench, records, scores, baselines, bad_ids)
    if cross_check is not None:
        toolkit, theirs = toolkit_scores(bench, records, aligned)
        report["cross_check"] = {toolkit: theirs}
    for warning in report["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    if json:
        print(jsonlib.dumps(report, indent=1))
    else:
        print_table(report)


def is_judged(task: Task, protocol: str | None, grading: "Grading") -> bool:
    """Whether the judge's protocol is meant.

    Raises:
        InputError: The arguments contradict each other.
    """
    given = bool(grading.verdicts or grading.judge or grading.prompt or grading.runs)
    if given and (task.judged is None or protocol not in (None, JUDGED)):
        raise InputError(
            f"{task.name}/{protocol or next(iter(task.protocols))} needs no judge: leave out "
            "--verdicts, --judge, --judge_prompt and --judge_runs, or use a judged protocol."
        )
    return task.judged is not None and (given or protocol == JUDGED or not task.protocols)


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
        InputError: The task has no such protocol.
    """
    protocol = protocol or next(iter(task.protocols))
    if protocol not in task.protocols:
        names = [*task.protocols, *([JUDGED] if task.judged else [])]
        raise InputError(
            f"{task.name} has no protocol {protocol!r}: choose from {', '.join(names)}."
        )
    chosen = task.protocols[protocol]
    name = f"{task.name}/{protocol}{asked_otherwise(predictions)}"
    answers = {
        r["id"]: chosen.parse(r, predictions[r["id"]]) for r in records if r["id"] in predictions
    }
    scores = chosen.tally(name, records, answers)
    scores.counts["unreadable"] = sum(answer is None for answer in answers.values())
    baselines = {
        baseline: {key: m.value for key, m in chosen.tally(name, records, constant).metrics.items()}
        for baseline, constant in task.baselines(records).items()
    }
    return scores, baselines


def asked_otherwise(predictions: Mapping[str, Prediction]) -> str:
    """What a file's settings say that is not the usual, as part of its metrics' names.

    Usual are greedy answers to `llava` prompts, losses behind `rank` prompts, and files of other
    programs, which say nothing. The blank images of a baseline are its run's name already.

    Raises:
        InputError: The predictions were made in different ways.
    """
    labels = {_settings_label(prediction.generation) for prediction in predictions.values()}
    if len(labels) > 1:
        raise InputError(
            "these predictions were made in different ways: "
            f"{', '.join(label or 'as usual' for label in sorted(labels))}."
        )
    return labels.pop() if labels else ""


def _settings_label(generation: Mapping[str, Any]) -> str:
    usual = "rank" if generation.get("ranked") else "llava"
    style, beams = generation.get("style", usual), generation.get("num_beams", 1)
    told = [style] * (style != usual) + [f"{beams} beams"] * (beams != 1)
    told += ["sampled"] * bool(generation.get("do_sample"))
    return f"[{', '.join(told)}]" if told else ""


@dataclass(frozen=True)
class Grading:
    """Where verdicts come from; the fields are `score`'s arguments of the same meaning."""

    verdicts: tuple[str, ...] = ()
    judge: str | None = None
    prompt: str | None = None
    runs: int | None = None
    ask: judges.Judge | None = field(default=None, repr=False)  # in place of a server, for tests


def score_judged(
    task: Task,
    records: Sequence[Record],
    predictions: Mapping[str, Prediction],
    grading: Grading,
    predictions_path: Path,
) -> Scores:
    """Scores by a judge's verdicts, asking for those that are missing.

    Args:
        task: A benchmark with a judged protocol.
        records: Its records.
        predictions: By id.
        grading: Where verdicts come from.
        predictions_path: Beside it the store is kept when `grading` names none.

    Raises:
        InputError: There is no source of verdicts, or more than 1 % of them are missing.
        JobError: The judge cannot be reached.
    """
    assert task.judged is not None
    paths = grading.verdicts
    replies: dict[str, str] = {}
    if paths and not _is_store(paths[0]) and Path(paths[0]).exists():
        name, runs = task.judged.recorded(paths)
        name = grading.judge or name
    else:
        name, runs, replies = _own_runs(task, records, predictions, grading, predictions_path)
    runs = [{r["id"]: run[r["id"]] for r in records if r["id"] in run} for run in runs]
    missing = judges.require_verdicts([record["id"] for record in records], runs, replies)
    scores = task.judged.tally(f"{name}{asked_otherwise(predictions)}", records, runs)
    scores.counts[MISSING] = missing
    scores.replies.update(replies)
    return scores


def _own_runs(
    task: Task,
    records: Sequence[Record],
    predictions: Mapping[str, Prediction],
    grading: Grading,
    predictions_path: Path,
) -> tuple[str, list[dict[str, Any]], dict[str, str]]:
    """Label, runs and replies from a verdict store, filled up by a judge if one is named."""
    assert task.judged is not None
    judged = task.judged
    path = Path(grading.verdicts[0]) if grading.verdicts else verdicts_beside(predictions_path)
    ask, n_runs = grading.ask, grading.runs or judged.runs
    if ask is None and grading.judge is not None:
        ask = judges.ChatServer(grading.judge)
    if ask is None and not path.exists():
        raise InputError(
            f"{task.name} needs a judge: give --verdicts FILE with finished gradings, or --judge "
            f"MODEL to ask the server at {judges.URL_VARIABLE}."
        )
    if len(grading.verdicts) > 1:
        raise InputError(f"verdicts are kept in one file, these are {len(grading.verdicts)}.")
    rules = judged.rules(grading.prompt) if grading.prompt else None
    version = _wording(grading.prompt, rules) if grading.prompt else judged.prompt_version
    if ask is None:
        stored = judges.read_store(path)
        name, version = only_judge(stored, path)
        n_runs = grading.runs or len({row["run"] for row in stored})
        store = judges.VerdictStore(path, name, version)
    else:
        store = judges.VerdictStore(path, ask.name, version)
        with Progress(console=Console(stderr=True), transient=True) as progress:
            bar = progress.add_task(escape(f"verdicts of {ask.name}"))
            judges.judge_all(
                judged, records, predictions, ask, store, rules=rules, runs=n_runs,
                progress=lambda done, total: progress.update(bar, completed=done, total=total),
            )  # fmt: skip
        name = ask.name
    runs = judges.stored_runs(store, predictions, n_runs)
    return f"{name}[{version}]", runs, judges.stored_replies(store, predictions, n_runs)


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
    return {
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
    for toolkit, theirs in report.get("cross_check", {}).items():
        for name, value in theirs.items():
            console.print(f"{toolkit}: {name} {value:.6g}")


def write_rows(path: str, rows: Mapping[str, float]) -> None:
    """Writes row scores as JSON lines, `{"id", "score"}`."""
    lines = (jsonlib.dumps({"id": key, "score": value}) + "\n" for key, value in rows.items())
    Path(path).write_text("".join(lines), encoding="utf-8")


def _wording(path: str, rules: Any) -> str:
    """Names a wording by its file and a digest, so that no other is taken for it."""
    return f"{Path(path).stem}-{judges.fingerprint(jsonlib.dumps(rules))[:8]}"


def verdicts_beside(predictions: Path) -> Path:
    """Where the verdicts on a predictions file are kept."""
    return predictions.with_name(f"{predictions.stem}.verdicts.jsonl")


def _is_store(path: str) -> bool:
    if not path.endswith(".jsonl") or not Path(path).exists():
        return False
    with open(path, "rb") as file:
        first = file.readline()
    return not first or b'"prompt_version"' in first


def only_judge(rows: Sequence[Mapping[str, Any]], path: Path) -> tuple[str, str]:
    """The judge of a store and its wording.

    Raises:
        InputError: There are several.
    """
    found = sorted({(row["judge"], row["prompt_version"]) for row in rows})
    if len(found) != 1:
        raise InputError(
            f"{path} holds verdicts of {len(found)} judges and wordings ({found}): keep one file "
            "for each, or name one with --judge."
        )
    return found[0]
