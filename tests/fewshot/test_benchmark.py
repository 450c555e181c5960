"""Rows are run once, and tables and plots are made from them."""

import json
import shutil
from functools import lru_cache

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from crome.errors import InputError
from crome.fewshot.benchmark import LOCK, Protocol, predictions_file, read_rows, run
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
    assert {f.name for f in (tmp_path / "out").glob("[!.]*")} == {
        "results.jsonl", "predictions", "table.md", "photos.png", "mean.png"
    }  # fmt: skip
    for row in rows:
        with np.load(predictions_file(tmp_path / "out", row)) as kept:
            assert len(set(kept["images"].tolist())) == row["n"]
            assert (kept["predicted"] == kept["labels"]).mean() == row["accuracy"]
    assert {tuple(r["chosen"]) for r in rows if r["method"] == "gda"} == {("alpha",)}


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
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]


def test_a_second_process_is_refused(bench, tmp_path):
    """Both would write the same rows, and every mean would count them twice."""
    out = tmp_path / "out"
    out.mkdir()
    with FileLock(out / LOCK), pytest.raises(InputError, match="another benchmark is writing"):
        bench()
    assert not (out / "results.jsonl").exists()


def test_a_row_that_stands_twice_is_refused(tmp_path):
    log = tmp_path / "results.jsonl"
    row = {"dataset": "pets", "method": "gda", "shots": 1, "seed": 2}
    log.write_text("".join(json.dumps(row | more) + "\n" for more in ({}, {"seed": 3}, {})))
    with pytest.raises(InputError, match=r"has 1 rows more than once, first that of .*gda"):
        read_rows(log)


@pytest.mark.parametrize(
    "line",
    [b"nonsense", b"[1]", b"\xff\xfe{}", b"[" * 100_000, b"null", b'{"shots": [1], "seed": {}}'],
)
def test_a_damaged_line_is_named(tmp_path, line):
    log = tmp_path / "results.jsonl"
    log.write_bytes(line + b"\n{}\n")
    with pytest.raises(InputError, match=r"results\.jsonl has a line that is not a JSON object"):
        read_rows(log)
    assert log.read_bytes() == line + b"\n{}\n"


def test_replaced_pictures_are_measured_anew(clip, photos, tmp_path):
    towers, root = load_encoder(clip), tmp_path / "pets"
    shutil.copytree(photos, root)
    go = lambda: run(  # noqa: E731
        [read_images(root)], towers, SOME, Protocol((2,), (1,), views=0), tmp_path / "out"
    )
    assert len(go()) == 2
    assert len(go()) == 2
    for file in (root / "red").glob("*.png"):
        shutil.copy(photos / "green" / file.name, file)
    assert len(go()) == 4
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.count("zero-shot") == 2  # one line, and its mean: old rows are in the log alone
    old, _, new, _ = (
        json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    )
    assert old["draw"] != new["draw"]
    assert f"| pets | zero-shot | {100 * new['accuracy']:.1f} (0.0)" in table


def test_sets_are_told_apart_by_their_whole_names(clip, photos, tmp_path):
    sets = []
    for name in ("pets-v1.0", "pets-v1.1", "mean"):
        shutil.copytree(photos, tmp_path / name)
        sets.append(read_images(tmp_path / name))
    towers, protocol = load_encoder(clip), Protocol((1,), (1,), views=0)
    rows = run(sets, towers, SOME, protocol, tmp_path / "out")
    assert [row["dataset"] for row in rows] == ["pets-v1.0"] * 2 + ["pets-v1.1"] * 2 + ["mean"] * 2
    plots = {file.name for file in (tmp_path / "out").glob("*.png")}
    assert plots == {"pets-v1.0.png", "pets-v1.1.png", "mean (set).png", "mean.png"}
    with pytest.raises(InputError, match="2 data sets are called 'mean'; rename a folder or file"):
        run([sets[2], sets[2]], towers, SOME, protocol, tmp_path / "out")


def test_other_names_of_classes_are_measured_anew(bench, photos):
    data = read_images(photos)
    first = bench(shots=(2,), seeds=(1,), sets=(data,))
    data.classes = ["leaf", "brick", "water"]
    assert len(bench(shots=(2,), seeds=(1,), sets=(data,))) == len(first) + 2
    data.templates = ("{}.",)
    assert len(bench(shots=(2,), seeds=(1,), sets=(data,))) == len(first) + 4


def test_a_table_has_rows_of_one_protocol(bench, tmp_path):
    bench(shots=(2,), seeds=(1, 2))
    bench(shots=(2,), seeds=(1, 2), val="none")
    table = (tmp_path / "out" / "table.md").read_text()
    assert "val=none" in table
    assert "few" not in table


def test_leaks_are_left_out_and_counted(clip, photos, tmp_path):
    root = tmp_path / "data"
    for part in ("train", "test"):
        shutil.copytree(photos, root / part)
    for file in (root / "test").rglob("*.png"):
        if file.stem < "5":
            Image.open(file).save(file.with_suffix(".jpg"), quality=90)
            file.unlink()
    protocol = Protocol((4,), (1,), val="none", views=0)
    (row, _) = run([read_images(root)], load_encoder(clip), SOME, protocol, tmp_path / "out")
    assert row["leaks"] == 12
    assert row["n"] == 30 - 12


def test_pictures_are_read_once_for_all_draws(clip, photos, tmp_path, monkeypatch):
    from crome.fewshot import pictures

    read = []
    original = pictures._hash_file.__wrapped__
    counting = lru_cache(None)(lambda *file: read.append(file[0]) or original(*file))
    monkeypatch.setattr(pictures, "_hash_file", counting)
    shutil.copytree(photos, tmp_path / "data")
    data = [read_images(tmp_path / "data")]
    run(data, load_encoder(clip), SOME, Protocol((1, 2), (1, 2), views=0), tmp_path / "out")
    assert len(read) == len(set(read)) == 30


def test_wrong_labels_cost_accuracy_and_make_other_rows(bench):
    clean = bench(shots=(8,), seeds=(1, 2, 3))
    noisy = bench(shots=(8,), seeds=(1, 2, 3), label_noise=0.6)[len(clean) :]
    assert len(noisy) == len(clean)
    assert {row["noise"] for row in noisy} == {0.6}
    accuracy = lambda rows: np.mean([r["accuracy"] for r in rows if r["method"] == "gda"])  # noqa: E731
    assert accuracy(noisy) < accuracy(clean)


@pytest.mark.parametrize("settings", [{"shots": ()}, {"seeds": ()}, {"views": -1}])
def test_protocols_without_anything_to_run_are_refused(settings):
    with pytest.raises(InputError, match=r"no shots or no seeds|views is -1"):
        Protocol(**settings)
