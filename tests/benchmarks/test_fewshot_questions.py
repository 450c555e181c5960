"""Paired differences over draws and pictures: the error, and pairing of a benchmark's rows."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the plots need matplotlib")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("benchmarks/ is not part of this installation", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

from fewshot_questions import Results, two_way_error  # noqa: E402

from crome.fewshot.benchmark import predictions_file  # noqa: E402


def test_error_counts_every_pair_that_shares_a_draw_or_an_image():
    rng = np.random.default_rng(0)
    draw, image = np.repeat(np.arange(5), 8), rng.integers(0, 12, 40)
    image[:12] = np.arange(12)  # every image is met
    values = rng.normal(size=40) + rng.normal(size=5)[draw] + rng.normal(size=12)[image]
    rest = values - values.mean()
    total = sum(
        rest[i] * rest[j]
        * (5 / 4 * (draw[i] == draw[j]) + 12 / 11 * (image[i] == image[j]) - (i == j))
        for i in range(40) for j in range(40)
    )  # fmt: skip
    assert two_way_error(values, draw, image) == pytest.approx(total**0.5 / 40)


def test_interval_covers_the_difference_on_new_draws_and_images():
    rng, covered = np.random.default_rng(1), 0
    draw, image = np.repeat(np.arange(20), 30), np.tile(np.arange(30), 20)
    for _ in range(300):
        effect = rng.normal(size=20)[draw] + 2 * rng.normal(size=30)[image]
        values = effect + rng.normal(size=600)
        covered += abs(values.mean()) < 2.1 * two_way_error(values, draw, image)
    assert covered / 300 > 0.92


def test_differences_are_paired_by_seed_and_picture(tmp_path):
    rows = []
    for method, wrong in (("a", 2), ("b", 5)):
        for seed in (1, 2, 3):
            row = {"dataset": "d", "shots": 4, "noise": 0.0, "method": method, "seed": seed}
            file = predictions_file(tmp_path, row)
            file.parent.mkdir(exist_ok=True)
            labels, said = np.zeros(10, int), (np.arange(10) < wrong).astype(int)
            np.savez(file, images=np.arange(10).astype("U12"), labels=labels, predicted=said)
            rows.append(json.dumps(row | {"accuracy": 1 - wrong / 10}))
    (tmp_path / "results.jsonl").write_text("\n".join(rows) + "\n")
    found = Results(tmp_path).difference(("d", 4, 0.0), "a", "b")
    assert found.mean == pytest.approx(30)
    assert found.draws == 3
    assert found.error == pytest.approx(100 * ((10 / 9) * 2.1 / 100) ** 0.5)
