"""Line plots with Pillow alone."""

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

COLOURS = (
    "#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e",
    "#17becf", "#8c564b", "#7f7f7f", "#bcbd22", "#e377c2",
)  # fmt: skip
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 900, 560, 70, 220, 50, 60


def line_plot(
    curves: dict[str, Sequence[float]],
    x: Sequence[float],
    file: Path,
    *,
    title: str,
    log_y: bool = False,
    x_label: str = "images per class",
) -> None:
    """Draw one line per curve over x on a log₂ axis.

    Args:
        curves: Name and values, NaN where there is none.
        x: Positive positions.
        file: PNG to write.
        title: Above the plot.
        log_y: Whether the y axis is logarithmic too.
        x_label: Below the plot.
    """
    scale = math.log10 if log_y else float
    values = [scale(v) for curve in curves.values() for v in curve if not math.isnan(v)]
    if not values:
        return
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 1.0
    low, high = low - margin, high + margin
    span = math.log2(max(x) / min(x)) or 1.0

    def place(i: int, value: float) -> tuple[float, float]:
        across = math.log2(x[i] / min(x)) / span if len(x) > 1 else 0.5
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
    for i, position in enumerate(x):
        pen.text(
            (place(i, 10**low if log_y else low)[0] - 8, HEIGHT - 50),
            f"{position:g}",
            "#444444",
            font,
        )
    pen.text((LEFT, HEIGHT - 27), x_label, "#444444", font)
    ends = []
    for number, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = [place(i, v) for i, v in enumerate(curve) if not math.isnan(v)]
        if not points:
            continue
        pen.line(points, colour, 3)
        for px, py in points:
            pen.ellipse([px - 4, py - 4, px + 4, py + 4], colour)
        ends.append((points[-1][1], name, colour))
    last = -math.inf
    for y, name, colour in sorted(ends):
        last = max(y - 9, last + 18)  # labels do not overlap
        pen.text((WIDTH - RIGHT + 12, last), name, colour, font)
    image.save(file)
