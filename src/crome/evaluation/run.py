"""A model on a benchmark: records → rows → predictions → scores → report."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from crome.evaluation.asking import (
    Asking,
    asking,
    digest,
    hidden_answers,
    questions,
    readable,
    require_pictures,
)
from crome.evaluation.grading import Grading, score_judged
from crome.evaluation.paired import paired
from crome.evaluation.predict import Sight, console, predict
from crome.evaluation.predictions import OnBadId, Prediction, align, read_predictions
from crome.evaluation.processes import share_of_this_process
from crome.evaluation.report.bars import MODEL, bars, examples
from crome.evaluation.report.page import write_report
from crome.evaluation.report.rows import ALL
from crome.evaluation.scoring import as_report, pictures_of, print_table, score_answers
from crome.evaluation.task import Record, Scores, Task, limited
from crome.evaluation.toolkits.vlmevalkit import write_tsv
from crome.model.attention import attention_picture, has_queries
from crome.model.lengths import require_whole
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor
from crome.rows import Row
from crome.storage import write_json

# What the model sees, and the file of its answers; the baselines show what is reached unseen.
RUNS: dict[str, tuple[Sight, str]] = {
    MODEL: ("shown", "predictions.jsonl"),
    "blank image": ("blank", "predictions-blank.jsonl"),
    "no image": ("none", "predictions-no-image.jsonl"),
}
ROWS = "rows"  # the task of people's own rows, whose result is flat
COMMON = "most frequent answer"


def run(
    task: Task,
    records: Sequence[Record],
    load: Callable[[], tuple[CromeForConditionalGeneration, CromeProcessor]],
    out: Path,
    *,
    image_root: Path,
    protocol: str | None = None,
    style: str | None = None,
    grading: Grading = Grading(),  # noqa: B008 - it is frozen
    baselines: bool = True,
    on_bad_row: Literal["raise", "skip"] = "raise",
    check_images: bool = True,
    batch_size: int = 32,
    max_new_tokens: int | None = None,
    num_beams: int = 1,
    attention_pictures: bool = True,
    facts: Mapping[str, str] | None = None,
    limit: int | None = None,
    reproduce: str | None = None,
) -> None:
    """Asks every record, scores by the task's protocol and writes the report.

    Args:
        task: The benchmark.
        records: Its records.
        load: Gives model and processor; called once the records are known to be good.
        out: Folder of the predictions, `scores.json`, `report.html`, and images that the records
            carry inside.
        image_root: Folder that the records' image paths start from.
        protocol: See `crome evaluate`.
        style: The protocol's own when None.
        grading: For judged benchmarks.
        baselines: Whether the model is asked with blank images and without images too.
        on_bad_row: Whether an image that cannot be read stops the run, or its record is left out
            and counted as wrong.
        check_images: Whether to decode every image first.
        batch_size: Questions answered together.
        max_new_tokens: The task's own when None.
        num_beams: Beams; 1 is greedy.
        attention_pictures: Whether the report draws the Q-Former's attention.
        facts: Further facts for the report, by name.
        limit: Only so many questions from the start; records that belong together stay together.
        reproduce: The command, for the report.

    Raises:
        InputError: The records lack questions, or an image cannot be read.
    """
    share = share_of_this_process()
    require_pictures(task, records)
    records = limited(task, records, limit)
    hidden = hidden_answers(task, records)
    how = asking(task, protocol, style, grading)
    rows = questions(task, records, how, image_root, out / "images")
    if check_images:  # by one process for all
        rows = share.from_first(lambda: readable(rows, on_bad_row))
    model, processor = load()
    if task.name == ROWS:  # those of a benchmark are cut by its protocol, and counted
        require_whole(processor, rows)
    longest = max_new_tokens or task.max_new_tokens
    origin = Path((facts or {}).get("data", "")).name if task.name == ROWS else task.name
    ask = partial(
        predict, model, processor, rows, share=share, batch_size=batch_size,
        max_new_tokens=longest, num_beams=num_beams, ranked=how.ranked, per_token=how.per_token,
        note={"style": how.style, "data": f"{origin}/{digest(rows)}"},
    )  # fmt: skip
    blind = baselines and not hidden and any(row.media for row in rows)
    if share.first and how.protocol is None and blind and (grading.judge or grading.ask):
        say_cost(task, rows, grading)
    asked = RUNS if blind else {MODEL: RUNS[MODEL]}
    for name, (sight, file) in asked.items():
        ask(out / file, sight=sight, title=f"asking: {name}")
    if not share.first:
        return
    ids = [record["id"] for record in records]
    on_bad_id: OnBadId = "report" if on_bad_row == "skip" else "error"
    found = {
        name: align(ids, read_predictions(out / file), on_bad_id)
        for name, (_, file) in asked.items()
    }
    runs = {name: predictions for name, (predictions, _) in found.items()}
    _, bad_ids = found[MODEL]
    details = counts(processor, rows, how, longest, num_beams) | dict(facts or {})
    scored: dict[str, Scores] = {}
    constants: dict[str, dict[str, float]] = {}
    if not hidden:
        scored, constants = score_runs(task, records, runs, how.protocol, grading, out)
    if scored:
        details |= write_scores(task, records, scored, constants, bad_ids, details, out)
    else:
        leave_to_others(task, records, runs[MODEL], hidden, out)
    subject = origin or task.name
    number = f"All {len(rows):,}" if len(rows) == len(records) else f"{len(rows):,} of {len(ids):,}"
    metric = f"scored by {next(iter(scored[MODEL].metrics))}" if scored else "not scored yet"
    looks = attention_pictures and has_queries(model)
    picture = partial(attention_picture, model, processor) if looks else None
    write_report(
        out / "report.html",
        title=f"{details['checkpoint']} on {subject}" if "checkpoint" in details else subject,
        lead=f"{number} questions, {metric}.",
        facts=details,
        scores=bars(scored, constants),
        examples=examples(records, rows, runs, scored, picture),
        reproduce=reproduce,
    )
    console.print(f"Report: {out / 'report.html'}")


def leave_to_others(
    task: Task,
    records: Sequence[Record],
    predictions: Mapping[str, Prediction],
    hidden: bool,
    out: Path,
) -> None:
    """Says who can score what is not scored here, and writes the file that a server takes.

    Args:
        task: The benchmark.
        records: Its records.
        predictions: The model's answers, by id.
        hidden: Whether the records come without answers; otherwise a judge is missing.
        out: Folder of the run.
    """
    if hidden:
        write_tsv(out / "submission.tsv", records, predictions, task.cells)
        console.print(
            f"{task.name} keeps the answers of these records to itself: "
            f"{out / 'submission.tsv'} is for its server to score."
        )
    else:
        console.print(
            f"{task.name} needs a judge. The predictions are there; grade them with `crome score "
            f"{task.name} --predictions {out / RUNS[MODEL][1]} --references … --judge MODEL`, or "
            "give --judge here."
        )


def score_runs(
    task: Task,
    records: Sequence[Record],
    runs: Mapping[str, Mapping[str, Prediction]],
    protocol: str | None,
    grading: Grading,
    out: Path,
) -> tuple[dict[str, Scores], dict[str, dict[str, float]]]:
    """Scores of every run, and of constant answers; none where a judge is needed and absent."""
    if protocol is None and not (grading.judge or grading.verdicts or grading.ask):
        return {}, {}
    scored: dict[str, Scores] = {}
    constants: dict[str, dict[str, float]] = {}
    for name, predictions in runs.items():
        if protocol is None:
            scored[name] = score_judged(task, records, predictions, grading, out / RUNS[name][1])
        else:
            scored[name], constants = score_answers(task, records, predictions, protocol)
    return scored, constants


def say_cost(task: Task, rows: Sequence[Row], grading: Grading) -> None:
    """Says how often the judge will be asked, and what the baselines add to that."""
    assert task.judged is not None
    once = len(rows) * (grading.runs or task.judged.runs)
    console.print(
        f"the judge grades the baselines too: {len(RUNS) * once:,} calls; --no-baselines makes "
        f"that {once:,}."
    )


def write_scores(
    task: Task,
    records: Sequence[Record],
    scored: Mapping[str, Scores],
    constants: Mapping[str, Mapping[str, float]],
    bad_ids: Mapping[str, int],
    settings: Mapping[str, str],
    out: Path,
) -> dict[str, str]:
    """Writes `scores.json`, prints a table and the headline as JSON; returns facts for the page."""
    unseen = {
        name: {key: metric.value for key, metric in scores.metrics.items()}
        for name, scores in scored.items()
        if name != MODEL
    }
    report = as_report(task, records, scored[MODEL], {**constants, **unseen}, bad_ids)
    headline = next(iter(report["metrics"]))
    write_json(out / "scores.json", report | as_card(headline, scored, constants, settings))
    for warning in report["warnings"]:
        console.print(f"warning: {warning}", style="yellow", highlight=False, markup=False)
    print_table(report, Console(stderr=True, markup=False))  # names hold brackets
    values = {name: scores.metrics[headline].value for name, scores in scored.items()}
    fixed = {name: reached[headline] for name, reached in constants.items()}
    if task.name == ROWS:  # whose first constant answer is the most frequent one
        common = next(iter(fixed.values()), None)
        print(json.dumps(values | ({} if common is None else {COMMON: common})))
    else:
        print(json.dumps({headline: values | fixed}))
    return findings(scored, report, pictures_of(task, records))


def as_card(
    headline: str,
    scored: Mapping[str, Scores],
    constants: Mapping[str, Mapping[str, float]],
    settings: Mapping[str, str],
) -> dict[str, Any]:
    """The part of `scores.json` that a card of the hub reads: scores as shares of one."""
    scores = [
        asdict(score)
        | {"group": ALL if score.group == headline else score.group.removeprefix(f"{headline}/")}
        for score in bars(scored, constants)
    ]
    named = {key: settings[key] for key in ("checkpoint", "adapter", "data") if key in settings}
    count = scored[MODEL].metrics[headline].n
    return named | {"protocol": headline, "rows": count, "scores": scores, "settings": settings}


def counts(
    processor: CromeProcessor, rows: Sequence[Row], how: Asking, longest: int, num_beams: int
) -> dict[str, str]:
    """How the questions were asked, for the report."""
    cut = sum(not processor.reads_whole(row.question) for row in rows)
    if how.ranked:
        mode = "ranking by loss per token" if how.per_token else "ranking by summed loss"
    else:
        decoding = "greedy" if num_beams == 1 else f"{num_beams} beams"
        mode = f"{decoding}, up to {longest} tokens"
    facts = {"prompts": how.style, "answers": mode}
    if cut:
        facts["cut prompts"] = (
            f"{cut} of {len(rows)} prompts are longer than the {processor.max_question_tokens} "
            "tokens this model takes and lost their beginning"
        )
    return facts


def findings(
    scored: Mapping[str, Scores], report: Mapping[str, Any], pictures: Mapping[str, str]
) -> dict[str, str]:
    """Counts and warnings, and whether the images made a difference, for the report."""
    counts = ", ".join(f"{name} {n}" for name, n in report["counts"].items() if n)
    facts = {"counts": counts} if counts else {}
    for name in ("blank image", "no image"):
        if name in scored and scored[name].rows.keys() == scored[MODEL].rows.keys():
            found = paired(scored[name].rows, scored[MODEL].rows, pictures)
            facts[f"against {name}"] = (
                f"better on {len(found.gained)}, worse on {len(found.lost)}, {found.test} "
                f"p = {found.p_value:.2g}"
            )
    warnings = report["warnings"]
    return facts | ({"warnings": "; ".join(warnings)} if warnings else {})
