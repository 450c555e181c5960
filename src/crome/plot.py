"""Line plots, where the extra `plots` (matplotlib) is installed."""

import logging
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TICKS = 8
"""Where x has no more positions, each is named and marked."""
logger = logging.getLogger(__name__)


def line_plot(
    curves: Mapping[str, Sequence[float]],
    x: Sequence[float],
    file: Path,
    *,
    title: str,
    log_x: bool = True,
    log_y: bool = False,
    x_label: str = "images per class",
    bands: Mapping[str, Sequence[tuple[float, float]]] | None = None,
) -> None:
    """Draws one line per curve over x and writes it as PNG.

    Without matplotlib nothing is written, and a warning says how to have plots.

    Args:
        curves: Name and values, NaN where there is none.
        x: Rising positions, positive ones on a logarithmic axis.
        file: PNG to write; none where there is no value.
        title: Above the plot.
        log_x: Whether the x axis is logarithmic.
        log_y: Whether the y axis is.
        x_label: Below the plot.
        bands: Lower and upper edge at each position of what is shaded around curves, by name.
    """
    if all(math.isnan(value) for curve in curves.values() for value in curve):
        return
    if find_spec("matplotlib") is None:
        logger.warning("no %s: plots need matplotlib (pip install 'crome[plots]').", file.name)
        return
    drawn = figure(curves, x, title=title, log_x=log_x, log_y=log_y, x_label=x_label, bands=bands)
    drawn.savefig(file, dpi=110)


def figure(
    curves: Mapping[str, Sequence[float]],
    x: Sequence[float],
    *,
    title: str,
    log_x: bool,
    log_y: bool,
    x_label: str,
    bands: Mapping[str, Sequence[tuple[float, float]]] | None = None,
) -> "Figure":
    """The plot of `line_plot`; needs no display."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(8, 5), layout="constrained")
    axes = drawn.add_subplot(
        title=title,
        xlabel=x_label,
        xscale="log" if log_x else "linear",
        yscale="log" if log_y else "linear",
    )
    few = len(x) <= TICKS
    for name, values in curves.items():
        (line,) = axes.plot(
            list(x), list(values), label=name, marker="o" if few else None, linewidth=2
        )
        if bands and name in bands:
            low, high = zip(*bands[name], strict=True)
            axes.fill_between(list(x), low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    if few:
        axes.set_xticks(list(x), [f"{position:g}" for position in x])
        axes.set_xticks([], minor=True)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1:
        drawn.legend(loc="outside right upper", frameon=False)
    return drawn
