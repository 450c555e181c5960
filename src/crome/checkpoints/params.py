"""`crome params`: every part of a preset and what each stage trains, exact to the unit."""

from json import dumps
from typing import get_args

from rich.console import Console
from rich.table import Table

from crome.checkpoints.presets import on_meta
from crome.model.stages import STAGES, Stage, count, parts, stage_count


def params(preset: str, json: bool = False) -> None:
    """Count a preset's parameters without loading or making any weights.

    Args:
        preset: Its name, such as crome-vicuna-7b, crome-vicuna-13b, crome-flan-t5-xxl, bliva-…,
            instructblip-… or crome-tiny.
        json: Print JSON instead of a table.
    """
    model = on_meta(preset)
    sizes = {name: count(part) for name, part in parts(model).items()}
    stages = {stage: stage_count(model, stage) for stage in get_args(Stage)}
    total = sum(sizes.values())
    if json:
        print(dumps({"preset": preset, "parts": sizes, "total": total, "trainable": stages}))
        return
    table = Table(title=preset, title_justify="left")
    for column in ("part", "parameters", *stages):
        table.add_column(column, justify="left" if column == "part" else "right")
    for name, size in sizes.items():
        marks = ["trains" if name in STAGES[stage] else "[dim]frozen[/]" for stage in stages]
        table.add_row(name, f"{size:,}", *marks)
    table.add_section()
    table.add_row("total", f"{total:,}", *(f"{trained:,}" for trained in stages.values()))
    Console().print(table)
