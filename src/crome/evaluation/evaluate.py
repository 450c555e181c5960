"""`crome evaluate`: rows → predictions → scores → report."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from crome.data.images import load_image
from crome.data.rows import Row, read_rows
from crome.errors import InputError, positive
from crome.evaluation.answers import METRICS, Metric
from crome.evaluation.predictions import Prediction, PredictionWriter, read_predictions
from crome.evaluation.report import Example, Score, write_report
from crome.intervals import wilson
from crome.model import checkpoint as checkpoints
from crome.model.loading import load
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor
from crome.serving.chat import answer

console = Console(stderr=True)
BLANK = (127, 127, 127)
ALL = "all"


def evaluate(
    data: Path,
    out: Path,
    checkpoint: str = "crome-tiny",
    adapter: Path | None = None,
    metric: Metric = "exact_match",
    image_root: Path | None = None,
    on_bad_row: Literal["raise", "skip"] = "raise",
    check_images: bool = True,
    limit: int | None = None,
    baselines: bool = True,
    batch_size: int = 32,
    max_new_tokens: int = 32,
    dtype: Literal["bfloat16", "float32", "auto"] = "bfloat16",
    attention: Literal["eager", "sdpa", "flash_attention_2", "auto"] = "auto",
) -> None:
    """Answer every row of a file and score the answers.

    A run that was stopped goes on where it was when the same command is given again.

    Args:
        data: Rows with their right answers, as for `crome train`.
        out: Folder for `predictions.jsonl`, `scores.json` and `report.html`.
        checkpoint: A folder, a hub id, or a preset that has weights.
        adapter: Folder of a task adapter to use.
        metric: `exact_match` ignores case and a final full stop; `vqa_accuracy` normalises as
            VQAv2 does.
        image_root: Folder that image paths in `data` start from; by default the file's own.
        on_bad_row: Whether a bad row stops the run, or is left out and counted.
        check_images: Whether to decode every picture once before the first answer.
        limit: Only the first so many rows.
        baselines: Also answer with blank images, and score the most frequent answer: what can be
            had without looking.
        batch_size: Questions answered together.
        max_new_tokens: Longest answer.
        dtype: Type of the frozen towers.
        attention: Implementation inside the language model; see `crome train`.
    """
    positive(limit=limit, batch_size=batch_size, max_new_tokens=max_new_tokens)
    rows = read_rows(data, image_root, on_bad_row, check_images)[:limit]
    model, processor = load(checkpoint, dtype, attention)
    if adapter is not None:
        model.load_adapter(adapter)
    out.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
    settings["data"] = f"{data.name}/{hashlib.sha256(data.read_bytes()).hexdigest()[:16]}"
    runs = {"model": predict(model, processor, rows, out / "predictions.jsonl", **settings)}
    if baselines and any(row.images for row in rows):
        blank = out / "predictions-blank.jsonl"
        runs["blank image"] = predict(model, processor, rows, blank, blank=True, **settings)
    if baselines:
        common = Counter(row.answer for row in rows).most_common(1)[0][0]
        runs["most frequent answer"] = {row.id: common for row in rows}
    ordered = reversed(runs.items())  # baselines first, what matters last
    scores = [s for run, answers in ordered for s in score_run(run, rows, answers, metric)]
    protocol = f"{metric}/greedy"
    checkpoints.write_json(
        out / "scores.json",
        {"protocol": protocol, "data": str(data), "rows": len(rows), "checkpoint": checkpoint,
         "adapter": str(adapter or ""), "scores": [asdict(s) for s in scores]},
    )  # fmt: skip
    console.print(score_table(scores, protocol))
    write_report(
        out / "report.html",
        title=f"{checkpoint} on {data.name}",
        lead=f"{len(rows):,} rows, {protocol}.",
        facts={"checkpoint": checkpoint, "adapter": str(adapter or "the base's own"),
               "metric": protocol, "rows": f"{len(rows):,}"},
        scores=scores,
        examples=examples(rows, {"model": runs["model"]}, metric),
        reproduce=f"crome evaluate --checkpoint {checkpoint} --data {data} --out {out}",
    )  # fmt: skip
    console.print(f"Report: {out / 'report.html'}")
    print(json.dumps({s.run: s.value for s in scores if s.group == ALL}))


def predict(
    model: CromeForConditionalGeneration,
    processor: CromeProcessor,
    rows: Sequence[Row],
    path: Path,
    *,
    batch_size: int = 32,
    max_new_tokens: int = 32,
    blank: bool = False,
    data: str | None = None,
    title: str = "answering",
) -> dict[str, str]:
    """Answers rows greedily into a predictions file that an interrupted run resumes.

    Args:
        model: In eval mode.
        processor: Of the model.
        rows: With unique ids.
        path: The predictions file.
        batch_size: Questions answered together, those on one image side by side.
        max_new_tokens: Longest answer.
        blank: Whether every image is replaced by a grey one of its size.
        data: Name of the rows, so that a file is not resumed with others that have the same ids.
        title: Of the progress bar.

    Returns:
        Response by row id.

    Raises:
        InputError: Two rows share an id, or the file was made with other weights or settings.
    """
    repeated = [name for name, n in Counter(row.id for row in rows).items() if n > 1]
    if repeated:
        raise InputError(f"{len(repeated)} ids stand on several rows, such as {repeated[0]!r}.")
    generation: dict[str, Any] = {
        "do_sample": False,
        "max_new_tokens": max_new_tokens,
        "blank_images": blank,
    }
    if data is not None:
        generation["data"] = data
    identity = checkpoints.base_identity(model)
    weights = f"{identity['bridge_fingerprint']}/{_adapter_fingerprint(model)}"
    with PredictionWriter(path) as writer, progress() as bar:
        writer.expect(weights, generation)
        task = bar.add_task(title, total=len(rows))
        left = [row for row in rows if row.id not in writer.done]
        bar.advance(task, len(rows) - len(left))
        for batch in batches(left, batch_size):
            shown = [_blank(row) for row in batch] if blank else batch
            said = answer(model, processor, shown, max_new_tokens=max_new_tokens)
            for row, text in zip(batch, said, strict=True):
                prompt = processor.render(row.question, bool(row.images), row.history)
                writer.write(
                    Prediction(row.id, prompt, text, generation=generation, checkpoint=weights)
                )
            bar.advance(task, len(batch))
    return {p.id: p.response for p in read_predictions(path)}


def batches(rows: Sequence[Row], size: int) -> Iterator[list[Row]]:
    """Batches with the rows of an image side by side, and short questions apart from long ones."""
    order = sorted(rows, key=lambda row: (len(row.question) // 64, str(row.images)))
    for start in range(0, len(order), size):
        yield order[start : start + size]


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


def examples(rows: Sequence[Row], runs: dict[str, dict[str, str]], metric: Metric) -> list[Example]:
    """Rows with every run's answer, for the report's gallery."""
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
        )
        for row in rows
    ]


def progress() -> Progress:
    """A progress bar with counts and the time left, on stderr."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console, transient=True,
    )  # fmt: skip


def _blank(row: Row) -> Row:
    sizes = (load_image(image).size for image in row.images)
    grey: Any = tuple(Image.new("RGB", size, BLANK) for size in sizes)
    return Row(grey, row.question, row.answer, row.id, row.choices, row.history, row.kind)


def _adapter_fingerprint(model: CromeForConditionalGeneration) -> str:
    adapter = model.get_adapter(model.active_adapter)
    return "no adapter" if adapter is None else checkpoints.fingerprint(adapter.state_dict())
