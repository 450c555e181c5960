"""`crome paper`: a table of arXiv 2408.06610 with the numbers of your own runs beside."""

import json as json_format
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.table import Table

from crome.errors import InputError
from crome.studies.published import COLUMNS, TABLES, Column, PublishedRow, PublishedTable

SCORES = "scores.json"


class Found(NamedTuple):
    """A number of a run, the protocol it was made by, and its 95 % interval, where it has one."""

    value: float
    protocol: str
    interval: tuple[float, float] | None


def paper(
    table: Literal[1, 2, 3, 4, 5, 7],
    scores: list[str] | None = None,
    json: bool = False,
) -> None:
    """Print a table of the paper, and beside it what your own evaluations hold for its rows.

    Numbers are put beside a row if their evaluation names the folder that the row's recipe writes
    (`configs/recipes`) as its checkpoint or adapter, or if you name the row. Rows without one have
    dashes, and the commands that would fill them are printed below.

    Args:
        table: Number of the table.
        scores: A `scores.json` of `crome evaluate`, or a folder with such files in it; `ROW=PATH`
            puts one beside the row of that number, counted from 1.
        json: Print JSON instead of a table.
    """
    chosen = TABLES[table]
    own = gather(chosen, scores or [])
    if json:
        print(json_format.dumps(as_json(table, chosen, own)))
        return
    console = Console()
    console.print(printed(table, chosen, own))
    for note in chosen.notes:
        console.print(note, style="dim", highlight=False)
    if missing := [row for place, row in enumerate(chosen.rows) if row.recipe and place not in own]:
        console.print("\nCommands that would fill rows of this table:\n", highlight=False)
        for line in commands(missing, chosen):
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)


def gather(table: PublishedTable, scores: Sequence[str]) -> dict[int, dict[str, Found]]:
    """The numbers of own evaluations: place of a row → column → number.

    Raises:
        InputError: A file is missing or no `scores.json`, belongs to no row, or two are for one
            place in the table.
    """
    own: dict[int, dict[str, Found]] = {}
    for word in scores:
        place, path = placed(word, table)
        for file in score_files(path):
            report = read_report(file)
            found = numbers(report, table)
            rows = [place] if place is not None else places_of(report, table)
            if place is not None and not found:
                raise InputError(f"{file} is of {report['task']}, which this table does not have.")
            for row in rows:
                if twice := found.keys() & own.get(row, {}).keys():
                    raise InputError(
                        f"{file}: row {row + 1} has {', '.join(sorted(twice))} from another file."
                    )
                own.setdefault(row, {}).update(found)
    return own


def placed(word: str, table: PublishedTable) -> tuple[int | None, Path]:
    """`3=eval` → the place of row 3 and the path; None for a path alone.

    Raises:
        InputError: The table has no such row.
    """
    number, sign, path = word.partition("=")
    if not sign or not number.isascii() or not number.isdigit():
        return None, Path(word)
    if not 1 <= int(number) <= len(table.rows):
        raise InputError(f"--scores {word}: the table has rows 1 to {len(table.rows)}.")
    return int(number) - 1, Path(path)


def score_files(path: Path) -> list[Path]:
    """The `scores.json` files of a path.

    Raises:
        InputError: There is none.
    """
    files = sorted(path.rglob(SCORES)) if path.is_dir() else [path] * path.is_file()
    if not files:
        raise InputError(f"no {SCORES} at {path}; `crome evaluate` writes one into its --out.")
    return files


def read_report(file: Path) -> dict[str, Any]:
    """Reads a report of `crome evaluate`.

    Raises:
        InputError: The file holds something else.
    """
    try:
        report = json_format.loads(file.read_text(encoding="utf-8"))
        {name: float(metric["value"]) for name, metric in report["metrics"].items()}
        str(report["task"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is no {SCORES} of `crome evaluate`: {error!r}.") from error
    return report


def numbers(report: dict[str, Any], table: PublishedTable) -> dict[str, Found]:
    """The numbers of a report that columns of a table show, in the table's units."""
    found = {}
    for column in table.columns:
        name = metric_of(report, COLUMNS[column])
        if name is None:
            continue
        metric = report["metrics"][name]
        scale = 100 if metric.get("unit", "fraction") == "fraction" else 1
        interval = metric.get("interval_95")
        limits = (scale * interval[0], scale * interval[1]) if interval else None
        found[column] = Found(scale * metric["value"], name, limits)
    return found


def metric_of(report: dict[str, Any], column: Column) -> str | None:
    """The name of the metric that a column shows; None where the report has none."""
    if report["task"] != column.task:
        return None
    return next((name for name in report["metrics"] if name.endswith(column.ending)), None)


def places_of(report: dict[str, Any], table: PublishedTable) -> list[int]:
    """The rows whose recipe made what a report is about: its adapter, or else its checkpoint."""
    settings = report.get("settings") or {}
    trained = str(report.get("adapter") or settings.get("adapter") or "")
    trained = trained if trained not in ("", "None") else str(report.get("checkpoint") or "")
    parts = Path(trained.removesuffix("/adapter")).parts
    return [
        place
        for place, row in enumerate(table.rows)
        if row.recipe and parts[-2:] == Path(row.recipe).parts
    ]


def printed(number: int, table: PublishedTable, own: dict[int, dict[str, Found]]) -> Table:
    """The table for the terminal: published numbers, and own ones with interval and protocol."""
    printed_table = Table(
        title=f"Table {number} of arXiv 2408.06610: {table.caption}", title_justify="left"
    )
    for heading in ("#", "model", ""):
        printed_table.add_column(heading, overflow="fold")
    for column in table.columns:
        printed_table.add_column(column, justify="right", overflow="fold")
    for place, row in enumerate(table.rows):
        printed_table.add_row(str(place + 1), row.name, row.about, *map(cell, row.numbers))
        if found := own.get(place):
            cells = [own_cell(found.get(column)) for column in table.columns]
            printed_table.add_row("", "[bold]here[/]", row.recipe or "", *cells)
    return printed_table


def cell(value: float | None) -> str:
    """A published number."""
    return "–" if value is None else f"{value:g}"


def own_cell(found: Found | None) -> str:
    """A number of one's own, with interval and protocol."""
    if found is None:
        return "–"
    limits = f" ({found.interval[0]:.1f} to {found.interval[1]:.1f})" if found.interval else ""
    return f"[bold]{found.value:.1f}[/]{limits} [dim]{found.protocol}[/]"


def commands(rows: Sequence[PublishedRow], table: PublishedTable) -> list[str]:
    """The commands that would fill rows: their recipes, then an evaluation for each benchmark."""
    lines = []
    tasks = list(dict.fromkeys(COLUMNS[column].task for column in table.columns))
    for recipe in dict.fromkeys(row.recipe for row in rows if row.recipe):
        verb = "convert" if recipe.endswith("/base") else "train"
        lines.append(f"crome {verb} --config configs/recipes/{recipe}.yaml")
        lines += [
            f"crome evaluate --benchmark {task} --source RECORDS --checkpoint runs/{recipe} "
            f"--out eval/{recipe}/{task}"
            for task in tasks
        ]
    return lines


def as_json(number: int, table: PublishedTable, own: dict[int, dict[str, Found]]) -> dict[str, Any]:
    """The table as plain values."""
    return {
        "table": number,
        "columns": list(table.columns),
        "rows": [
            {
                "model": row.name,
                "about": row.about,
                "recipe": row.recipe,
                "published": dict(zip(table.columns, row.numbers, strict=True)),
                "here": {name: found._asdict() for name, found in own.get(place, {}).items()},
            }
            for place, row in enumerate(table.rows)
        ],
    }
