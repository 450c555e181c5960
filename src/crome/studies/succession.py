"""`crome succession`: tasks learnt one after the other, and what is left of the earlier ones.

Three ways: LoRA on the language model that goes on from task to task, one adapter that does the
same, and an adapter for each task, which are kept beside each other over the same base.
"""

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.table import Table

from crome.checkpoints.loading import load
from crome.data.packaged import Split, balanced, by_picture, easy_vqa, textile
from crome.errors import positive
from crome.features.verbs import enable
from crome.intervals import mean_interval
from crome.rows import Row
from crome.storage import write_json
from crome.studies.runs import device_settings, exact_matches, finished, weights
from crome.studies.tuning import open_parameters, tune
from crome.training.arguments import trainable_device
from crome.training.progress import console

Method = Literal["lora", "adapter", "adapters"]
NAMES: dict[Method, str] = {
    "lora": "LoRA, continued",
    "adapter": "one adapter, continued",
    "adapters": "an adapter each",
}
BEFORE = "before"


def of_kind(kind: str) -> Callable[[Split], list[Row]]:
    """The questions of one kind on coloured shapes, as a task of its own."""
    return lambda split: [row for row in easy_vqa(split) if row.kind == kind]


TASKS: dict[str, Callable[[Split], list[Row]]] = {
    "shapes": of_kind("shape"),
    "fabric": textile,
    "yes or no": of_kind("yes/no"),
}
"""In the order in which they are learnt."""


def succession(
    out: Path = Path("crome-succession"),
    checkpoint: str = "crome-tiny",
    methods: list[Method] | None = None,
    steps: int = 60,
    batch_size: int = 16,
    adapter_rate: float = 1e-3,
    lora_rate: float = 5e-4,
    test_rows: int = 300,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    device: str = "auto",
    seed: int = 0,
) -> None:
    """Learn three packaged tasks one after the other, and measure all three after each.

    Finished methods are not run again when the same command is given again.

    Args:
        out: Folder for a file a method and `succession.json`.
        checkpoint: What to start from.
        methods: `lora` and `adapter` go on from task to task, `adapters` starts anew for each and
            keeps them all; all three by default.
        steps: Training steps a task.
        batch_size: Rows a step.
        adapter_rate: Peak rate of an adapter.
        lora_rate: Peak rate of LoRA.
        test_rows: Least number of held-out questions of each task; pictures are taken with all
            their questions.
        dtype: Type of the frozen towers.
        device: cpu, cuda or mps; by default a GPU of CUDA if there is one.
        seed: Seed of the order of rows.
    """
    positive(steps=steps, batch_size=batch_size, test_rows=test_rows)
    place = trainable_device(device)
    tested = {name: by_picture(task("test"), test_rows, seed=0) for name, task in TASKS.items()}
    settings = {
        "checkpoint": checkpoint, "weights": weights(checkpoint), "tasks": list(tested),
        "steps": steps, "batch_size": batch_size, "dtype": dtype, "seed": seed,
        "test_rows": [len(rows) for rows in tested.values()], **device_settings(place),
    }  # fmt: skip
    chosen: list[Method] = methods or list(NAMES)
    summary = {}
    for method in chosen:
        rate = lora_rate if method == "lora" else adapter_rate
        settings_of = settings | {"method": method, "rate": rate}
        path = out / f"{method}.json"
        if (found := finished(path, settings_of)) is None:
            console.print(NAMES[method], highlight=False)
            model, processor = load(checkpoint, dtype, device=device)
            processor = enable(model, processor)
            stages = follow(
                model, processor, method, tested, steps=steps, batch_size=batch_size,
                learning_rate=rate, seed=seed,
            )  # fmt: skip
            found = {"settings": settings_of, "stages": stages}
            write_json(path, found)
        summary[NAMES[method]] = summarise(found["stages"], tested)
    write_json(out / "succession.json", {"settings": settings, "methods": summary})
    console.print(table(summary, list(tested)))
    print(json.dumps({name: left(stages) for name, stages in summary.items()}))


def follow(
    model: Any, processor: Any, method: Method, tested: dict[str, list[Row]], **settings: Any
) -> dict[str, dict[str, list[float]]]:
    """Learns the tasks in order; exact match on each question of all tasks, before and after each.

    Args:
        model: Fresh from its checkpoint.
        processor: The model's own.
        method: What goes on, or starts anew.
        tested: Held-out rows by task.
        settings: Settings of `tune`.
    """
    fresh = getattr(model, "adapter", None)
    kept: dict[str, Any] = {}

    def measure() -> dict[str, list[float]]:
        found, in_use = {}, getattr(model, "adapter", None)
        for name, rows in tested.items():
            if method == "adapters":
                model.adapter = kept.get(name, fresh)
            found[name] = exact_matches(model, processor, rows)
        if in_use is not None:
            model.adapter = in_use
        return found

    stages = {BEFORE: measure()}
    open_parameters(model, "lora" if method == "lora" else "adapter")
    for name, task in TASKS.items():
        if method == "adapters":
            model.adapter = deepcopy(fresh)
        tune(model, processor, balanced(task("train")), **settings)
        if method == "adapters":
            kept[name] = model.adapter
        stages[name] = measure()
    return stages


def summarise(
    stages: dict[str, dict[str, list[float]]], tested: dict[str, list[Row]]
) -> dict[str, dict[str, Any]]:
    """Accuracy on each task at each stage with its 95 % interval over pictures."""
    pictures = {name: [str(row.images) for row in rows] for name, rows in tested.items()}
    return {
        stage: {
            name: {
                "accuracy": float(np.mean(right)),
                "interval": mean_interval(right, pictures[name]),
            }
            for name, right in found.items()
        }
        for stage, found in stages.items()
    }


def left(stages: dict[str, dict[str, Any]]) -> float:
    """Mean accuracy over all tasks when the last has been learnt."""
    last = next(reversed(stages.values()))
    return float(np.mean([task["accuracy"] for task in last.values()]))


def table(summary: dict[str, dict[str, dict[str, Any]]], tasks: Sequence[str]) -> Table:
    """A row for each way and stage, for people."""
    made = Table(title="Tasks one after the other, exact match", title_justify="left")
    for name in ("", "after", *tasks):
        made.add_column(name, justify="right" if name in tasks else "left")
    for method, stages in summary.items():
        for number, (stage, found) in enumerate(stages.items()):
            cells = [
                f"{100 * found[task]['accuracy']:.1f} [dim]({100 * found[task]['interval'][0]:.1f}"
                f" to {100 * found[task]['interval'][1]:.1f})[/]"
                for task in tasks
            ]
            made.add_row("" if number else method, stage, *cells)
        made.add_section()
    return made
