"""The pictures of `crome gate`."""

import logging
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)


def gate_plot(file: Path, found: dict[str, Any]) -> None:
    """Open gates and changes by token, scales, and the directions each branch uses, as one PNG.

    Without matplotlib nothing is written, and a warning says how to have plots.

    Args:
        file: PNG to write.
        found: What `crome gate` writes to `gate.json`.
    """
    if find_spec("matplotlib") is None:
        logger.warning("no %s: plots need matplotlib (pip install 'crome[plots]').", file.name)
        return
    from matplotlib.figure import Figure

    branches = found["branches"]
    drawn = Figure(figsize=(11, 3.1 * len(branches)), layout="constrained")
    axes = drawn.subplots(len(branches), 4, squeeze=False)
    for row, (branch, sums) in zip(axes, branches.items(), strict=True):
        for place, (key, title) in zip(
            row, (("open", "open gates"), ("change", "change of a token")), strict=False
        ):
            picture = place.imshow(as_grid(sums[key]), cmap="viridis", vmin=0)
            place.set(title=f"{branch}: {title}", xticks=[], yticks=[])
            drawn.colorbar(picture, ax=place, shrink=0.8)
        scales, used = row[2:]
        scales.plot(sums["before"], label="before")
        scales.plot(sums["after"], label="after")
        scales.axhline(found["word_scale"], color="grey", linestyle=":", label="words")
        scales.set(title=f"{branch}: scale by token", xlabel="token", ylim=0)
        scales.legend(frameon=False, fontsize="small")
        for name, other in branches.items():
            order = np.argsort(sums["energy"])[::-1]
            energy = np.array(other["energy"])[order]
            used.plot(energy / energy.sum(), label=name, linewidth=2 if name == branch else 0.8)
        used.set(title=f"W_u as {branch} uses it", xlabel="direction", yscale="log")
        used.legend(frameon=False, fontsize="small")
    file.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(file, dpi=110)


def as_grid(values: list[float]) -> np.ndarray:
    """Tokens as a square where they are one, else as a line."""
    side = math.isqrt(len(values))
    return np.array(values).reshape(side, -1) if side * side == len(values) else np.array([values])
