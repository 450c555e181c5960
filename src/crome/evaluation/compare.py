"""`crome compare`: did two runs on the same rows really differ, and on which rows."""

import json as jsonlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from crome.errors import InputError
from crome.evaluation import cells
from crome.evaluation.grading import Grading, is_judged, only_judge, score_judged, verdicts_beside
from crome.evaluation.paired import Comparison, paired
from crome.evaluation.predictions import OnBadId, Prediction, align, read_predictions
from crome.evaluation.report.comparison import write_comparison
from crome.evaluation.scoring import pictures_of, score_answers
from crome.evaluation.sources import folder_of, parse_lines, without_surrogates
from crome.evaluation.task import Record, Scores, Task
from crome.evaluation.tasks import get_task, read_records
from crome.evaluation.verdicts import read_store

Sides = list[dict[str, Prediction]]


def compare(
    a: str,
    b: str,
    *,
    more: list[str] | None = None,
    task: str | None = None,
    references: str | None = None,
    protocol: str | None = None,
    on_bad_id: OnBadId = "error",
    report: Path | None = None,
    image_root: Path | None = None,
    json: bool = True,
) -> None:
    """Compares runs on the same rows: a paired test, and the rows that changed.

    Args:
        a: The first run: a predictions file, or row scores written by crome score --rows.
        b: The second run, of the same kind.
        more: Further runs, each compared with the first as well, as [C, D].
        task: For predictions files: the benchmark that scores them; a judged one by the verdicts
            that `crome score` has kept beside each file.
        references: For predictions files: the benchmark's records.
        protocol: For predictions files: the task's protocol; its first when absent.
        on_bad_id: For predictions files: error refuses missing, unknown and repeated ids; report
            scores the rest, with a missing prediction wrong.
        report: For predictions files: also write a page with the runs side by side here, the rows
            that changed first.
        image_root: Folder that image paths in the references start from, for the page; by default
            that of the references.
        json: Print JSON; false prints a table.
    """
    paths = [a, b, *(more or ())]
    if (task is None) != (references is None):
        raise InputError("give both --task and --references to compare predictions, or neither.")
    if task is None or references is None:
        if report is not None:
            raise InputError("--report shows answers: give predictions, --task and --references.")
        sides: Sides = [{} for _ in paths]
        tables = [read_rows_file(path) for path in paths]
        pictures = tables[0][1]
        comparisons = [paired(tables[0][0], rows, pictures) for rows, _ in tables[1:]]
    else:
        bench = get_task(task)
        if is_judged(bench, protocol, Grading()):
            require_one_judge(bench.name, paths)
        records = read_records(bench, references)
        sides, scored = score_sides(bench, records, paths, protocol, on_bad_id)
        pictures = pictures_of(bench, records)
        comparisons = [paired(scored[0].rows, scores.rows, pictures) for scores in scored[1:]]
        if report is not None:
            runs = dict(zip(run_names(paths), zip(sides, scored, strict=True), strict=True))
            folder = image_root or folder_of(references)
            write_comparison(report, bench, records, runs, comparisons, folder)
            print(f"Report: {report}", file=sys.stderr)
    reports = [as_report(c, sides[0], side) for c, side in zip(comparisons, sides[1:], strict=True)]
    if json:
        print(jsonlib.dumps(reports if more else reports[0], indent=1))
    else:
        for values in reports:
            print_table(values)


def score_sides(
    task: Task,
    records: Sequence[Record],
    paths: Sequence[str],
    protocol: str | None,
    on_bad_id: OnBadId,
) -> tuple[Sides, list[Scores]]:
    """Predictions and scores of each run, all by one protocol, or by one judge."""
    judged = is_judged(task, protocol, Grading())
    ids = [record["id"] for record in records]
    reader = task.predictions or read_predictions
    sides = [align(ids, reader(path), on_bad_id)[0] for path in paths]
    scored = [
        score_judged(task, records, side, Grading(), Path(path))
        if judged
        else score_answers(task, records, side, protocol)[0]
        for path, side in zip(paths, sides, strict=True)
    ]
    return sides, scored


def require_one_judge(task: str, paths: Sequence[str]) -> None:
    """Checks that beside each predictions file stand verdicts, all of one judge and wording.

    Raises:
        InputError: A file has none, or they are of several.
    """
    judges = {}
    for path in paths:
        store = verdicts_beside(Path(path))
        if not store.exists():
            raise InputError(
                f"{task} needs a judge: {store} is absent. Grade {path} first (`crome score {task} "
                "… --judge MODEL`), or compare what crome score --rows writes."
            )
        judges[only_judge(read_store(store), store)] = path
    if len(judges) > 1:
        graded = "; ".join(
            f"{path} by {' in wording '.join(judge)}" for judge, path in judges.items()
        )
        raise InputError(f"these runs were graded differently: {graded}. Grade them alike first.")


def run_names(paths: Sequence[str]) -> list[str]:
    """Short names of runs: their files', or their folders' where the files are called alike."""
    names = [Path(path).stem for path in paths]
    if len(set(names)) < len(names):
        names = [Path(path).resolve().parent.name for path in paths]
    if len(set(names)) < len(names):
        names = [f"{chr(ord('A') + k)}: {name}" for k, name in enumerate(names)]
    return names


def read_rows_file(path: str) -> tuple[dict[str, float], dict[str, str]]:
    """Reads row scores, `{"id", "score"}` a line, with a "picture" where rows share some.

    Returns:
        Score by id, and picture by id of the rows that have one.

    Raises:
        InputError: The file is absent, holds something else, an id twice, or no number as a score.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: there is no such file.")
    rows: dict[str, float] = {}
    pictures: dict[str, str] = {}
    for where, row in parse_lines(Path(path)):
        if not isinstance(row, dict) or "id" not in row or "score" not in row:
            raise InputError(
                f"{where}: expected an id and a score. For predictions give --task and "
                "--references too."
            )
        try:
            score, identity = row["score"], cells.identity(row["id"])
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        if isinstance(score, bool) or not isinstance(score, int | float) or not isfinite(score):
            raise InputError(f"{where}: the score must be a finite number, found {score!r}.")
        if identity in rows:
            raise InputError(f"{where}: id {row['id']!r} stands there twice.")
        rows[identity] = float(score)
        if isinstance(row.get("picture"), str):
            pictures[identity] = row["picture"]
    return rows, pictures


def as_report(
    comparison: Comparison, a: Mapping[str, Prediction], b: Mapping[str, Prediction]
) -> dict[str, Any]:
    """Everything `crome compare` prints; responses stand beside changed rows where known."""

    def changed(ids: tuple[str, ...]) -> list[dict[str, str]]:
        return [
            {"id": i} | ({"a": a[i].response, "b": b[i].response} if i in a and i in b else {})
            for i in ids
        ]

    report = asdict(comparison)
    return report | {
        "interval_95": report.pop("interval"),
        "differ": comparison.differ,
        "gained": changed(comparison.gained),
        "lost": changed(comparison.lost),
    }


def print_table(report: Mapping[str, Any]) -> None:
    """Prints the comparison and the changed rows for people."""
    # Responses and names may hold brackets, which are no markup.
    console, (low, high) = Console(markup=False, soft_wrap=True), report["interval_95"]
    console.print(
        f"A {report['a']:.4f}, B {report['b']:.4f}, difference {report['difference']:+.4f} "
        f"({low:+.4f} to {high:+.4f}), {report['test']} p = {report['p_value']:.2g}, "
        f"n = {report['n']}"
    )
    table = Table("row", "change", "A", "B")
    for change in ("gained", "lost"):
        for row in report[change]:
            texts = (row["id"], change, row.get("a", ""), row.get("b", ""))
            table.add_row(*map(without_surrogates, texts))
    console.print(table)
