"""The open questions about XMAdapter, answered from the rows of `crome fewshot benchmark`.

    python benchmarks/fewshot_questions.py OUT --plots FOLDER [--sets SET_FOLDER ...]

OUT is the folder of a benchmark; its rows and predictions are read, and tables are printed as
Markdown: the blend γ, hard-sample weighting under label noise, and cost against accuracy. With
folders of picture sets the affinities of the last shots and the first seed are drawn as well.

A difference of two methods is paired on every test picture of every draw. Draws of a set share test
pictures, and pictures are met in several draws, so its error counts both: the variance over draws
plus that over pictures, less that over single predictions (Cameron, Gelbach and Miller, 2011).
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from crome.fewshot.benchmark import predictions_file, read_rows
from crome.fewshot.methods import METHODS
from crome.intervals import t_quantile

PUBLISHED, OURS = "xmadapter-published", "xmadapter"
Cell = tuple[str, int, float]  # data set, shots, share of wrong labels


class Difference(NamedTuple):
    """A mean paired difference and its standard error, both in points."""

    mean: float
    error: float
    draws: int

    def __str__(self) -> str:
        return f"{self.mean:+.1f} ± {t_quantile(self.draws - 1) * self.error:.1f}"


class Results:
    """Rows by cell, method and seed.

    Args:
        out: Folder of a benchmark.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.rows: dict[tuple[Cell, str], dict[int, dict[str, Any]]] = defaultdict(dict)
        for row in read_rows(out / "results.jsonl"):
            cell = (row["dataset"], row["shots"], row["noise"])
            self.rows[cell, row["method"]][row["seed"]] = row

    def difference(self, cell: Cell, method: str, other: str) -> Difference | None:
        """How much more often ``method`` is right than ``other`` on the draws that both have."""
        one, two = self.rows.get((cell, method), {}), self.rows.get((cell, other), {})
        draws = [(one[seed], two[seed]) for seed in sorted(one.keys() & two.keys())]
        if len(draws) < 2:
            return None
        parts = [(*self._right(a), self._right(b)[1]) for a, b in draws]
        gaps = np.concatenate([mine - theirs for _, mine, theirs in parts])
        draw = np.repeat(np.arange(len(parts)), [len(images) for images, _, _ in parts])
        image = np.unique(np.concatenate([p[0] for p in parts]), return_inverse=True)[1]
        return Difference(100 * gaps.mean(), 100 * two_way_error(gaps, draw, image), len(draws))

    def _right(self, row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        with np.load(predictions_file(self.out, row)) as kept:
            return kept["images"], (kept["predicted"] == kept["labels"]).astype(float)

    def value(self, cell: Cell, method: str, name: str = "accuracy") -> float:
        """Mean over seeds."""
        found = [row[name] for row in self.rows.get((cell, method), {}).values()]
        return float(np.mean(found)) if found else float("nan")


def two_way_error(values: np.ndarray, draw: np.ndarray, image: np.ndarray) -> float:
    """Standard error of a mean of values that hang together by draw and by image."""
    rest = values - values.mean()

    def spread(groups: np.ndarray) -> float:
        sums = np.bincount(groups, rest)
        return float((sums**2).sum()) * len(sums) / max(1, len(sums) - 1)

    by_draw, by_image, alone = spread(draw), spread(image), float((rest**2).sum())
    return max(by_draw + by_image - alone, by_draw, by_image) ** 0.5 / len(values)


def pooled(found: Sequence[Difference | None]) -> str:
    """The mean over sets; its error is that of new draws and pictures of these sets."""
    there = [d for d in found if d is not None]
    if not there:
        return "–"
    error = float(np.sqrt(sum(d.error**2 for d in there))) / len(there)
    mean = float(np.mean([d.mean for d in there]))
    return str(Difference(mean, error, sum(d.draws for d in there)))


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Print a table of Markdown."""
    for line in (header, ["---"] * len(header), *lines):
        print("| " + " | ".join(line) + " |")
    print()


def compare(
    results: Results, pairs: Sequence[tuple[str, str]], shots: Sequence[int], noise: float = 0.0
) -> None:
    """Print a line for each set and pair, and the mean over sets; columns are shots."""
    sets = sorted({cell[0] for cell, _ in results.rows})
    lines = []
    for method, other in pairs:
        columns = []
        for k in shots:
            columns.append([results.difference((name, k, noise), method, other) for name in sets])
        for place, name in enumerate(sets):
            cells = [str(column[place] or "–") for column in columns]
            lines.append([f"{method} − {other}", name, *cells])
        lines.append([f"{method} − {other}", "**mean**", *map(pooled, columns)])
    table(["difference", "set", *map(str, shots)], lines)


def gamma(results: Results, shots: Sequence[int]) -> None:
    """Print γ learned against fixed and per-query γ, and what was learned."""
    for base in (PUBLISHED, OURS):
        others = [f"{base}, gamma{kind}" for kind in ("=1", "=0", " per query")]
        compare(results, [(base, other) for other in others], shots)
    lines = []
    for cell, method in sorted(key for key in results.rows if key[1] in (PUBLISHED, OURS)):
        found = [row["chosen"]["gamma"] for row in results.rows[cell, method].values()]
        if cell[2] == 0:
            least, median, most = np.percentile(found, [10, 50, 90])
            spread = f"{median:.2f} ({least:.2f} to {most:.2f})"
            lines.append([method, cell[0], str(cell[1]), spread])
    table(["method", "set", "shots", "γ: median (10 to 90 %)"], lines)


def hard_weights(results: Results, shots: Sequence[int]) -> None:
    """Print the gain of hard-sample weighting at each share of wrong labels."""
    plain = f"{PUBLISHED}, eta=0"
    others = [PUBLISHED, f"{PUBLISHED}, abs", f"{PUBLISHED}, posterior", OURS, "tip-adapter-f"]
    for noise in sorted({cell[2] for cell, _ in results.rows}):
        print(f"wrong labels: {100 * noise:.0f} %\n")
        compare(results, [(method, plain) for method in others], shots, noise)


def cost(results: Results, shots: Sequence[int], plots: Path) -> None:
    """Print and plot the CPU-seconds of a fit against the accuracy, means over sets and seeds."""
    drawn = Figure(figsize=(5 * len(shots) + 1, 5), layout="constrained")
    for place, k in enumerate(shots):
        axes = drawn.add_subplot(
            1, len(shots), place + 1, xscale="log", title=f"{k} images per class",
            xlabel="CPU-seconds of a fit", ylabel="accuracy (%), mean over sets",
        )  # fmt: skip
        cells = sorted({c for c, m in results.rows if c[1:] == (k, 0.0) and m == OURS})
        lines = []
        for method in METHODS:
            spent = np.mean([results.value(c, method, "fit_cpu_seconds") for c in cells])
            accuracy = 100 * np.mean([results.value(c, method) for c in cells])
            if method != "zero-shot":  # learns nothing, and lies far below the others
                axes.scatter([spent], [accuracy], s=70, label=method)
            lines.append([method, f"{spent:.3f}", f"{accuracy:.1f}"])
        axes.grid(alpha=0.3, which="both")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        table([f"{k} images per class, {len(cells)} sets", "CPU-s", "accuracy"], lines)
    drawn.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    drawn.savefig(plots / "fewshot-cost.png", dpi=110)


def affinities(folders: Sequence[Path], seed: int, plots: Path) -> None:
    """Draw the mean affinity of each class's test pictures to the cached ones and to the texts."""
    from crome.fewshot import class_features, image_features, load_encoder, view_features
    from crome.fewshot import functional as fn
    from crome.fewshot.data.draws import draw_shots
    from crome.fewshot.data.reading import read_images
    from crome.fewshot.data.sets import labels_of

    encoder = load_encoder()
    drawn = Figure(figsize=(8, 3.4 * len(folders)), layout="constrained")
    for place, folder in enumerate(folders):
        data = read_images(folder)
        draw = draw_shots(data, 8, seed)
        train, val, test = ([i.path for i in part] for part in (draw.train, draw.val, draw.test))
        model = METHODS[PUBLISHED](class_features(encoder, data.classes, data.templates))
        model.fit(
            image_features(encoder, train), labels_of(draw.train),
            X_val=image_features(encoder, val), y_val=labels_of(draw.val),
            views=view_features(encoder, train),
        )  # fmt: skip
        samples = model.samples(image_features(encoder, test), labels_of(draw.test))
        cache, n = model.cache().like(samples.image), len(data.classes)
        image = fn.class_means(fn.image_affinity(samples.image, cache.keys), cache.labels, n)
        names = ("image affinity", f"text affinity (chosen: γ = {model.gamma_:.2f})")
        parts = zip(names, (image, cache.text(samples)), strict=True)
        for column, (name, values) in enumerate(parts):
            means = np.stack([values[samples.labels == c].mean(0).numpy() for c in range(n)])
            axes = drawn.add_subplot(len(folders), 2, 2 * place + column + 1)
            axes.set_title(f"{data.name}: {name}", fontsize=9)
            axes.set_xticks(range(n), data.classes, rotation=90, fontsize=6)
            axes.set_yticks(range(n), data.classes if column == 0 else [""] * n, fontsize=6)
            drawn.colorbar(axes.imshow(means), ax=axes, shrink=0.8)
    drawn.savefig(plots / "fewshot-affinities.png", dpi=110)


def main() -> None:
    """Print the tables and draw the plots."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--plots", type=Path, required=True)
    parser.add_argument("--sets", type=Path, nargs="*", default=[])
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 4, 16])
    args = parser.parse_args()
    args.plots.mkdir(parents=True, exist_ok=True)
    results = Results(args.out)
    pairs = [(OURS, PUBLISHED), (PUBLISHED, "tip-adapter-f"), (OURS, "gda")]
    compare(results, pairs, args.shots)
    gamma(results, args.shots)
    hard_weights(results, [k for k in args.shots if k > 1])
    cost(results, [k for k in args.shots if k > 1], args.plots)
    if args.sets:
        seeds = [seed for by_seed in results.rows.values() for seed in by_seed]
        affinities(args.sets, min(seeds), args.plots)


if __name__ == "__main__":
    main()
