"""Line plots with Pillow alone."""

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

COLOURS = (
    "#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e",
    "#17becf", "#8c564b", "#7f7f7f", "#bcbd22", "#e377c2",
)  # fmt: skip
TICKS = 8
"""So many positions are named, and single points are marked, where x has no more."""
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 900, 560, 70, 220, 50, 60


def line_plot(
    curves: dict[str, Sequence[float]],
    x: Sequence[float],
    file: Path,
    *,
    title: str,
    log_x: bool = True,
    log_y: bool = False,
    x_label: str = "images per class",
) -> None:
    """Draws one line per curve over x.

    Args:
        curves: Name and values, NaN where there is none.
        x: Rising positions, positive ones on a logarithmic axis.
        file: PNG to write; none where there is no value.
        title: Above the plot.
        log_x: Whether the x axis is logarithmic.
        log_y: Whether the y axis is.
        x_label: Below the plot.
    """
    scale, along = (math.log10 if log else float for log in (log_y, log_x))
    values = [scale(v) for curve in curves.values() for v in curve if not math.isnan(v)]
    if not values:
        return
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 1.0
    low, high = low - margin, high + margin
    first, span = along(min(x)), along(max(x)) - along(min(x))

    def place(i: int, value: float) -> tuple[float, float]:
        across = (along(x[i]) - first) / span if span else 0.5
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            TOP + (high - scale(value)) / (high - low) * (HEIGHT - TOP - BOTTOM),
        )

    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    pen.text((LEFT, 15), title, "black", font)
    for step in range(6):
        value = low + (high - low) * step / 5
        y = TOP + (5 - step) / 5 * (HEIGHT - TOP - BOTTOM)
        pen.line([(LEFT, y), (WIDTH - RIGHT, y)], "#dddddd")
        pen.text((8, y - 9), f"{10**value if log_y else value:.3g}", "#444444", font)
    for i in sorted({round(n * (len(x) - 1) / (TICKS - 1)) for n in range(TICKS)}):
        across = place(i, 10**low if log_y else low)[0]
        pen.text((across - 8, HEIGHT - 50), f"{x[i]:g}", "#444444", font)
    pen.text((LEFT, HEIGHT - 27), x_label, "#444444", font)
    ends = []
    for number, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = [place(i, v) for i, v in enumerate(curve) if not math.isnan(v)]
        if not points:
            continue
        pen.line(points, colour, 3)
        for px, py in points if len(x) <= TICKS else []:
            pen.ellipse([px - 4, py - 4, px + 4, py + 4], colour)
        ends.append((points[-1][1], name, colour))
    last = -math.inf
    for y, name, colour in sorted(ends):
        last = max(y - 9, last + 18)  # labels do not overlap
        pen.text((WIDTH - RIGHT + 12, last), name, colour, font)
    image.save(file)
