"""`crome evaluate`: a benchmark's records or people's own rows → predictions → scores → report."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from rich.table import Table

from crome.checkpoints.loading import Loaded, adapter_for, load
from crome.data.reader import read_rows
from crome.errors import InputError, positive
from crome.evaluation import benchmark as benchmarks
from crome.evaluation.answers import METRICS, Metric
from crome.evaluation.benchmark import MODEL, RUNS
from crome.evaluation.predict import console, predict
from crome.evaluation.report import Example, Score, write_report
from crome.evaluation.score import Grading
from crome.evaluation.sources import folder_of
from crome.evaluation.tasks import get_task, read_records
from crome.features.verbs import CACHING, Caching, enable
from crome.intervals import wilson
from crome.model.attention import attention_picture
from crome.rows import Row
from crome.storage import write_json

ALL = "all"


def evaluate(
    out: Path,
    data: Path | None = None,
    benchmark: str | None = None,
    source: str | None = None,
    checkpoint: str = "crome-tiny",
    adapter: Path | None = None,
    metric: Metric = "exact_match",
    protocol: str | None = None,
    style: Literal["llava", "instructblip", "rank", "official"] | None = None,
    judge: str | None = None,
    judge_prompt: str | None = None,
    judge_runs: int | None = None,
    image_root: Path | None = None,
    on_bad_row: Literal["raise", "skip"] = "raise",
    check_images: bool = True,
    limit: int | None = None,
    baselines: bool = True,
    attention_pictures: bool = True,
    batch_size: int = 32,
    max_new_tokens: int | None = None,
    num_beams: int = 1,
    cache: Caching = CACHING,
    dtype: Literal["bfloat16", "float32", "auto"] = "bfloat16",
    attention: Literal["eager", "sdpa", "flash_attention_2", "auto"] = "auto",
) -> None:
    """Answer a benchmark, or every row of a file, and score the answers.

    A run that was stopped goes on where it was when the same command is given again, to the same
    predictions. Each benchmark is one command: crome evaluate --benchmark mme --source FOLDER.

    Args:
        out: Folder for `predictions.jsonl`, `scores.json` and `report.html`.
        data: Rows with their right answers, as for `crome train`.
        benchmark: Instead of data: mmmu, mme, mmbench, mm-vet, hallusionbench, llava-w, seed-image,
            scienceqa, scienceqa-img, ai2d, vqav2, captions, or rows for your own with choices.
        source: The benchmark's records: a file, a folder or a hub id owner/name[:config]:split.
        checkpoint: A folder, a hub id, or a preset that has weights.
        adapter: Folder of a task adapter to use.
        metric: For data: `exact_match` ignores case and a final full stop; `vqa_accuracy`
            normalises as VQAv2 does.
        protocol: For a benchmark: which of its protocols, its first by default; those with rank in
            their name rank the options by their loss instead of generating.
        style: For a benchmark: wording of the prompts; rank for ranking and llava otherwise.
        judge: For judged benchmarks: the model that grades, at CROME_JUDGE_URL with
            CROME_JUDGE_KEY; without one the answers wait for `crome score`.
        judge_prompt: The benchmark's own judge wording, from the file its authors publish.
        judge_runs: Gradings per response; the authors' number by default.
        image_root: Folder that image paths start from; by default that of the rows or records.
        on_bad_row: Whether a bad row or image stops the run, or is left out and counted.
        check_images: Whether to decode every picture once before the first answer.
        limit: Only the first so many rows.
        baselines: Also answer with blank images and without any, and score constant answers: what
            can be had without looking.
        attention_pictures: Whether the report shows what the Q-Former's queries look at.
        batch_size: Questions answered together.
        max_new_tokens: Longest answer: 32 by default for data, the official one for a benchmark.
        num_beams: Beams; 1 is greedy.
        cache: Features of what is frozen, kept on disk for the next run on the same rows.
        dtype: Type of the frozen towers.
        attention: Implementation inside the language model; see `crome train`.
    """
    positive(limit=limit, batch_size=batch_size, max_new_tokens=max_new_tokens, num_beams=num_beams)
    if adapter is not None:
        adapter = adapter_for(checkpoint, adapter)

    def loaded() -> Loaded:
        model, processor = load(checkpoint, dtype, attention)
        if adapter is not None:
            model.load_adapter(adapter)
        processor = enable(model, processor, cache)
        return model, processor

    used = {"checkpoint": checkpoint, "adapter": str(adapter or "the base's own")}
    if benchmark is None:
        if data is None or source or protocol or style or judge:
            raise InputError(
                "give --data FILE for your own rows, or --benchmark NAME with --source; source, "
                "protocol, style and judge belong to a benchmark."
            )
        evaluate_rows(
            loaded, data, out, read_rows(data, image_root, on_bad_row, check_images)[:limit],
            metric, used, baselines=baselines, attention_pictures=attention_pictures,
            batch_size=batch_size, max_new_tokens=max_new_tokens or 32, num_beams=num_beams,
        )  # fmt: skip
        return
    if data is not None or source is None:
        raise InputError(f"--benchmark {benchmark} takes --source, its records, and no --data.")
    task = get_task(benchmark)
    command = f"crome evaluate --benchmark {benchmark} --source {source} --checkpoint {checkpoint}"
    given = {
        "adapter": adapter, "protocol": protocol, "style": style, "judge": judge, "limit": limit,
        "max_new_tokens": max_new_tokens, "num_beams": num_beams if num_beams > 1 else None,
    }  # fmt: skip
    command += "".join(f" --{name} {value}" for name, value in given.items() if value is not None)
    benchmarks.run(
        task, read_records(task, source)[:limit], loaded, out,
        image_root=image_root or folder_of(source), protocol=protocol, style=style,
        grading=Grading((), judge, judge_prompt, judge_runs), baselines=baselines,
        on_bad_row=on_bad_row, check_images=check_images, batch_size=batch_size,
        max_new_tokens=max_new_tokens, num_beams=num_beams,
        attention_pictures=attention_pictures, facts=used,
        reproduce=f"{command} --out {out}",
    )  # fmt: skip


def evaluate_rows(
    loaded: Callable[[], Loaded],
    data: Path,
    out: Path,
    rows: Sequence[Row],
    metric: Metric,
    used: Mapping[str, str],
    *,
    baselines: bool = True,
    attention_pictures: bool = True,
    batch_size: int = 32,
    max_new_tokens: int = 32,
    num_beams: int = 1,
) -> None:
    """Answers people's own rows as they stand, without a benchmark's wording, and scores them.

    Args:
        loaded: Gives model and processor.
        data: Where the rows are from.
        out: See `evaluate`, as for what follows.
        rows: With their right answers.
        metric: Compares a response with the answer.
        used: Checkpoint and adapter.
        baselines: See `evaluate`.
        attention_pictures: See `evaluate`.
        batch_size: See `evaluate`.
        max_new_tokens: See `evaluate`.
        num_beams: See `evaluate`.
    """
    model, processor = loaded()
    out.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "num_beams": num_beams,
        "note": {"data": f"{data.name}/{hashlib.sha256(data.read_bytes()).hexdigest()[:16]}"},
    }
    looking = baselines and any(row.images for row in rows)
    runs = {
        name: predict(
            model, processor, rows, out / file, sight=sight, title=f"asking: {name}", **settings
        )
        for name, (sight, file) in RUNS.items()
        if name == MODEL or looking
    }
    if baselines:
        common = Counter(row.answer for row in rows).most_common(1)[0][0]
        runs["most frequent answer"] = {row.id: common for row in rows}
    ordered = reversed(runs.items())  # baselines first, what matters last
    scores = [s for run, answers in ordered for s in score_run(run, rows, answers, metric)]
    decoding = "greedy" if num_beams == 1 else f"{num_beams} beams"
    told = {**used, "metric": f"{metric}/{decoding}", "rows": f"{len(rows):,}"}
    write_json(
        out / "scores.json",
        {"protocol": told["metric"], "data": str(data), "rows": len(rows), **used,
         "scores": [asdict(s) for s in scores]},
    )  # fmt: skip
    console.print(score_table(scores, told["metric"]))
    drawn = partial(attention_picture, model, processor) if attention_pictures else None
    write_report(
        out / "report.html",
        title=f"{used['checkpoint']} on {data.name}",
        lead=f"{len(rows):,} rows, {told['metric']}.",
        facts=told,
        scores=scores,
        examples=examples(rows, {MODEL: runs[MODEL]}, metric, drawn),
        reproduce=f"crome evaluate --checkpoint {used['checkpoint']} --data {data} --out {out}",
    )
    console.print(f"Report: {out / 'report.html'}")
    print(json.dumps({s.run: s.value for s in scores if s.group == ALL}))


def score_run(
    run: str, rows: Sequence[Row], answers: dict[str, str], metric: Metric
) -> list[Score]:
    """Accuracy of a run over all rows and by kind, with 95 % Wilson intervals."""
    groups: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        value = METRICS[metric](answers[row.id], row.answer)
        groups[ALL].append(value)
        if row.kind is not None:
            groups[row.kind].append(value)
    return [
        Score(run, group, len(values), sum(values) / len(values), *wilson(sum(values), len(values)))
        for group, values in groups.items()
    ]


def score_table(scores: Sequence[Score], title: str) -> Table:
    """Runs by row, groups by column, in percent with intervals."""
    groups = list(dict.fromkeys(score.group for score in scores))
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for group in groups:
        table.add_column(group, justify="right")
    for run in dict.fromkeys(score.run for score in scores):
        cells = {
            s.group: f"{s.value:.1%} [dim]±{(s.high - s.low) / 2:.1%}[/]"
            for s in scores
            if s.run == run
        }
        table.add_row(run, *(cells.get(group, "") for group in groups))
    return table


def examples(
    rows: Sequence[Row],
    runs: dict[str, dict[str, str]],
    metric: Metric,
    drawn: Callable[[Row], Image.Image | None] | None = None,
) -> list[Example]:
    """Rows with every run's answer, for the report's gallery; `drawn` adds a picture to each."""
    return [
        Example(
            id=row.id,
            question=row.question,
            gold=row.answer,
            answers={run: said[row.id] for run, said in runs.items()},
            correct={
                run: METRICS[metric](said[row.id], row.answer) >= 0.5 for run, said in runs.items()
            },
            kind=row.kind,
            images=row.images,
            drawn=partial(drawn, row) if drawn and row.images else None,
        )
        for row in rows
    ]
