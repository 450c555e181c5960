"""Grading by a judge: where verdicts come from, and the scores that they make."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from crome.errors import InputError
from crome.evaluation import judges, verdicts
from crome.evaluation.predictions import Prediction
from crome.evaluation.scoring import JUDGED, MISSING, label_of_settings
from crome.evaluation.sources import fingerprint
from crome.evaluation.task import Record, Scores, Task


@dataclass(frozen=True)
class Grading:
    """Where verdicts come from; the fields are `crome score`'s arguments of the same meaning."""

    verdicts: tuple[str, ...] = ()
    judge: str | None = None
    prompt: str | None = None
    runs: int | None = None
    ask: judges.Judge | None = field(default=None, repr=False)  # in place of a server, for tests


def is_judged(task: Task, protocol: str | None, grading: Grading) -> bool:
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
    departures: list[str] = []
    if paths and not _is_store(paths[0]) and Path(paths[0]).exists():
        if task.judged.recorded is None:
            raise InputError(
                f"{paths[0]}: not a store of verdicts that crome wrote (.verdicts.jsonl)."
            )
        name, runs = task.judged.recorded(paths)
        name = grading.judge or name
    else:
        name, runs, replies, departures = _own_runs(
            task, records, predictions, grading, predictions_path
        )
    runs = [{r["id"]: run[r["id"]] for r in records if r["id"] in run} for run in runs]
    missing = verdicts.require_verdicts([record["id"] for record in records], runs, replies)
    scores = task.judged.tally(f"{name}{label_of_settings(predictions, task.style)}", records, runs)
    scores.counts[MISSING] = missing
    scores.replies.update(replies)
    scores.warnings.extend(departures)
    return scores


def _own_runs(
    task: Task,
    records: Sequence[Record],
    predictions: Mapping[str, Prediction],
    grading: Grading,
    predictions_path: Path,
) -> tuple[str, list[dict[str, Any]], dict[str, str], list[str]]:
    """Label, runs, replies and what the judge refused, from a store that a judge may fill up."""
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
    version = judged.prompt_version
    if grading.prompt:  # named by its file and a digest, so that no other is taken for it
        version = f"{Path(grading.prompt).stem}-{fingerprint(json.dumps(rules))[:8]}"
    if ask is None:
        stored = verdicts.read_store(path)
        name, version = only_judge(stored, path)
        n_runs = grading.runs or len({row["run"] for row in stored})
        store = verdicts.VerdictStore(path, name, version)
    else:
        store = verdicts.VerdictStore(path, ask.name, version)
        calls = len(store.lacking(records, predictions, n_runs))
        if calls:
            print(f"asking {ask.name} for {calls:,} verdicts on {path.name}", file=sys.stderr)
        with Progress(console=Console(stderr=True), transient=True) as progress:
            bar = progress.add_task(escape(f"verdicts of {ask.name}"))
            verdicts.judge_all(
                judged, records, predictions, ask, store, rules=rules, runs=n_runs,
                progress=lambda done, total: progress.update(bar, completed=done, total=total),
            )  # fmt: skip
        name = ask.name
    runs, replies = store.runs(predictions, n_runs), store.replies(predictions, n_runs)
    return f"{name}[{version}]", runs, replies, store.departures()


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
