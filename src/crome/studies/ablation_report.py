"""The results of `crome ablate`: a table, paired differences, a page and a plot."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from crome.evaluation.report.page import Score, write_report
from crome.intervals import over_runs
from crome.plot import line_plot
from crome.studies.differences import difference
from crome.studies.paper import cell
from crome.studies.published import TABLES
from crome.studies.runs import ALL, by_kind
from crome.studies.variants import Variant

BLANK, QUESTION_ONLY = "blank image", "question only"
CLAIMS: dict[str, tuple[str, str]] = {
    "an adapter helps": ("gated", "no adapter (BLIVA)"),
    "the gate helps": ("gated", "ungated"),
    "pretraining helps": ("gated", "gated without pretraining"),
    "more data helps": ("gated with data ×4", "gated"),
    "more data helps the adapter": ("adapter alone with data ×4", "adapter alone"),
    "the adapter alone is as good as the bridge": ("adapter alone", "gated"),
    "the gate helps the adapter alone": ("adapter alone", "adapter alone ungated"),
    "one up-projection is as good as two": (
        "adapter alone", "adapter alone with two up-projections",
    ),
    "256 is better than 64": ("adapter alone", "adapter alone m = 64"),
    "256 is better than 128": ("adapter alone", "adapter alone m = 128"),
    "256 is better than 512": ("adapter alone", "adapter alone m = 512"),
    "the adapter is better than LoRA of its size": ("adapter alone", "LoRA"),
    "the adapter is better than LoRA on all layers": ("adapter alone", "LoRA r = 16 on all layers"),
    "the adapter is better than the projections": ("adapter alone", "projections alone"),
    "the adapter is better than prompt tuning": ("adapter alone", "prompt tuning, 100 tokens"),
}  # fmt: skip
"""Claim → what should be better, and than what."""

PUBLISHED: dict[str, tuple[int, int]] = {
    "no adapter (BLIVA)": (5, 0), "ungated": (5, 1), "gated": (5, 2),
    "gated without pretraining": (5, 3), "gated with data ×4": (5, 4), "adapter alone": (7, 5),
    "adapter alone m = 64": (7, 1), "adapter alone m = 128": (7, 3),
    "adapter alone m = 512": (7, 7),
}  # fmt: skip
"""Variant → the table of the paper and the place of the row in it that it stands for."""

Runs = Mapping[str, Sequence[Mapping[str, Any]]]
Rows = Mapping[str, Mapping[str, Any]]


def summarise(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean over seeds with its 95 % interval, by kind, and what the row costs."""
    each = [by_kind(run["right"], run["kinds"]) for run in found]
    return {
        "seeds": len(found),
        "trained": found[0]["parameters"],
        "rows": found[0]["rows"],
        "cpu_seconds": float(np.mean([run["cpu_seconds"] for run in found])),
        "accuracy": {kind: float(np.mean([one[kind] for one in each])) for kind in each[0]},
        "interval": {kind: over_runs([one[kind] for one in each]) for kind in each[0]},
        "each": [one[ALL] for one in each],
        BLANK: float(np.mean([run["blind"] for run in found])),
        QUESTION_ONLY: float(np.mean([run["question_only"] for run in found])),
    }


def differences(runs: Runs, pictures: Sequence[Hashable]) -> dict[str, dict[str, Any]]:
    """Each claim whose two variants have run: difference, interval and what that says of it."""
    found = {}
    for claim, (first, second) in CLAIMS.items():
        if first in runs and second in runs:
            better, worse = ([run["right"] for run in runs[name]] for name in (first, second))
            made = difference(better, worse, pictures)
            found[claim] = made._asdict() | {"verdict": made.verdict, "of": [first, second]}
    return found


def table(rows: Rows, blind: Sequence[float], kinds: Sequence[str | None]) -> Table:
    """Variants by row, in percent, with what the paper has on MM-Vet and ScienceQA-IMG beside."""
    guessed = by_kind(blind, kinds)
    made = Table(title="Ablations, exact match on held-out pictures", title_justify="left")
    for name in ("", "trained", "rows", "CPU-s", *guessed, BLANK, "published"):
        made.add_column(name, justify="right" if name else "left", no_wrap=not name)
    made.add_row(QUESTION_ONLY, "", "", "", *(f"{100 * v:.1f}" for v in guessed.values()), "", "")
    for name, row in rows.items():
        cells = []
        for kind in guessed:
            low, high = row["interval"][kind]
            spread = "" if low != low else f" [dim]±{50 * (high - low):.1f}[/]"
            cells.append(f"{100 * row['accuracy'][kind]:.1f}{spread}")
        cost = (f"{row['trained']:,}", f"{row['rows']:,}", f"{row['cpu_seconds']:.0f}")
        made.add_row(name, *cost, *cells, f"{100 * row[BLANK]:.1f}", published(name))
    return made


def published(name: str) -> str:
    """What the paper has for a variant: MM-Vet and ScienceQA-IMG."""
    if name not in PUBLISHED:
        return ""
    number, place = PUBLISHED[name]
    return " / ".join(map(cell, TABLES[number].rows[place].numbers))


def claims_table(compared: Mapping[str, Mapping[str, Any]]) -> Table:
    """Each claim with its difference, interval and verdict, in points."""
    made = Table(title="Claims, paired by question and seed", title_justify="left")
    for name in ("claim", "points", "95 %", ""):
        made.add_column(name, justify="right" if name in ("points", "95 %") else "left")
    for claim, found in compared.items():
        low, high = (100 * end for end in found["interval"])
        limits = f"{low:+.1f} to {high:+.1f}"
        made.add_row(claim, f"{100 * found['value']:+.1f}", limits, found["verdict"])
    return made


def report(
    out: Path,
    rows: Rows,
    blind: Sequence[float],
    common: Mapping[str, Any],
    runs: Runs,
    kinds: Sequence[str | None],
) -> None:
    """Writes the page: bars for each kind of question, and the curve of the first run."""
    none = float("nan")
    first = next(iter(runs.values()))
    scores = []
    for kind, share in by_kind(blind, kinds).items():
        n = len(kinds) if kind == ALL else kinds.count(kind)
        scores.append(Score(QUESTION_ONLY, kind, n, share, none, none))
        for name, row in rows.items():
            low, high = (
                end if end != end else min(1, max(0, end)) for end in row["interval"][kind]
            )
            scores.append(Score(name, kind, n, row["accuracy"][kind], low, high))
    costs = {
        name: f"{row['trained']:,} parameters, {row['rows']:,} rows, {row['cpu_seconds']:.0f} CPU-s"
        for name, row in rows.items()
    }
    write_report(
        out / "report.html",
        title=f"Ablations on {common['task']}",
        lead=f"Variants: {len(rows)}; seeds: {len(first)}; held-out questions: {len(kinds)}. "
        "Intervals are over seeds.",
        facts={k: str(v) for k, v in common.items()} | costs,
        scores=scores,
        curve=first[0]["curve"],
    )


def curve_plot(file: Path, variants: Mapping[str, Variant], rows: Rows, task: str) -> None:
    """Accuracy by the number of rows to learn from, where variants differ by it."""
    sizes = sorted({v.rows for v in variants.values() if v.rows})
    if len(sizes) < 2:
        return
    none = float("nan")
    places = {
        (way_of(name), variant.rows): rows[name]
        for name, variant in variants.items()
        if variant.rows
    }
    ways = list(dict.fromkeys(way for way, _ in places))
    curves: dict[str, list[float]] = {way: [] for way in (*ways, QUESTION_ONLY)}
    bands: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for size in sizes:
        for way in ways:
            row = places.get((way, size))
            curves[way].append(100 * row["accuracy"][ALL] if row else none)
            low, high = (100 * min(row["each"]), 100 * max(row["each"])) if row else (none, none)
            bands[way].append((low, high))
        guessed = [row[QUESTION_ONLY] for (_, rows_of), row in places.items() if rows_of == size]
        curves[QUESTION_ONLY].append(100 * float(np.mean(guessed)))
    line_plot(
        curves, sizes, file, bands=bands, title=f"{task}: accuracy (%) on held-out pictures",
        x_label="rows to learn from",
    )  # fmt: skip


def way_of(name: str) -> str:
    """A variant's name without its number of rows."""
    return name.rpartition(", ")[0] or name
