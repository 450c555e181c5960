"""A run of the adapter alone keeps the adapter, its optimiser's state, and the name of its base."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from crome import CromeForConditionalGeneration
from crome.errors import InputError
from crome.model.pretrained import read_base


def test_nothing_of_the_base_is_saved_and_all_of_it_is_loaded(short, place):
    out = short()
    base = load_file(place / "base" / "model.safetensors")
    for folder in (out, out / "checkpoint-2"):
        names = load_file(folder / "model.safetensors").keys()
        assert names
        assert all(name.startswith("adapter.") for name in names)
    loaded = CromeForConditionalGeneration.from_pretrained(out, dtype="float32").state_dict()
    moved = {name for name in base if not torch.equal(base[name], loaded[name])}
    assert moved
    assert all(name.startswith("adapter.") for name in moved)
    trained = load_file(out / "model.safetensors")
    assert all(torch.equal(trained[name], loaded[name]) for name in trained)
    state = torch.load(out / "checkpoint-2" / "optimizer.pt", weights_only=True)["state"]
    assert sum(one["exp_avg"].numel() for one in state.values()) == 640  # the adapter's


def test_a_run_from_such_a_run_names_the_same_base(short, place):
    first = short()
    second = short("second", checkpoint=str(first))
    shutil.rmtree(first)
    assert read_base(second)["checkpoint"] == str((place / "base").resolve())
    CromeForConditionalGeneration.from_pretrained(second)


def test_a_base_that_is_gone_or_changed_is_named(short, place):
    out = short()
    (place / "base").rename(place / "away")
    with pytest.raises(InputError, match=r"its base .*base cannot be read.*base\.json"):
        CromeForConditionalGeneration.from_pretrained(out)
    described = json.loads((out / "base.json").read_text())
    (out / "base.json").write_text(json.dumps(described | {"checkpoint": str(place / "away")}))
    CromeForConditionalGeneration.from_pretrained(out)
    (out / "base.json").write_text(json.dumps(described | {
        "checkpoint": str(place / "away"), "bridge_fingerprint": "0"}))  # fmt: skip
    with pytest.raises(InputError, match="other weights now"):
        CromeForConditionalGeneration.from_pretrained(out)
    (out / "base.json").write_text("{")
    with pytest.raises(InputError, match=r"base\.json is damaged"):
        CromeForConditionalGeneration.from_pretrained(out)


def test_more_of_the_bridge_is_saved_whole(short, place):
    """And so are checkpoints of every run before there were small ones: both still load."""
    out = short(stage="pretrain")
    base = load_file(place / "base" / "model.safetensors")
    assert load_file(out / "model.safetensors").keys() == base.keys()
    assert not (out / "base.json").exists()
    adapter = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert adapter["base"]["checkpoint"] == str(out)  # its projections are nowhere else
