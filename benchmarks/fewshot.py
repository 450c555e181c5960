"""Cost of the γ/α/β search, and of a fit, against the published procedure.

    python benchmarks/fewshot.py --json FILE [--queries 50000] [--keys 16000] [--classes 1000]

The baseline is Tip-Adapter's loop: affinity, exponential and one-hot product anew for each (α, β).
It is measured on a slice of queries at one grid point and scaled by queries × points; both are
stated.
Times are CPU-seconds of this process.
"""

import argparse
import json
import resource
import time

import torch
from torch.nn.functional import normalize, one_hot

from crome.fewshot.search import Problem, search
from crome.fewshot.tip_adapter import TipAdapterClassifier
from crome.fewshot.xmadapter import XMAdapterClassifier

BETAS = [0.1 + i * (7 - 0.1) / 20 for i in range(20)]
ALPHAS = [0.1 + i * (3 - 0.1) / 200 for i in range(200)]


def make(queries: int, keys: int, classes: int, width: int) -> Problem:
    """Random features of the given sizes, the same shots in every class."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, width, generator=generator)
    shots = keys // classes
    targets = torch.randint(classes, (queries,), generator=generator)
    features = normalize(
        centres[targets] + 2 * torch.randn(queries, width, generator=generator), dim=1
    )
    labels = torch.arange(classes).repeat_interleave(shots)
    cached = normalize(centres[labels] + 2 * torch.randn(len(labels), width, generator=generator))
    text = normalize(centres + torch.randn(classes, width, generator=generator), dim=1)
    return Problem(
        100 * features @ text.T, features, cached, torch.full((classes,), shots), targets
    )


def published_point(problem: Problem, rows: int) -> float:
    """CPU-seconds of one grid point of the published loop on the first rows."""
    values = one_hot(torch.arange(len(problem.counts)).repeat_interleave(int(problem.counts[0])))
    values = values.float()
    start = time.process_time()
    affinity = problem.features[:rows] @ problem.keys.T
    cache = ((-1) * (5.5 - 5.5 * affinity)).exp() @ values
    (problem.zero_shot[:rows] + cache).argmax(1)
    return time.process_time() - start


def main() -> None:
    """Measure and write rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", required=True)
    parser.add_argument("--queries", type=int, default=50_000)
    parser.add_argument("--keys", type=int, default=16_000)
    parser.add_argument("--classes", type=int, default=1_000)
    parser.add_argument("--width", type=int, default=1_024)
    parser.add_argument("--slice", type=int, default=512)
    args = parser.parse_args()
    problem = make(args.queries, args.keys, args.classes, args.width)
    rows = min(args.slice, args.queries)
    point = published_point(problem, rows)
    points = len(BETAS) * len(ALPHAS)
    baseline = point * args.queries / rows * points
    start = time.process_time()
    search([problem], [(beta, 0.0) for beta in BETAS], ALPHAS, "accuracy")
    ours = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    what = (
        f"{args.queries} queries x {args.keys} keys x {args.classes} classes, {len(BETAS)} betas x "
        f"{len(ALPHAS)} alphas; baseline: {rows} queries at one point took {point:.3f}, scaled"
    )
    results = [
        {"case": "search", "what": what, "ours": ours, "baseline": baseline,
         "ratio": baseline / ours, "unit": "CPU-seconds"},
        {"case": "search-memory", "what": "peak resident, data included", "ours": peak,
         "baseline": None, "ratio": None, "unit": "GB"},
    ]  # fmt: skip
    shots = make(1, 1_600, 100, 1_024)
    labels = torch.arange(100).repeat_interleave(16).numpy()
    text = torch.randn(100, 1_024, generator=torch.Generator().manual_seed(1)).numpy()
    for name, model in (
        ("fit-xmadapter", XMAdapterClassifier(text)),
        ("fit-tip-adapter-f", TipAdapterClassifier(text, epochs=20)),
    ):
        start = time.process_time()
        model.fit(shots.keys.numpy(), labels)
        seconds = time.process_time() - start
        results.append(
            {"case": name, "what": "16 shots x 100 classes, 1,024 wide, from features",
             "ours": seconds, "baseline": 5.0, "ratio": 5.0 / seconds, "unit": "CPU-seconds"}
        )  # fmt: skip
    with open(args.json, "w") as file:
        json.dump(results, file, indent=1)
    for row in results:
        print(row)


if __name__ == "__main__":
    main()
