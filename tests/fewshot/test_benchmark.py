"""Rows are run once, and tables and plots are made from them."""

import json

import pytest

from crome.errors import InputError
from crome.fewshot.benchmark import Protocol, read_rows, run
from crome.fewshot.data.reading import read_images
from crome.fewshot.data.sets import ImageSet
from crome.fewshot.encoders import load_encoder
from crome.fewshot.methods import ABLATIONS, METHODS
from crome.fewshot.report import report

SOME = {name: METHODS[name] for name in ("zero-shot", "gda")}


@pytest.fixture
def bench(clip, photos, tmp_path):
    towers, data = load_encoder(clip), read_images(photos)

    def go(methods=SOME, shots=(1, 2), seeds=(1, 2), sets=(data,), **kwargs):
        protocol = Protocol(shots, seeds, views=2, **kwargs)
        return run(sets, towers, methods, protocol, tmp_path / "out")

    return go


def test_a_row_per_cell_with_its_protocol(bench, tmp_path):
    rows = bench()
    assert len(rows) == 8
    assert {(r["shots"], r["seed"], r["method"]) for r in rows} == {
        (k, s, m) for k in (1, 2) for s in (1, 2) for m in SOME
    }
    assert {"draw", "val", "encoder", "views", "ece", "n"} <= set(rows[0])
    assert all(0 <= r["accuracy"] <= 1 for r in rows)
    assert {f.name for f in (tmp_path / "out").iterdir()} == {
        "results.jsonl", "table.md", "photos.png", "mean.png"
    }  # fmt: skip


def test_rows_already_there_are_not_run_again(bench, tmp_path):
    first = bench()
    only = {name: lambda *a, **k: pytest.fail("was run again") for name in SOME}
    assert bench(only) == first
    more = bench(SOME, (1, 2, 4))
    assert more[:8] == first
    assert len(more) == 12
    log = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in log] == more


def test_another_protocol_is_another_row(bench):
    bench(shots=(2,), seeds=(1,))
    rows = bench(shots=(2,), seeds=(1,), val="none")
    assert [row["val"] for row in rows] == ["few", "few", "none", "none"]


def test_shots_that_a_class_cannot_fill_end_the_set(bench):
    rows = bench(shots=(1, 9))  # ten images per class, two of them kept for validation and test
    assert {row["shots"] for row in rows} == {1}


def test_table_has_mean_and_spread(tmp_path):
    row = {"dataset": "a", "method": "m", "shots": 1, "val": "few", "encoder": "e"}
    rows = [row | {"seed": seed, "accuracy": acc} for seed, acc in ((1, 0.5), (2, 0.7))]
    report(rows, tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert "| a | m | 60.0 (14.1) | – |" in table
    assert "seeds [1, 2]" in table
    assert "val=few" in table


def test_nothing_to_report_is_said(clip, tmp_path):
    empty = ImageSet("empty", ["a", "b"], [])
    with pytest.raises(InputError, match="no training image of 'a'"):
        run([empty], load_encoder(clip), SOME, Protocol((1,), (1,)), tmp_path)
    with pytest.raises(InputError, match="no rows to report"):
        report([], tmp_path)


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_classifies(problem, name):
    p = problem
    model = ABLATIONS[name](p.text, classes=range(4)).fit(p.X, p.y)
    assert model.score(p.Q, p.y_test) > 0.5  # chance is 0.25


def test_half_a_line_of_a_killed_run_is_cut_off(tmp_path):
    log = tmp_path / "results.jsonl"
    log.write_text('{"shots": 1}\n{"sho')
    assert read_rows(log) == [{"shots": 1}]
    assert log.read_text() == '{"shots": 1}\n'
    log.write_text("nonsense\n")
    with pytest.raises(InputError, match="a line that is not JSON"):
        read_rows(log)
