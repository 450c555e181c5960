"""The learning curve as lines that the page's template draws.

Positions are shares of the plot and only the lines themselves are stretched, so that a chart takes
the width of its place while text and strokes keep their size.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_POINTS = 600  # more than a screen can show


@dataclass(frozen=True)
class Chart:
    """One chart over steps, from zero upwards.

    Attributes:
        name: Name of the quantity.
        caption: What the chart says.
        height: Height of the plot in pixels.
        rungs: Label and height, in per cent from the top, of each line of the grid.
        steps: Label and position, from 0 to 1, of each step that is named.
        lines: CSS class and path data of each line.
    """

    name: str
    caption: str
    height: int
    rungs: list[tuple[str, str]]
    steps: list[tuple[str, float]]
    lines: list[tuple[str, str]]


def learning_curve(entries: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Loss, smoothed over raw, and below it the learning rate, by step.

    Args:
        entries: With "step", "loss" and, optionally, "learning_rate"; others are passed over.

    Returns:
        Two charts, one when there is no learning rate, none with fewer than two losses.
    """
    steps, losses = series(entries, "loss")
    if len(steps) < 2:
        return []
    smooth = smoothed(losses)
    # Rare spikes of single batches may leave the picture; the line never does.
    top = max(float(smooth.max()), float(np.percentile(losses, 99))) or 1.0
    count, width = len(losses), window(len(losses))
    caption = f"from {number(smooth[0])} to {number(smooth[-1])}; {count:,} logged values"
    if width > 1:
        caption += f" and their moving average over {width}"
    lines = [("raw", losses), ("smooth", smooth)]
    charts = [line_chart("Loss", caption, steps, lines, top=top, height=240)]
    steps, rates = series(entries, "learning_rate")
    if len(rates) > 1 and (top := float(rates.max())) > 0:
        caption = f"at most {number(top)}"
        lines = [("rate", rates)]
        charts.append(line_chart("Learning rate", caption, steps, lines, top=top, height=72))
    return charts


def series(entries: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the entries that have both as finite numbers."""
    points = [
        (float(entry["step"]), float(entry[name]))
        for entry in entries
        if isinstance(entry.get("step"), (int, float))
        and isinstance(entry.get(name), (int, float))
        and math.isfinite(entry[name])
    ]
    table = np.array(points, dtype=float).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def window(count: int) -> int:
    """How many of `count` values the moving average takes: odd, about a twentieth."""
    return count // 40 * 2 + 1


def smoothed(values: np.ndarray) -> np.ndarray:
    """Centred moving average, over what there is at the ends; same shape."""
    half = window(len(values)) // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    centre = np.arange(len(values))
    start, stop = np.maximum(centre - half, 0), np.minimum(centre + half + 1, len(values))
    return (sums[stop] - sums[start]) / (stop - start)


def line_chart(
    name: str,
    caption: str,
    steps: np.ndarray,
    lines: Sequence[tuple[str, np.ndarray]],
    *,
    top: float,
    height: int,
) -> Chart:
    """One chart.

    Args:
        name: See `Chart`.
        caption: See `Chart`.
        steps: Horizontal positions, shape `(n,)`, ascending.
        lines: CSS class and values, shape `(n,)`, of each line.
        top: The largest value to show, positive.
        height: See `Chart`.
    """
    rungs = ticks(0, 1.05 * top, 5 if height > 100 else 2)
    top = 1.02 * max(top, rungs[-1])  # room for the stroke
    left, right = float(steps[0]), float(steps[-1])
    span = right - left or 1.0
    named = ticks(left, right, max(1, min(6, int(span))))
    return Chart(
        name,
        caption,
        height,
        [(number(rung), f"{100 - 100 * rung / top:.2f}%") for rung in rungs],
        [(f"{step:,g}", (step - left) / span) for step in named],
        [(kind, path((steps - left) / span, 1 - values / top)) for kind, values in lines],
    )


def anchor(position: float) -> str:
    """How a label at a share of the width stays inside."""
    return "start" if position < 0.01 else "end" if position > 0.99 else "middle"


def number(value: float) -> str:
    """Three digits, as in 0.125 or 2e-5."""
    return f"{value:.3g}".replace("e-0", "e-")


def path(x: np.ndarray, y: np.ndarray) -> str:
    """Path data of a line through points of the unit square, thinned to `MAX_POINTS`."""
    chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), MAX_POINTS)).round().astype(int))
    points = 1000 * np.column_stack([x, y])[chosen]
    return "M" + "L".join(f"{px:.0f} {py:.0f}" for px, py in points)


def ticks(low: float, high: float, count: int) -> list[float]:
    """At most `count` + 1 round values within [low, high]."""
    raw = (high - low) / count or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]
