"""`crome compare`: did two runs on the same rows really differ, and on which rows."""

import json as jsonlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from crome.errors import InputError
from crome.evaluation.judges import read_store
from crome.evaluation.predictions import (
    OnBadId,
    Prediction,
    align,
    named,
    read_predictions,
)
from crome.evaluation.score import (
    Grading,
    is_judged,
    only_judge,
    score_answers,
    score_judged,
    verdicts_beside,
)
from crome.evaluation.sources import folder_of, parse_json
from crome.evaluation.task import Record
from crome.evaluation.tasks import get_task, read_records
from crome.intervals import bootstrap, resampled_means

LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """A paired comparison of B against A.

    Attributes:
        n: Rows in common.
        a: Mean score of A.
        b: Mean score of B.
        difference: b − a.
        interval: 95 % paired bootstrap interval of the difference.
        test: "exact McNemar" for 0/1 scores, "paired bootstrap" otherwise.
        p_value: Two-sided.
        gained: Rows where B scores higher.
        lost: Rows where B scores lower.
    """

    n: int
    a: float
    b: float
    difference: float
    interval: tuple[float, float]
    test: str
    p_value: float
    gained: tuple[str, ...]
    lost: tuple[str, ...]


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
    sides: list[dict[str, Prediction]] = [{} for _ in paths]
    records: list[Record] = []
    if task is not None and references is not None:
        bench = get_task(task)
        judged = is_judged(bench, protocol, Grading())
        if judged:
            require_one_judge(task, paths)
        records = read_records(bench, references)
        ids = [record["id"] for record in records]
        reader = bench.predictions or read_predictions
        sides = [align(ids, reader(path), on_bad_id)[0] for path in paths]
        scored = [
            score_judged(bench, records, side, Grading(), Path(path))
            if judged
            else score_answers(bench, records, side, protocol)[0]
            for path, side in zip(paths, sides, strict=True)
        ]
        scores = [of.rows for of in scored]
    elif task is None and references is None:
        if report is not None:
            raise InputError("--report shows answers: give predictions, --task and --references.")
        scores = [read_rows_file(path) for path in paths]
    else:
        raise InputError("give both --task and --references to compare predictions, or neither.")
    comparisons = [paired(scores[0], other) for other in scores[1:]]
    if report is not None:
        from crome.evaluation.comparison import write_comparison

        assert references is not None
        named = dict(zip(run_names(paths), zip(sides, scored, strict=True), strict=True))
        write_comparison(
            report, bench, records, named, comparisons, image_root or folder_of(references)
        )
        print(f"Report: {report}", file=sys.stderr)
    shown = [as_report(of, sides[0], side) for of, side in zip(comparisons, sides[1:], strict=True)]
    if json:
        print(jsonlib.dumps(shown if more else shown[0], indent=1))
    else:
        for of in shown:
            print_table(of)


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
        told = "; ".join(f"{path} by {' in wording '.join(of)}" for of, path in judges.items())
        raise InputError(f"these runs were graded differently: {told}. Grade them alike first.")


def run_names(paths: Sequence[str]) -> list[str]:
    """Short names of runs: their files', or their folders' where the files are called alike."""
    names = [Path(path).stem for path in paths]
    if len(set(names)) < len(names):
        names = [Path(path).resolve().parent.name for path in paths]
    if len(set(names)) < len(names):
        names = [f"{chr(ord('A') + k)}: {name}" for k, name in enumerate(names)]
    return names


def paired(a: Mapping[str, float], b: Mapping[str, float]) -> Comparison:
    """Compares two sets of row scores.

    Args:
        a: Scores of the first run by id.
        b: Scores of the second run.

    Raises:
        InputError: They are not of the same rows.
    """
    only_a, only_b = [i for i in a if i not in b], [i for i in b if i not in a]
    if only_a or only_b or not a:
        raise InputError(
            f"the runs are not on the same rows: {len(only_a)} only in A ({named(only_a)}), "
            f"{len(only_b)} only in B ({named(only_b)}), {len(set(a) & set(b))} in both."
        )
    difference = np.array([b[i] - a[i] for i in a])
    gained = tuple(i for i, d in zip(a, difference, strict=True) if d > 0)
    lost = tuple(i for i, d in zip(a, difference, strict=True) if d < 0)
    binary = set(a.values()) | set(b.values()) <= {0.0, 1.0}
    return Comparison(
        n=len(a),
        a=float(np.mean(list(a.values()))),
        b=float(np.mean([b[i] for i in a])),
        difference=float(difference.mean()),
        interval=bootstrap(difference),
        test="exact McNemar" if binary else "paired bootstrap",
        p_value=mcnemar(len(gained), len(lost)) if binary else bootstrap_p_value(difference),
        gained=gained,
        lost=lost,
    )


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact McNemar test: is a changed row as likely to be gained as lost?

    Twice the smaller tail of the binomial distribution with probability 1/2, at most 1.
    """
    changed, tail, ways = gained + lost, 0, 1
    for k in range(min(gained, lost) + 1):
        tail += ways
        ways = ways * (changed - k) // (k + 1)  # changed over k + 1
    # Whole numbers until the one division: 2**changed overflows a float from 1,024 changes on.
    return min(1.0, 2 * tail / 2**changed)


def bootstrap_p_value(difference: np.ndarray) -> float:
    """Two-sided p-value of a mean of zero, by resampling the centred differences, shape `(n,)`.

    One is added to both counts, so that no finite number of resamples claims a p of zero.
    """
    observed = abs(difference.mean())
    means = resampled_means(difference - difference.mean())
    # The slack takes float noise for a tie, else equal scores would differ from themselves.
    extreme = int((np.abs(means) >= observed - 1e-12).sum())
    return (extreme + 1) / (len(means) + 1)


def read_rows_file(path: str) -> dict[str, float]:
    """Reads row scores, `{"id", "score"}` a line.

    Raises:
        InputError: The file is absent, holds something else, or an id twice.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: there is no such file.")
    rows: dict[str, float] = {}
    for number, line in enumerate(Path(path).read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        row = parse_json(line, where)
        if not isinstance(row, dict) or not isinstance(row.get("score"), int | float):
            raise InputError(
                f"{where}: expected an id and a score. For predictions give --task and "
                "--references too."
            )
        if str(row.get("id")) in rows:
            raise InputError(f"{where}: id {row['id']!r} stands there twice.")
        rows[str(row.get("id"))] = float(row["score"])
    return rows


def as_report(
    comparison: Comparison, a: Mapping[str, Prediction], b: Mapping[str, Prediction]
) -> dict[str, Any]:
    """Everything `crome compare` prints; responses stand beside changed rows where known."""

    def changed(ids: tuple[str, ...]) -> list[dict[str, str]]:
        return [
            {"id": i} | ({"a": a[i].response, "b": b[i].response} if i in a and i in b else {})
            for i in ids
        ]

    return {
        "n": comparison.n,
        "a": comparison.a,
        "b": comparison.b,
        "difference": comparison.difference,
        "interval_95": list(comparison.interval),
        "test": comparison.test,
        "p_value": comparison.p_value,
        "differ": comparison.p_value < LEVEL,
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
            table.add_row(row["id"], change, row.get("a", ""), row.get("b", ""))
    console.print(table)
