"""The paper's ablations as switches: what each variant is, and a grid from start to report."""

import json

import pytest

from crome.data.packaged import by_picture
from crome.errors import InputError
from crome.intervals import over_runs
from crome.rows import Row
from crome.studies import ablate as module
from crome.studies.ablate import ablate
from crome.studies.ablation_report import CLAIMS, PUBLISHED, claims_table, differences, published
from crome.studies.variants import PAPER, STEPS_OF, WAYS, Variant, dress, grid_of, slug


@pytest.mark.parametrize(
    ("variant", "matrices"),
    [
        (Variant(), {"down": 2, "gate": 2, "up": 1}),
        (Variant(gated=False), {"down": 2, "gate": 0, "up": 1}),
        (Variant(shared_up=False), {"down": 2, "gate": 2, "up": 2}),
        (Variant(bottleneck=64), {"down": 2, "gate": 2, "up": 1}),
    ],
)
def test_a_variant_has_the_adapter_it_names(build, variant, matrices):
    model = build().model
    dress(model, variant, seed=0)
    for name, n in matrices.items():
        weights = list(getattr(model.adapter, name).parameters())
        assert len(weights) == n
        assert all(variant.bottleneck in weight.shape for weight in weights)
    assert not any(w.any() for w in model.adapter.up.parameters())  # fresh: the identity


def test_without_adapter_there_is_none(build, rows):
    pair = build()
    dress(pair.model, Variant(adapter=False), seed=0)
    assert not hasattr(pair.model, "adapter")
    assert pair.say([row[:2] for row in rows])


def test_the_papers_rows_are_told_apart():
    names = [slug(name) for name in PAPER]
    assert len(set(names)) == len(PAPER) == len(set(PAPER.values())) >= 12
    assert all(name.replace("-", "").isalnum() for name in names)
    assert {v.bottleneck for v in PAPER.values()} == {64, 128, 256, 512}


def test_the_grid_of_rows_has_each_way_at_each_size():
    grid = grid_of("rows")
    assert len(grid) == len(WAYS) * len(STEPS_OF)
    assert {variant.rows for variant in grid.values()} == set(STEPS_OF)
    assert not any(variant.pretrain for variant in grid.values())
    assert grid_of("paper") is PAPER
    assert all(name in PAPER for pair in CLAIMS.values() for name in pair)


def test_published_numbers_stand_beside_their_variants():
    assert set(PUBLISHED) <= set(PAPER)
    assert published("ungated") == "28.7 / 54.3"
    assert published("adapter alone m = 64") == "– / 89.1"
    assert published("adapter alone") == "– / 93.2"
    assert published("LoRA") == ""


def test_each_claim_whose_variants_ran_has_a_verdict():
    runs = {
        "gated": [{"right": [1.0, 1.0, 1.0, 0.0]}] * 2,
        "ungated": [{"right": [0.0, 0.0, 0.0, 0.0]}] * 2,
        "LoRA": [{"right": [1.0] * 4}] * 2,
    }
    found = differences(runs, "abcd")
    assert list(found) == ["the gate helps"]
    assert found["the gate helps"]["value"] == 0.75
    assert found["the gate helps"]["of"] == ["gated", "ungated"]
    assert claims_table(found).row_count == 1


def test_contradictions_are_refused():
    with pytest.raises(InputError, match="without adapter cannot train"):
        Variant("adapter", adapter=False)
    with pytest.raises(InputError, match="bottleneck is 0"):
        Variant(bottleneck=0)


def test_intervals_over_seeds():
    """Three runs: the t quantile with two degrees of freedom is 4.303."""
    low, high = over_runs([0.5, 0.6, 0.7])
    assert (low + high) / 2 == pytest.approx(0.6)
    assert (high - low) / 2 == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)
    assert over_runs([0.5])[0] != over_runs([0.5])[0]


def test_a_grid_goes_on_where_it_was(build, pictures, tmp_path, monkeypatch, capsys):
    def rows(split):
        return [
            Row((pictures[n % 4],), f"What is it, {n % 2}?", "blue", f"{split}{n}",
                kind="yes/no" if n % 2 else "color")
            for n in range(16)
        ]  # fmt: skip

    loaded = []

    def load(*_, **__):
        loaded.append(build())
        return loaded[-1].model, loaded[-1].processor

    monkeypatch.setattr(module, "load", load)
    monkeypatch.setitem(module.TASKS, "easy-vqa", rows)
    settings = {
        "variants": {"gated": Variant(), "small": Variant("adapter", bottleneck=4, data=2)},
        "seeds": [0, 1], "steps": 2, "pretrain_steps": 1, "batch_size": 4, "test_questions": 12,
        "dtype": "float32",
    }  # fmt: skip
    ablate(tmp_path, **settings)
    written = capsys.readouterr()
    assert written.err.count("Ablations, exact match") == 2  # after each seed
    said = json.loads(written.out)
    assert list(said) == ["gated", "small"]
    table = json.loads((tmp_path / "ablation.json").read_text())
    small = table["rows"]["small"]
    assert small["seeds"] == 2
    assert small["trained"] == sum(p.numel() for p in loaded[-1].model.adapter.parameters())
    assert small["rows"] == 2 * table["rows"]["gated"]["rows"] == 16
    assert set(small["accuracy"]) == {"all", "color", "yes/no"}
    assert table["blind"] == [1.0] * 12
    assert small["question only"] == 1.0
    kinds = [row.kind for row in by_picture(rows("test"), 12, seed=0)]
    page = (tmp_path / "report.html").read_text()
    assert "seeds: 2; held-out questions: 12" in page
    assert f"color <small>n = {kinds.count('color')}</small>" in page
    assert not (tmp_path / "rows.png").exists()  # no variant is about the number of rows
    assert len(loaded) == 4
    (tmp_path / "runs" / "small-1.json").unlink()
    ablate(tmp_path, **settings)
    assert json.loads(capsys.readouterr().out) == said
    assert len(loaded) == 5  # one run was missing
    with pytest.raises(InputError, match="no variant 'x'; there are gated, small"):
        ablate(tmp_path, **settings | {"only": ["x"]})


def test_few_rows_are_seen_often_and_drawn_as_a_curve(build, pictures, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")

    def rows(split):
        return [Row((pictures[n % 4],), "What is it?", "blue", f"{split}{n}") for n in range(16)]

    seen = []

    def tune(model, processor, given, **settings):
        seen.append((len(given), settings["steps"]))
        return {"parameters": 1, "rows": 1, "cpu_seconds": 1.0, "curve": []}

    pair = build()
    monkeypatch.setattr(module, "load", lambda *_, **__: (pair.model, pair.processor))
    monkeypatch.setattr(module, "tune", tune)
    monkeypatch.setitem(module.TASKS, "easy-vqa", rows)
    grid = {
        f"adapter alone, {n} rows": Variant("adapter", pretrain=False, rows=n, data=n / 4)
        for n in (2, 8)
    }
    ablate(tmp_path, variants=grid, seeds=[0], steps=2, test_questions=4, dtype="float32")
    assert seen == [(2, 1), (8, 4)]
    assert (tmp_path / "rows.png").stat().st_size > 5000
