"""`crome ablate`: the paper's ablations (arXiv 2408.06610, Tables 5 and 7) as switches, with seeds.

Every variant starts from the towers, Q-Former and projections of one base with a fresh adapter of
its own kind, learns the same rows in the same order, and answers the same held-out questions. The
grid `rows` asks instead how many rows a task needs.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from crome.checkpoints.loading import load
from crome.checkpoints.vlm import refuse_vlm
from crome.data.packaged import TASKS, balanced, by_picture, question_only_answers
from crome.errors import positive
from crome.features.verbs import enable
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor
from crome.rows import Row
from crome.storage import write_json
from crome.studies.ablation_report import (
    claims_table,
    curve_plot,
    differences,
    report,
    summarise,
    table,
)
from crome.studies.runs import device_settings, exact_matches, finished, scored, weights
from crome.studies.tuning import open_parameters, tune
from crome.studies.variants import Grid, Variant, chosen, dress, grid_of, slug
from crome.training.arguments import trainable_device
from crome.training.progress import console


def ablate(
    out: Path = Path("crome-ablation"),
    grid: Grid = "paper",
    variants: dict[str, Variant] | None = None,
    only: list[str] | None = None,
    checkpoint: str = "crome-tiny",
    task: Literal["easy-vqa", "textile"] = "easy-vqa",
    seeds: list[int] | None = None,
    steps: int = 40,
    pretrain_steps: int = 10,
    batch_size: int = 24,
    adapter_rate: float = 1e-3,
    bridge_rate: float = 3e-4,
    lora_rate: float = 5e-4,
    prompt_rate: float = 1e-2,
    full_rate: float = 5e-5,
    test_questions: int = 1200,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    device: str = "auto",
) -> None:
    """Run the paper's ablations on packaged data, with several seeds, and print its tables' shape.

    Each run is kept: the same command again goes on with those that are missing. The table is
    printed after each seed.

    Args:
        out: Folder for one file a run, `ablation.json`, `report.html` and, of the grid `rows`,
            `rows.png`.
        grid: The rows of the paper's tables, or accuracy by the number of rows to learn from.
        variants: Name and switches of each row, instead of a grid.
        only: Some of the variants, by name.
        checkpoint: The base: its towers, Q-Former and projections.
        task: What is learnt: coloured shapes, or defects of woven fabric.
        seeds: Seeds of the choice and order of rows and the fresh adapter; 0, 1 and 2 by default.
        steps: Training steps at data ×1.
        pretrain_steps: Steps of projections and adapter before, on the rows of all kinds but
            yes/no.
        batch_size: Rows a step.
        adapter_rate: Peak rate where the adapter learns alone.
        bridge_rate: Peak rate where the bridge or its projections learn.
        lora_rate: Peak rate of LoRA.
        prompt_rate: Peak rate of a soft prompt.
        full_rate: Peak rate where the language model learns.
        test_questions: Least number of held-out questions, the same for all runs; pictures are
            taken with all their questions.
        dtype: Type of the frozen towers.
        device: cpu, cuda or mps; by default a GPU of CUDA if there is one.
    """
    positive(
        steps=steps, pretrain_steps=pretrain_steps, batch_size=batch_size,
        test_questions=test_questions,
    )  # fmt: skip
    refuse_vlm(checkpoint, "crome ablate")
    place = trainable_device(device)
    wanted = chosen(variants or grid_of(grid), only)
    train_rows, test_rows = TASKS[task]("train"), TASKS[task]("test")
    learnt, tested = balanced(train_rows), by_picture(test_rows, test_questions, seed=0)
    rates = {
        "adapter": adapter_rate, "lora": lora_rate, "lora-all": lora_rate, "full": full_rate,
        "prompt": prompt_rate, "prompt-long": prompt_rate,
    }  # fmt: skip
    common = {
        "checkpoint": checkpoint, "weights": weights(checkpoint),
        "task": task, "steps": steps, "pretrain_steps": pretrain_steps,
        "batch_size": batch_size, "balanced": True, "test_questions": len(tested), "dtype": dtype,
        **device_settings(place),
    }  # fmt: skip
    pictures = [str(row.images) for row in tested]
    kinds = [row.kind for row in tested]

    def result(name: str, variant: Variant, seed: int) -> dict[str, Any]:
        rate = rates.get(variant.train, bridge_rate)
        settings = {**common, "variant": asdict(variant), "rate": rate, "seed": seed}
        path = out / "runs" / f"{slug(name)}-{seed}.json"
        if (found := finished(path, settings)) is None:
            console.print(f"Seed {seed}: {name}", highlight=False)
            model, processor = load(checkpoint, dtype, device=device)
            processor = enable(model, processor)
            rows = (
                by_picture(learnt, variant.rows, seed)[: variant.rows] if variant.rows else learnt
            )
            found = {"settings": settings} | run(
                model, processor, variant, rows, tested, steps=steps, rate=rate,
                pretrain_steps=pretrain_steps, pretrain_rate=bridge_rate, batch_size=batch_size,
                seed=seed,
            )  # fmt: skip
            write_json(path, found)
        return found | {"kinds": kinds}

    blind = scored(question_only_answers(train_rows, tested), tested)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in wanted}
    for seed in seeds or [0, 1, 2]:  # whole seeds, so that what is there at any time compares
        for name, variant in wanted.items():
            runs[name].append(result(name, variant, seed))
        rows = {name: summarise(found) for name, found in runs.items()}
        compared = differences(runs, pictures)
        write_json(
            out / "ablation.json", {**common, "rows": rows, "differences": compared, "blind": blind}
        )
        console.print(table(rows, blind, kinds))
        if compared:
            console.print(claims_table(compared))
        report(out, rows, blind, common, runs, kinds)
        curve_plot(out / "rows.png", wanted, rows, task)
    console.print(f"Report: {out / 'report.html'}", markup=False, soft_wrap=True)
    print(json.dumps({name: row["accuracy"]["all"] for name, row in rows.items()}))


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
        "right", "blind" and "question_only", 0 or 1 for each question: answered with pictures, with
        blank ones, and by the most frequent answer that the same rows have to it; what `tune`
        returns; and "cpu_seconds" of both phases together.
    """
    dress(model, variant, seed)
    spent, settings = 0.0, {"batch_size": batch_size, "seed": seed}
    if variant.pretrain and not variant.train.startswith(("lora", "prompt", "full")):
        simple = [row for row in train_rows if row.kind != "yes/no"] or list(train_rows)
        open_parameters(model, "projections")
        rated: dict[str, Any] = {"steps": pretrain_steps, "learning_rate": pretrain_rate}
        spent = tune(model, processor, simple, **rated, **settings)["cpu_seconds"]
    open_parameters(model, variant.train)
    tuned = tune(
        model, processor, train_rows, steps=max(1, round(steps * variant.data)),
        learning_rate=rate, **settings,
    )  # fmt: skip
    return tuned | {
        "right": exact_matches(model, processor, tested),
        "blind": exact_matches(model, processor, tested, "blank"),
        "question_only": scored(question_only_answers(train_rows, tested), tested),
        "cpu_seconds": round(tuned["cpu_seconds"] + spent, 1),
    }
