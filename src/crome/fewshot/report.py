"""The table and the plots of benchmark rows."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from crome.errors import InputError
from crome.plot import line_plot
from crome.storage import write_text

MEAN = "mean"
Cells = dict[tuple[str, str, int], list[float]]


def report(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Print the table; write ``table.md`` and a plot per data set, and one of their means.

    Args:
        rows: Rows of one protocol, with the same encoder, validation images and views.
        out: Folder of the files.

    Raises:
        InputError: There are no rows.
    """
    if not rows:
        raise InputError("no rows to report: every data set has too few images for these shots.")
    cells = summarise(rows)
    shots = sorted({row["shots"] for row in rows})
    methods = list(dict.fromkeys(row["method"] for row in rows))
    sets = list(dict.fromkeys(row["dataset"] for row in rows))
    header = ["data set", "method", *map(str, shots), f"fit, s ({shots[-1]})"]
    costs = summarise(rows, "fit_cpu_seconds")
    lines = []
    for name in sets:
        for method in methods:
            accuracies = [_cell(cells.get((name, method, k), [])) for k in shots]
            lines.append([name, method, *accuracies, _cost(costs, [name], method, shots[-1])])
    for method in methods:
        means = [f"{mean:.1f}" for mean in _means(cells, sets, method, shots)]
        lines.append([MEAN, method, *means, _cost(costs, sets, method, shots[-1])])
    caption = _caption(rows)
    table = Table(*header, caption=caption)
    for line in lines:
        table.add_row(*line)
    Console(markup=False).print(table)  # names of data sets may hold brackets
    text = [header, ["---"] * len(header), *lines]
    markdown = "\n".join("| " + " | ".join(line) + " |" for line in text)
    write_text(out / "table.md", f"{caption}\n\n{markdown}\n")
    _plot(cells, sets, methods, shots, out)


def summarise(rows: Sequence[dict[str, Any]], value: str = "accuracy") -> Cells:
    """Values over seeds by (dataset, method, shots); rows without the value are left out."""
    cells: Cells = defaultdict(list)
    for row in rows:
        if row.get(value) is not None:
            cells[row["dataset"], row["method"], row["shots"]].append(row[value])
    return cells


def _caption(rows: Sequence[dict[str, Any]]) -> str:
    def every(name: str) -> str:
        return "/".join(sorted({str(row.get(name)) for row in rows}))

    seeds = sorted({row["seed"] for row in rows})
    noise = every("noise")
    wrong = "" if noise in ("None", "0.0") else f"; wrong labels {noise}"
    return (
        f"accuracy in % (sd over seeds {seeds}); val={every('val')}; {every('encoder')}{wrong}; "
        "last, CPU-seconds of a fit"
    )


def _plot(
    cells: Cells, sets: Sequence[str], methods: Sequence[str], shots: Sequence[int], out: Path
) -> None:
    for name in (*sets, None):
        curves: dict[str, Sequence[float]] = {}
        for method in methods:
            if name is None:
                curves[method] = _means(cells, sets, method, shots)
            else:
                curves[method] = [
                    100 * float(np.mean(cells.get((name, method, k), [np.nan]))) for k in shots
                ]
        title = MEAN if name is None else name
        file = f"{title} (set).png" if name == MEAN else f"{title}.png"
        line_plot(curves, shots, out / file, title=f"{title}: accuracy (%) by shots")


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{100 * np.mean(values):.1f} ({100 * spread:.1f})"


def _cost(cells: Cells, sets: Sequence[str], method: str, shots: int) -> str:
    values = [value for name in sets for value in cells.get((name, method, shots), [])]
    return f"{np.mean(values):.2f}" if values else "–"


def _means(cells: Cells, sets: Sequence[str], method: str, shots: Sequence[int]) -> list[float]:
    """Mean over the sets that reach each number of shots."""
    means = []
    for k in shots:
        values = [cells[name, method, k] for name in sets if cells.get((name, method, k))]
        means.append(100 * float(np.mean([np.mean(v) for v in values])) if values else np.nan)
    return means
