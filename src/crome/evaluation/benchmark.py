"""A model on a benchmark: records → questions with images → predictions → scores → report."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from crome.data.pictures import undecodable
from crome.errors import InputError
from crome.evaluation.compare import paired
from crome.evaluation.predict import Sight, console, predict
from crome.evaluation.predictions import OnBadId, Prediction, align, read_predictions
from crome.evaluation.report import Example, Score, write_report
from crome.evaluation.score import (
    Grading,
    as_report,
    is_judged,
    print_table,
    score_answers,
    score_judged,
)
from crome.evaluation.task import Metric, Record, Scores, Task
from crome.model.attention import attention_picture
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor
from crome.rows import Row
from crome.storage import write_json

IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg", ".webp", ".JPG", ".PNG")
MODEL = "model"
# What is shown of the images, and the file of the run; the baselines say what is had unseen.
RUNS: dict[str, tuple[Sight, str]] = {
    MODEL: ("shown", "predictions.jsonl"),
    "blank image": ("blank", "predictions-blank.jsonl"),
    "no image": ("none", "predictions-no-image.jsonl"),
}
FEWEST = 5  # units of a part that gets bars of its own
KINDS = ("category", "subject", "subtask", "type", "kind")


@dataclass(frozen=True)
class Asking:
    """How a benchmark is put to a model.

    Attributes:
        protocol: Its name, None for the judge's.
        style: Of the prompts.
        ranked: Whether candidates are ranked instead of generating.
        per_token: Whether ranked losses are means over tokens.
    """

    protocol: str | None
    style: str
    ranked: bool
    per_token: bool


def asking(task: Task, protocol: str | None, style: str | None, grading: Grading) -> Asking:
    """Mode and style that a protocol wants; ranking protocols have "rank" in their name.

    Raises:
        InputError: The task has no such protocol.
    """
    if is_judged(task, protocol, grading):
        return Asking(None, style or "llava", False, False)
    protocol = protocol or next(iter(task.protocols))
    if protocol not in task.protocols:
        raise InputError(
            f"{task.name} has no protocol {protocol!r}: choose from {', '.join(task.protocols)}."
        )
    ranked = "rank" in protocol
    default = "rank" if ranked else "llava"
    return Asking(protocol, style or default, ranked, protocol.endswith("per-token"))


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
        protocol: See `asking`.
        style: See `asking`.
        grading: For judged benchmarks.
        baselines: Whether the model is asked with blank images and without images too.
        on_bad_row: Whether an image that cannot be read stops the run, or its record is left out
            and counted as wrong.
        check_images: Whether to decode every image first.
        batch_size: Questions answered together.
        max_new_tokens: Longest answer; the task's own when None.
        num_beams: Beams; 1 is greedy.
        attention_pictures: Whether the report draws the Q-Former's attention.
        facts: To tell in the report.
        reproduce: The command, for the report.

    Raises:
        InputError: The records cannot be asked, or an image cannot be read.
    """
    how = asking(task, protocol, style, grading)
    rows = questions(task, records, how, image_root, out / "images")
    if check_images:
        rows = readable(rows, on_bad_row)
    model, processor = load()
    longest = max_new_tokens or task.max_new_tokens
    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "max_new_tokens": longest,
        "num_beams": num_beams,
        "ranked": how.ranked,
        "per_token": how.per_token,
        "note": {"style": how.style, "data": f"{task.name}/{digest(rows)}"},
    }
    seen = any(row.images for row in rows)
    runs: dict[str, dict[str, Prediction]] = {}
    bad_ids: dict[str, int] = {}
    on_bad_id: OnBadId = "report" if on_bad_row == "skip" else "error"
    for name, (sight, file) in RUNS.items():
        if name == MODEL or (baselines and seen):
            predict(
                model, processor, rows, out / file, sight=sight, title=f"asking: {name}", **settings
            )
            ids = [record["id"] for record in records]
            runs[name], bad_ids = align(ids, read_predictions(out / file), on_bad_id)
    scored, constants = score_runs(task, records, runs, how.protocol, grading, out)
    told = counts(processor, rows, how, longest, num_beams) | dict(facts or {})
    if scored:
        told |= tell_scores(task, records, scored, constants, bad_ids, told, out)
    else:
        console.print(
            f"{task.name} needs a judge. The predictions are there; grade them with `crome score "
            f"{task.name} --predictions {out / RUNS[MODEL][1]} --references … --judge MODEL`, or "
            "give --judge here."
        )
    picture = partial(attention_picture, model, processor) if attention_pictures else None
    write_report(
        out / "report.html",
        title=f"{told['checkpoint']} on {task.name}" if "checkpoint" in told else task.name,
        lead=f"{len(rows):,} of {len(records):,} records asked"
        + (f"; {next(iter(scored[MODEL].metrics))}." if scored else "; not scored yet."),
        facts=told,
        scores=bars(scored, constants),
        examples=examples(records, rows, runs, scored, picture),
        reproduce=reproduce,
    )
    console.print(f"Report: {out / 'report.html'}")


def questions(
    task: Task, records: Sequence[Record], how: Asking, image_root: Path, kept: Path
) -> list[Row]:
    """The records as rows: the prompt as the question, candidates as choices.

    Args:
        task: The benchmark.
        records: Its records.
        how: Style and mode.
        image_root: Folder that image paths start from.
        kept: Where images that records carry inside are written, each once.

    Raises:
        InputError: A record has no question, or nothing to rank.
    """
    rows = []
    for record in records:
        asked = task.question(record, how.style)
        if not record["question"]:
            raise InputError(
                f"record {record['id']} has no question text: these references can score "
                "predictions, and a model needs the benchmark's records to be asked."
            )
        if how.ranked and not asked.candidates:
            raise InputError(f"record {record['id']} has no candidates to rank.")
        images = tuple(image_file(image, image_root, kept) for image in asked.images)
        rows.append(Row(images, asked.prompt, gold(record), asked.id, asked.candidates))
    return rows


def image_file(image: str | bytes, root: Path, kept: Path) -> Path:
    """The file of a record's image: encoded ones are written, re-encoded ones found by stem."""
    if isinstance(image, bytes):
        path = kept / hashlib.sha256(image).hexdigest()[:24]
        if not path.exists():
            kept.mkdir(parents=True, exist_ok=True)
            partly = path.with_suffix(".part")
            partly.write_bytes(image)
            partly.replace(path)
        return path
    path = root / image
    if not path.is_file():  # benchmarks are handed on with their images as JPEG
        others = (path.with_suffix(suffix) for suffix in IMAGE_SUFFIXES)
        return next((other for other in others if other.is_file()), path)
    return path


def readable(rows: Sequence[Row], on_bad_row: Literal["raise", "skip"]) -> list[Row]:
    """The rows whose images can be read.

    Raises:
        InputError: One cannot, unless told to skip, or none can.
    """
    first_use: dict[Path, str] = {}
    for row in rows:
        for image in row.images:
            assert isinstance(image, Path)
            first_use.setdefault(image, f"record {row.id}")
    broken = undecodable(first_use)
    kept = [row for row in rows if broken.keys().isdisjoint(row.images)]
    if broken and (on_bad_row == "raise" or not kept):
        raise InputError(
            f"{len(broken)} of {len(first_use)} images cannot be read, first "
            f"{next(iter(broken.values())).removesuffix('.')}. --image_root names the folder that "
            "image paths start from; --on_bad_row skip counts these records as wrong."
        )
    for told in list(broken.values())[:10]:
        console.print(f"left out, counted as wrong: {told}", style="yellow", markup=False)
    return kept


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


def tell_scores(
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
    write_json(out / "scores.json", report | {"settings": settings})
    for warning in report["warnings"]:
        console.print(f"warning: {warning}", style="yellow", highlight=False, markup=False)
    print_table(report, Console(stderr=True, markup=False))  # names hold brackets
    headline = next(iter(report["metrics"]))
    values = {name: of.metrics[headline].value for name, of in scored.items()}
    print(json.dumps({headline: values | {k: v[headline] for k, v in constants.items()}}))
    return verdict(scored, report)


def counts(
    processor: CromeProcessor, rows: Sequence[Row], how: Asking, longest: int, num_beams: int
) -> dict[str, str]:
    """What is worth knowing about the asking, for the report."""
    cut = sum(
        len(processor.tokenizer(row.question, add_special_tokens=False)["input_ids"])
        > processor.max_question_tokens
        for row in rows
    )
    mode = "ranking by summed loss" if how.ranked else f"up to {longest} tokens"
    if how.ranked and how.per_token:
        mode = "ranking by loss per token"
    elif not how.ranked:
        mode = ("greedy, " if num_beams == 1 else f"{num_beams} beams, ") + mode
    told = {"prompts": how.style, "answers": mode}
    if cut:
        told["cut prompts"] = (
            f"{cut} of {len(rows)} prompts are longer than the {processor.max_question_tokens} "
            "tokens this model takes and lost their beginning"
        )
    return told


def verdict(scored: Mapping[str, Scores], report: Mapping[str, Any]) -> dict[str, str]:
    """Counts and warnings, and whether the images made a difference."""
    told = {"counts": ", ".join(f"{name} {n}" for name, n in report["counts"].items() if n)}
    for name in ("blank image", "no image"):
        if name in scored and scored[name].rows.keys() == scored[MODEL].rows.keys():
            test = paired(scored[name].rows, scored[MODEL].rows)
            told[f"against {name}"] = (
                f"better on {len(test.gained)}, worse on {len(test.lost)}, {test.test} "
                f"p = {test.p_value:.2g}"
            )
    warnings = report["warnings"]
    return told | ({"warnings": "; ".join(warnings)} if warnings else {})


def bars(scored: Mapping[str, Scores], constants: Mapping[str, Mapping[str, float]]) -> list[Score]:
    """One bar per metric and run, constants first and the model last."""
    if not scored:
        return []
    made = []
    for key in charted(scored[MODEL].metrics):
        metric = scored[MODEL].metrics[key]
        for name, values in constants.items():
            if key in values:
                made.append(bar(name, key, Metric(values[key], metric.n, metric.unit), metric))
        for name in reversed(RUNS):
            if name in scored and key in scored[name].metrics:
                made.append(bar(name, key, scored[name].metrics[key], metric))
    return made


def charted(metrics: Mapping[str, Metric]) -> list[str]:
    """The headline, and the parts that say something it does not; `scores.json` has them all."""
    first, *parts = metrics
    return [first, *(p for p in parts if metrics[p].n >= FEWEST and metrics[p] != metrics[first])]


def bar(run: str, group: str, metric: Metric, like: Metric) -> Score:
    """A metric on the scale 0 to 1, with its own number as the label."""
    top = {"fraction": 1.0, "percent": 100.0}.get(metric.unit) or like.maximum or 1.0
    low, high = metric.interval or (float("nan"), float("nan"))
    labels = {"percent": f"{metric.value:.1f} %", "points": f"{metric.value:.1f} of {top:.0f}"}
    value, low, high = (
        min(1.0, max(0.0, x / top)) if x == x else x for x in (metric.value, low, high)
    )
    return Score(run, group, metric.n, value, low, high, labels.get(metric.unit))


def examples(
    records: Sequence[Record],
    rows: Sequence[Row],
    runs: Mapping[str, Mapping[str, Prediction]],
    scored: Mapping[str, Scores],
    picture: Callable[[Row], Any] | None = None,
) -> list[Example]:
    """Records with question, images, prompt and answers, for the gallery."""
    asked = {row.id: row for row in rows}
    made = []
    for record in records:
        identity = record["id"]
        if identity not in asked:
            continue
        row, right = asked[identity], outcome(scored.get(MODEL), record)
        made.append(
            Example(
                id=identity,
                question=record["question"],
                gold=row.answer,
                answers={
                    name: said[identity].response
                    for name, said in reversed(list(runs.items()))
                    if identity in said
                },
                correct={} if right is None else {MODEL: right},
                kind=next((str(record[k]) for k in KINDS if record.get(k)), None),
                images=row.images,
                prompt=runs[MODEL][identity].prompt,
                replies={
                    name: reply
                    for name, scores in scored.items()
                    if (reply := scores.replies.get(identity))
                },
                drawn=partial(picture, row) if picture and row.images else None,
            )
        )
    return made


def outcome(scores: Scores | None, record: Record) -> bool | None:
    """Whether a record, or the group it belongs to, is right; None where grades are no shares."""
    if scores is None:
        return None
    value = scores.rows.get(record["id"], scores.rows.get(record.get("group", "")))
    return None if value is None or not 0 <= value <= 1 else value >= 0.5


def gold(record: Record) -> str:
    """The right answer as a person would write it."""
    answer = record.get("answer", record.get("reference"))
    options = record.get("options") or {}
    if isinstance(answer, str) and answer in options:
        return f"{answer}. {options[answer]}"
    return " | ".join(map(str, answer)) if isinstance(answer, list | tuple) else str(answer or "")


def digest(rows: Sequence[Row]) -> str:
    """A short hash of ids, prompts and candidates."""
    text = json.dumps([(row.id, row.question, row.choices) for row in rows])
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
