"""`crome ablate`: the paper's ablations (arXiv 2408.06610, Tables 5 and 7) as switches, with seeds.

Every variant starts from the towers, Q-Former and projections of one base with a fresh adapter of
its own kind, learns the same rows in the same order, and answers the same held-out questions.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.table import Table

from crome.checkpoints.loading import load
from crome.data.packaged import TASKS, balanced, question_only_answers
from crome.errors import InputError, positive
from crome.evaluation.answers import METRICS
from crome.evaluation.predict import Sight, answers
from crome.evaluation.report.page import Score, write_report
from crome.features.verbs import enable
from crome.intervals import over_runs
from crome.model.configuration import new_adapter
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor
from crome.rows import Row
from crome.storage import write_json
from crome.studies.retention import finished, weights
from crome.studies.tuning import Way, open_parameters, tune
from crome.training.progress import console

ALL, BLANK, QUESTION_ONLY = "all", "blank image", "question only"
SIGHTS: tuple[Sight, Sight] = ("shown", "blank")


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        train: What learns the task: `adapter` alone, the whole `bridge`, the `projections` with the
            adapter, or `lora` on the language model.
        adapter: Whether there is one; without it the model is BLIVA.
        gated: Whether the adapter has its gate.
        shared_up: Whether both branches share the up-projection.
        bottleneck: Inner width m.
        pretrain: Whether projections and adapter learn a few rows first.
        data: How many times the rows, and steps.
    """

    train: Literal["adapter", "bridge", "projections", "lora"] = "bridge"
    adapter: bool = True
    gated: bool = True
    shared_up: bool = True
    bottleneck: int = 256
    pretrain: bool = True
    data: int = 1

    def __post_init__(self) -> None:
        positive(bottleneck=self.bottleneck, data=self.data)
        if self.train == "adapter" and not self.adapter:
            raise InputError("a variant without adapter cannot train the adapter alone.")


# The rows of Table 5 that train the bridge, then those that tune a task, then Table 7.
PAPER: dict[str, Variant] = {
    "no adapter (BLIVA)": Variant(adapter=False),
    "ungated": Variant(gated=False),
    "gated": Variant(),
    "gated without pretraining": Variant(pretrain=False),
    "gated with data ×4": Variant(data=4),
    "adapter alone": Variant("adapter"),
    "adapter alone ungated": Variant("adapter", gated=False),
    "adapter alone with two up-projections": Variant("adapter", shared_up=False),
    "adapter alone with data ×4": Variant("adapter", data=4),
    "adapter alone m = 64": Variant("adapter", bottleneck=64),
    "adapter alone m = 128": Variant("adapter", bottleneck=128),
    "adapter alone m = 512": Variant("adapter", bottleneck=512),
    "projections alone": Variant("projections", adapter=False),
    "LoRA": Variant("lora", adapter=False),
}


def ablate(
    out: Path = Path("crome-ablation"),
    variants: dict[str, Variant] | None = None,
    only: list[str] | None = None,
    checkpoint: str = "crome-tiny",
    task: Literal["easy-vqa", "textile"] = "easy-vqa",
    seeds: list[int] | None = None,
    steps: int = 40,
    pretrain_steps: int = 10,
    batch_size: int = 32,
    adapter_rate: float = 1e-3,
    bridge_rate: float = 3e-4,
    lora_rate: float = 5e-4,
    test_questions: int = 600,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
) -> None:
    """Run the paper's ablations on packaged data, with several seeds, and print its tables' shape.

    Each run is kept: the same command again goes on with those that are missing. The table is
    printed after each seed.

    Args:
        out: Folder for one file a run, `ablation.json` and `report.html`.
        variants: Name and switches of each row; the paper's by default.
        only: Some of the variants, by name.
        checkpoint: The base: its towers, Q-Former and projections.
        task: What is learnt: coloured shapes, or defects of woven fabric.
        seeds: Of the order of rows and the fresh adapter; 0, 1 and 2 by default.
        steps: Training steps at data ×1.
        pretrain_steps: Steps of projections and adapter before, on the rows of all kinds but
            yes/no.
        batch_size: Rows a step.
        adapter_rate: Peak rate where the adapter learns alone.
        bridge_rate: Peak rate where the bridge or its projections learn.
        lora_rate: Peak rate of LoRA.
        test_questions: Held-out questions, the same for all runs.
        dtype: Type of the frozen towers.
    """
    positive(
        steps=steps, pretrain_steps=pretrain_steps, batch_size=batch_size,
        test_questions=test_questions,
    )  # fmt: skip
    grid = chosen(variants or PAPER, only)
    train_rows, test_rows = TASKS[task]("train"), TASKS[task]("test")
    learnt = balanced(train_rows)
    tested = random.Random(0).sample(test_rows, min(test_questions, len(test_rows)))
    rates = {"adapter": adapter_rate, "lora": lora_rate}
    common = {
        "checkpoint": checkpoint, "weights": weights(checkpoint),
        "task": task, "steps": steps, "pretrain_steps": pretrain_steps,
        "batch_size": batch_size, "balanced": True, "test_questions": len(tested), "dtype": dtype,
    }  # fmt: skip
    blind = question_only(train_rows, tested)

    def result(name: str, variant: Variant, seed: int) -> dict[str, Any]:
        rate = rates.get(variant.train, bridge_rate)
        settings = {**common, "variant": asdict(variant), "rate": rate, "seed": seed}
        path = out / "runs" / f"{slug(name)}-{seed}.json"
        if (found := finished(path, settings)) is None:
            console.print(f"Seed {seed}: {name}", highlight=False)
            model, processor = load(checkpoint, dtype)
            processor = enable(model, processor)
            found = {"settings": settings} | run(
                model, processor, variant, learnt, tested, steps=steps, rate=rate,
                pretrain_steps=pretrain_steps, pretrain_rate=bridge_rate, batch_size=batch_size,
                seed=seed,
            )  # fmt: skip
            write_json(path, found)
        return found

    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in grid}
    for seed in seeds or [0, 1, 2]:  # whole seeds, so that what is there at any time compares
        for name, variant in grid.items():
            runs[name].append(result(name, variant, seed))
        rows = {name: summarise(found) for name, found in runs.items()}
        write_json(out / "ablation.json", {**common, "rows": rows, QUESTION_ONLY: blind})
        console.print(table(rows, blind))
        report(out, rows, blind, common, runs)
    console.print(f"Report: {out / 'report.html'}")
    print(json.dumps({name: row["accuracy"][ALL] for name, row in rows.items()}))


def chosen(variants: Mapping[str, Variant], only: Sequence[str] | None) -> dict[str, Variant]:
    """The variants of those names, all by default.

    Raises:
        InputError: There is none of a name.
    """
    if unknown := [name for name in only or () if name not in variants]:
        raise InputError(f"no variant {unknown[0]!r}; there are {', '.join(variants)}.")
    return {name: v for name, v in variants.items() if only is None or name in only}


def run(
    model: CromeForConditionalGeneration,
    processor: CromeProcessor,
    variant: Variant,
    train_rows: Sequence[Row],
    tested: Sequence[Row],
    *,
    steps: int,
    rate: float,
    pretrain_steps: int,
    pretrain_rate: float,
    batch_size: int,
    seed: int,
) -> dict[str, Any]:
    """Trains one variant and asks the held-out questions, with pictures and with blank ones.

    Returns:
        "right" and "blind", 0 or 1 for each question, "kinds", what `tune` returns, and
        "cpu_seconds" of both phases together.
    """
    dress(model, variant, seed)
    spent = 0.0
    if variant.pretrain and variant.train != "lora":
        way: Way = "projections"
        simple = [row for row in train_rows if row.kind != "yes/no"] or list(train_rows)
        first = tune(
            model, processor, simple, open_parameters(model, way), steps=pretrain_steps,
            batch_size=batch_size, learning_rate=pretrain_rate, seed=seed, title="pretraining",
        )  # fmt: skip
        spent = first["cpu_seconds"]
    tuned = tune(
        model, processor, train_rows, open_parameters(model, variant.train),
        steps=steps * variant.data, batch_size=batch_size, learning_rate=rate, seed=seed,
        title=variant.train,
    )  # fmt: skip
    model.eval()
    right, blind = (
        [
            METRICS["exact_match"](text, row.answer)
            for text, row in zip(
                answers(model, processor, tested, sight=sight), tested, strict=True
            )
        ]
        for sight in SIGHTS
    )
    return tuned | {
        "right": right,
        "blind": blind,
        "kinds": [row.kind for row in tested],
        "cpu_seconds": round(tuned["cpu_seconds"] + spent, 1),
    }


def dress(model: CromeForConditionalGeneration, variant: Variant, seed: int) -> None:
    """Gives a base a fresh adapter of the variant's kind, or none."""
    config = model.config
    config.adapter_bottleneck = variant.bottleneck if variant.adapter else None
    config.adapter_gated, config.adapter_shared_up = variant.gated, variant.shared_up
    if hasattr(model, "adapter"):
        del model.adapter
    if variant.adapter:
        torch.manual_seed(seed)
        model.adapter = new_adapter(config).to(model.device)


def question_only(train_rows: Sequence[Row], tested: Sequence[Row]) -> dict[str, float]:
    """Accuracy of the most frequent training answer to each question, by kind."""
    said = question_only_answers(train_rows, tested)
    right = [float(text == row.answer) for text, row in zip(said, tested, strict=True)]
    return by_kind(right, [row.kind for row in tested])


def by_kind(right: Sequence[float], kinds: Sequence[str | None]) -> dict[str, float]:
    """Accuracy over all questions and by kind."""
    groups: dict[str, list[float]] = {ALL: list(right)}
    for value, kind in zip(right, kinds, strict=True):
        if kind is not None:
            groups.setdefault(kind, []).append(value)
    return {name: float(np.mean(values)) for name, values in sorted(groups.items())}


def summarise(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean over seeds with its 95 % interval, by kind, and what the row costs."""
    each = [by_kind(run["right"], run["kinds"]) for run in found]
    blind = [float(np.mean(run["blind"])) for run in found]
    return {
        "seeds": len(found),
        "trained": found[0]["parameters"],
        "rows": found[0]["rows"],
        "cpu_seconds": float(np.mean([run["cpu_seconds"] for run in found])),
        "accuracy": {kind: float(np.mean([one[kind] for one in each])) for kind in each[0]},
        "interval": {kind: over_runs([one[kind] for one in each]) for kind in each[0]},
        "each": [one[ALL] for one in each],
        BLANK: float(np.mean(blind)),
    }


def table(rows: Mapping[str, Mapping[str, Any]], blind: Mapping[str, float]) -> Table:
    """Variants by row, in percent."""
    kinds = list(blind)
    made = Table(title="Ablations, exact match on held-out pictures", title_justify="left")
    for name in ("", "trained", "rows", "CPU-s", *kinds, BLANK):
        made.add_column(name, justify="right" if name else "left")
    made.add_row(QUESTION_ONLY, "", "", "", *(f"{100 * blind[kind]:.1f}" for kind in kinds), "")
    for name, row in rows.items():
        cells = []
        for kind in kinds:
            low, high = row["interval"][kind]
            spread = "" if low != low else f" [dim]±{50 * (high - low):.1f}[/]"
            cells.append(f"{100 * row['accuracy'][kind]:.1f}{spread}")
        cost = (f"{row['trained']:,}", f"{row['rows']:,}", f"{row['cpu_seconds']:.0f}")
        made.add_row(name, *cost, *cells, f"{100 * row[BLANK]:.1f}")
    return made


def report(
    out: Path,
    rows: Mapping[str, Mapping[str, Any]],
    blind: Mapping[str, float],
    common: Mapping[str, Any],
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
    """The same as bars, a group for each kind of question, with the curve of the first run."""
    none = float("nan")
    first = next(iter(runs.values()))
    kinds = first[0]["kinds"]
    scores = []
    for kind, share in blind.items():
        n = len(kinds) if kind == ALL else kinds.count(kind)
        scores.append(Score(QUESTION_ONLY, kind, n, share, none, none))
        for name, row in rows.items():
            low, high = (
                end if end != end else min(1, max(0, end)) for end in row["interval"][kind]
            )
            scores.append(Score(name, kind, n, row["accuracy"][kind], low, high))
    costs = {
        name: f"{row['trained']:,} parameters, {row['rows']:,} rows, {row['cpu_seconds']:.0f} CPU-s"
        for name, row in rows.items()
    }
    write_report(
        out / "report.html",
        title=f"Ablations on {common['task']}",
        lead=f"Variants: {len(rows)}; seeds: {len(first)}; held-out questions: {len(kinds)}. "
        "Intervals are over seeds.",
        facts={k: str(v) for k, v in common.items()} | costs,
        scores=scores,
        curve=first[0]["curve"],
    )


def slug(name: str) -> str:
    """A file name for a variant."""
    return "".join(c if c.isalnum() else "-" for c in name.replace("×", "x")).strip("-")
