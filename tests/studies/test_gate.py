"""What a gate does, against the equations written out."""

import json

import pytest
import torch

from crome.adapter import CrossModalAdapter
from crome.errors import InputError
from crome.rows import Row
from crome.studies import gate as module
from crome.studies.gate import gate, joined, kept_branches, look, only_on, overlap, sums_of


@pytest.fixture
def adapter(randomise):
    made = CrossModalAdapter(6, 4)
    randomise(made)
    return made


def test_sums_are_those_of_the_equations(adapter):
    x = torch.randn(3, 2, 6)
    sums = sums_of(adapter, "patch", x)
    score = x @ adapter.gate["patch"].weight.T
    z = score * score.sigmoid() * (x @ adapter.down["patch"].weight.T)
    added = z @ adapter.up["shared"].weight.T
    assert sums.open.tolist() == (score > 0).float().mean((0, 2)).tolist()
    expected = (added.norm(dim=-1) / x.norm(dim=-1)).mean(0)
    assert sums.change.tolist() == pytest.approx(expected.tolist())
    both = adapter({"patch": x})["patch"]
    assert sums.after.tolist() == pytest.approx(both.pow(2).mean((0, 2)).sqrt().tolist())
    for j in range(4):  # what goes through one direction, in the language model's own width
        through = z[..., j : j + 1] * adapter.up["shared"].weight[:, j]
        assert sums.energy[j].item() == pytest.approx(through.pow(2).sum(-1).mean().item())


def test_batches_count_by_their_size(adapter):
    x = torch.randn(4, 2, 6)
    parts = joined([sums_of(adapter, "query", x[:3]), sums_of(adapter, "query", x[3:])], [3, 1])
    whole = sums_of(adapter, "query", x)
    assert parts.open.tolist() == pytest.approx(whole.open.tolist())
    assert parts.energy.tolist() == pytest.approx(whole.energy.tolist())


def test_overlap_is_one_for_equal_use(adapter):
    sums = sums_of(adapter, "query", torch.randn(4, 2, 6))
    found = overlap({"query": sums, "patch": sums})
    assert found["cosine"] == pytest.approx(1.0)
    assert 1 <= found["half"]["query"] == found["half"]["patch"] <= 3


def test_a_branch_that_is_not_kept_passes_through(adapter):
    x = {"query": torch.randn(1, 2, 6), "patch": torch.randn(1, 3, 6)}
    ways = kept_branches(adapter)
    assert list(ways) == ["both branches", "query alone", "patch alone", "neither"]
    alone = only_on(adapter, ways["query alone"])(x)
    assert torch.equal(alone["patch"], x["patch"])
    assert torch.equal(alone["query"], adapter(x)["query"])
    assert torch.equal(only_on(adapter, ())(x)["query"], x["query"])


def test_the_adapter_is_seen_at_work(build, pictures):
    pair = build()
    rows = [Row((pictures[n % 4],), f"What is it, {n}?", "blue", str(n)) for n in range(6)]
    found = look(pair.model, pair.processor, pair.model.adapter, rows)
    assert set(found) == {"query", "patch"}
    assert len(found["query"].open) == pair.model.config.num_query_tokens
    assert not pair.model.adapter._forward_pre_hooks


def test_the_command(build, pictures, tmp_path, monkeypatch, capsys):
    pair = build()
    rows = [Row((pictures[n % 4],), f"What is it, {n}?", "blue", str(n)) for n in range(6)]
    pair.model.save_adapter(tmp_path / "adapter")
    monkeypatch.setattr(module, "load", lambda *_, **__: (pair.model, pair.processor))
    monkeypatch.setitem(module.TASKS, "easy-vqa", lambda _: rows)
    gate(tmp_path / "adapter", tmp_path / "out", test_questions=6, dtype="float32")
    told = json.loads(capsys.readouterr().out)
    assert list(told) == ["both branches", "query alone", "patch alone", "neither"]
    written = json.loads((tmp_path / "out" / "gate.json").read_text())
    assert written["accuracy"]["both branches"]["loss"]["value"] == 0.0
    if pytest.importorskip("matplotlib"):
        assert (tmp_path / "out" / "gate.png").stat().st_size > 5000


def test_an_adapter_without_gate_is_refused(build, tmp_path, monkeypatch):
    pair = build(adapter_gated=False)
    pair.model.save_adapter(tmp_path / "adapter")
    monkeypatch.setattr(module, "load", lambda *_, **__: (pair.model, pair.processor))
    monkeypatch.setitem(module.TASKS, "easy-vqa", lambda _: [])
    with pytest.raises(InputError, match="no gate"):
        gate(tmp_path / "adapter", tmp_path / "out")
