"""Adapters beside each other: any names, unloaded, switched off, from a place inside a folder."""

import pytest
import torch

from crome.errors import InputError
from crome.model.task_adapters import NamedAdapters

NAMES = ["weld.v2", "keys", "a%2Eb", "a.b", "training", "ä/ß", "name:x"]


def test_adapters_have_any_names():
    adapters = NamedAdapters()
    for number, name in enumerate(NAMES):
        adapters[name] = torch.nn.Linear(1, number + 1)
    assert list(adapters) == list(adapters.keys()) == NAMES
    for number, (name, module) in enumerate(adapters.items()):
        assert module.out_features == number + 1
        assert adapters[name] is module
    assert "b" not in adapters
    assert adapters.pop("weld.v2").out_features == 1
    del adapters["keys"]
    assert list(adapters) == NAMES[2:]
    assert len(list(adapters.parameters())) == 2 * len(adapters)


@pytest.fixture
def loaded(build, rows, randomise, tmp_path):
    pair = build()
    batch = pair.batch(rows)
    plain = pair.model(**batch).logits
    randomise(pair.model.adapter)
    pair.model.save_adapter(tmp_path / "run" / "adapter")
    tuned = pair.model(**batch).logits
    pair.model.adapter.reset_parameters()
    return pair.model, batch, plain, tuned, tmp_path / "run"


def test_an_adapter_is_loaded_from_inside_a_folder_and_unloaded(loaded):
    model, batch, _, tuned, folder = loaded
    bare = model(**batch).logits
    model.load_adapter(folder, "weld.v2", subfolder="adapter")
    assert torch.equal(model(**batch).logits, tuned)
    model.delete_adapter("weld.v2")
    assert model.active_adapter is None
    assert torch.equal(model(**batch).logits, bare)
    for call in (model.delete_adapter, model.set_adapter, model.get_adapter):
        with pytest.raises(InputError, match=r"no adapter named 'weld.v2' is loaded; loaded: none"):
            call("weld.v2")


def test_adapters_are_off_inside_a_block(loaded):
    model, batch, _, tuned, folder = loaded
    bare = model(**batch).logits
    model.load_adapter(folder / "adapter")
    with model.disable_adapter():
        assert torch.equal(model(**batch).logits, bare)
        assert torch.equal(model(**batch, adapter_names=["task"] * 3).logits, bare)
    assert torch.equal(model(**batch).logits, tuned)


def test_a_revision_reaches_the_hub(loaded, monkeypatch):
    model, *_, folder = loaded
    asked = []

    def locate(name, revision=None, check=None):
        check(folder)
        asked.append((name, revision))
        return folder

    monkeypatch.setattr("crome.model.adapter_files.locate", locate)
    model.load_adapter("me/adapters", revision="v2", subfolder="adapter")
    assert asked == [("me/adapters", "v2")]


def test_a_wrong_repository_costs_no_weights(loaded, fetched):
    """The small files of a repository are looked at before any weights are fetched."""
    model, *_ = loaded
    with pytest.raises(InputError, match="org/llama-70b is not a task adapter; expected a folder"):
        model.load_adapter("org/llama-70b")
    assert fetched
    assert not any("safetensors" in pattern for pattern in fetched)


def test_an_adapter_of_another_library_is_named(loaded, tmp_path):
    model, *_ = loaded
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    (folder / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="lora holds a LORA adapter of PEFT; expected an adapter"):
        model.load_adapter(folder)
