"""`crome score`: a predictions file and references to metrics, without a model."""

import json as jsonlib
import sys
from pathlib import Path
from typing import Literal

from crome.errors import positive
from crome.evaluation.grading import Grading, is_judged, score_judged
from crome.evaluation.predictions import OnBadId, align, read_predictions
from crome.evaluation.scoring import (
    as_report,
    pictures_of,
    print_table,
    score_answers,
    write_rows,
)
from crome.evaluation.task import hidden
from crome.evaluation.tasks import get_task, read_records
from crome.evaluation.toolkits.cross_check import cross_check as toolkit_scores
from crome.evaluation.toolkits.vlmevalkit import write_tsv


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
    positive(judge_runs=judge_runs)
    bench = get_task(task)
    records = read_records(bench, references)
    found = (bench.predictions or read_predictions)(predictions)
    aligned, bad_ids = align([record["id"] for record in records], found, on_bad_id)
    if export is not None:
        written = write_tsv(export, records, aligned, bench.cells)
        print(f"{export}: {written} rows", file=sys.stderr)
        if len(hidden(records)) == len(records):
            return  # hidden answers: the table is the submission, and there is nothing to score
    paths = (verdicts,) if isinstance(verdicts, str) else tuple(verdicts or ())
    grading = Grading(paths, judge, judge_prompt, judge_runs)
    if is_judged(bench, protocol, grading):
        scores = score_judged(bench, records, aligned, grading, Path(predictions))
        baselines: dict[str, dict[str, float]] = {}
    else:
        scores, baselines = score_answers(bench, records, aligned, protocol)
    if rows is not None:
        write_rows(rows, scores.rows, pictures_of(bench, records))
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
