"""Cost of the γ/α/β search, and of a fit, against the published procedure.

    python benchmarks/fewshot.py --json FILE [--queries 50000] [--keys 16000] [--classes 1000]
    python benchmarks/fewshot.py --json FILE --curves FOLDER    # cost plots as well
    python benchmarks/fewshot.py --json FILE --large-only       # a fit on 1,000 classes alone

Two baselines, each measured on a slice of queries and scaled by queries × grid points; both are
stated. `published` is Tip-Adapter's loop: affinity, exponential and one-hot product anew for each
(α, β). `hoisted` is the same with everything that does not depend on α taken out of the α loop, as
a careful user would write it. Times are CPU-seconds of this process; one thread is the fairest.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize, one_hot

from crome.fewshot.methods.tip_adapter import TipAdapterClassifier
from crome.fewshot.methods.xmadapter import XMAdapterClassifier
from crome.fewshot.problems import Problem
from crome.fewshot.search import search
from crome.plot import line_plot

BETAS = [0.1 + i * (7 - 0.1) / 20 for i in range(20)]
ALPHAS = [0.1 + i * (3 - 0.1) / 200 for i in range(200)]
TEXT_SHARPNESS = [i / 5 for i in range(11)]  # an 11-point grid of the text's share


def make(queries: int, keys: int, classes: int, width: int) -> Problem:
    """Random features of the given sizes, the same shots in every class."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, width, generator=generator)
    shots = keys // classes
    targets = torch.randint(classes, (queries,), generator=generator)
    noise = torch.randn(queries, width, generator=generator)
    features = normalize(centres[targets] + 2 * noise, dim=1)
    labels = torch.arange(classes).repeat_interleave(shots)
    cached = normalize(centres[labels] + 2 * torch.randn(len(labels), width, generator=generator))
    text = normalize(centres + torch.randn(classes, width, generator=generator), dim=1)
    counts = torch.full((classes,), shots)
    return Problem(100 * features @ text.T, features, cached, counts, targets)


def seconds(work: Callable[[], Any]) -> float:
    """CPU-seconds of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def published(problem: Problem, rows: int) -> tuple[float, float]:
    """CPU-seconds of one (α, β) of the published loop, and of one β and one α of the hoisted one.

    Returns:
        The published point; then the hoisted one's cost per grid point of this grid.
    """
    shots = int(problem.counts[0])
    values = one_hot(torch.arange(len(problem.counts)).repeat_interleave(shots)).float()
    features, zero_shot = problem.features[:rows], problem.zero_shot[:rows]
    affinity = features @ problem.keys.T
    cache = torch.exp(-5.5 + 5.5 * affinity) @ values
    product = seconds(lambda: features @ problem.keys.T)
    exponential = seconds(lambda: torch.exp(-5.5 + 5.5 * affinity) @ values)
    argmax = seconds(lambda: (zero_shot + 1.17 * cache).argmax(1))
    per_beta = exponential / len(ALPHAS)
    once = product / (len(ALPHAS) * len(BETAS))
    return product + exponential + argmax, once + per_beta + argmax


def search_rows(problem: Problem, rows: int) -> list[dict[str, Any]]:
    """The search with and without a γ grid, beside both baselines."""
    queries, points = len(problem.features), len(BETAS) * len(ALPHAS)
    loop, hoisted = (point * queries / rows for point in published(problem, rows))
    sizes = f"{queries} queries x {len(problem.keys)} keys x {len(problem.counts)} classes"
    found = []
    for case, gates in (("search", [0.0]), ("search-gamma", TEXT_SHARPNESS)):
        pairs = [(beta, t) for beta in BETAS for t in gates]
        problem.text = problem.zero_shot / 100 if len(gates) > 1 else None
        ours = seconds(lambda pairs=pairs: search([problem], pairs, ALPHAS, "accuracy"))
        grid = f"{len(pairs)} sharpnesses x {len(ALPHAS)} alphas"
        for name, cost in (("published", loop), ("hoisted", hoisted)):
            baseline = cost * points * len(gates)
            found.append(
                {"case": f"{case}-vs-{name}", "what": f"{sizes}, {grid}; baseline from {rows} rows",
                 "ours": ours, "baseline": baseline, "ratio": baseline / ours,
                 "unit": "CPU-seconds"}
            )  # fmt: skip
    return found


def fit_rows(width: int) -> list[dict[str, Any]]:
    """Fits at 16 shots × 100 classes from features; the bar is 5 s on two cores."""
    shots = make(1, 1_600, 100, width)
    labels = torch.arange(100).repeat_interleave(16).numpy()
    text = torch.randn(100, width, generator=torch.Generator().manual_seed(1)).numpy()
    found = []
    for name, model in (
        ("fit-xmadapter", XMAdapterClassifier(text)),
        ("fit-tip-adapter-f", TipAdapterClassifier(text, epochs=20)),
    ):
        ours = seconds(lambda model=model: model.fit(shots.keys.numpy(), labels))
        found.append(
            {"case": name, "what": f"16 shots x 100 classes, {width} wide, from features",
             "ours": ours, "baseline": 5.0, "ratio": 5.0 / ours, "unit": "CPU-seconds"}
        )  # fmt: skip
    return found


LARGE = """
import json, resource, time
import numpy as np
from crome.fewshot import XMAdapterClassifier
rng, classes, shots, width = np.random.default_rng(0), 1000, 16, 512
centres = rng.normal(size=(classes, width))
text = centres + rng.normal(size=centres.shape)
y = np.repeat(np.arange(classes), shots)
X = centres[y] + 2 * rng.normal(size=(len(y), width))
X, text = X.astype("TYPE"), text.astype("TYPE")
start = time.process_time()
XMAdapterClassifier(text).fit(X, y)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
print(json.dumps([time.process_time() - start, peak]))
"""


def large_rows() -> list[dict[str, Any]]:
    """A fit at 16 shots × 1,000 classes, in a process of its own for its peak memory."""
    found = []
    for kind in ("float32", "float64"):
        script = LARGE.replace("TYPE", kind)
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        spent, peak = json.loads(done.stdout)
        what = f"16 shots x 1,000 classes, 512 wide, {kind}, four folds; the baseline is the bar"
        for name, ours, bar, unit in (
            ("fit-1000", spent, 30.0, "CPU-seconds"),
            ("fit-1000-memory", peak, 3.0, "GB"),
        ):
            found.append(
                {"case": f"{name}-{kind}", "what": what, "ours": ours, "baseline": bar,
                 "ratio": bar / ours, "unit": unit}
            )  # fmt: skip
    return found


def curves(folder: Path, width: int) -> None:
    """Plot the cost of the search over 20 β × 200 α against keys, queries and classes."""
    folder.mkdir(parents=True, exist_ok=True)
    base = {"queries": 512, "keys": 2_048, "classes": 128}
    pairs = [(beta, 0.0) for beta in BETAS]
    for what in base:
        sizes = [base[what] * 2**i // 4 for i in range(5)]
        spent = []
        for size in sizes:
            problem = make(**(base | {what: size}), width=width)
            spent.append(seconds(lambda p=problem: search([p], pairs, ALPHAS, "accuracy")))
        others = ", ".join(f"{n} {k}" for k, n in base.items() if k != what)
        line_plot(
            {"20 betas x 200 alphas": spent}, sizes, folder / f"search-{what}.png",
            title=f"CPU-seconds of the search against {what} ({others})", x_label=what, log_y=True,
        )  # fmt: skip


def main() -> None:
    """Measure and write rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--queries", type=int, default=50_000)
    parser.add_argument("--keys", type=int, default=16_000)
    parser.add_argument("--classes", type=int, default=1_000)
    parser.add_argument("--width", type=int, default=1_024)
    parser.add_argument("--slice", type=int, default=512)
    parser.add_argument("--curves", type=Path)
    parser.add_argument("--large-only", action="store_true")
    args = parser.parse_args()
    results = large_rows() if args.large_only else rows(args)
    args.json.write_text(json.dumps(results, indent=1))
    for row in results:
        print(row)


def rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All cases."""
    problem = make(args.queries, args.keys, args.classes, args.width)
    results = search_rows(problem, min(args.slice, args.queries))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    results.append(
        {"case": "search-memory", "what": "peak resident, data and baseline included",
         "ours": peak, "baseline": 2.0, "ratio": 2.0 / peak, "unit": "GB"}
    )  # fmt: skip
    del problem
    results += fit_rows(args.width) + large_rows()
    if args.curves:
        curves(args.curves, args.width)
    return results


if __name__ == "__main__":
    main()
