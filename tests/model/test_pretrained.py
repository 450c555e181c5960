"""What is on disk: the bridge alone, strict loading, adapters that know their base, whole files."""

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

from crome.adapter import CrossModalAdapter
from crome.errors import InputError, JobError
from crome.model import tensors as tensors_module
from crome.model.adapter_files import ADAPTER_CONFIG, ADAPTER_FILE
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.pretrained import BRIDGE_FILE
from crome.model.processing import CromeProcessor
from crome.model.stages import BRIDGE
from crome.model.tensors import fingerprint, save_tensors

FIVE = {"down.query.weight", "down.patch.weight", "gate.query.weight", "gate.patch.weight",
        "up.shared.weight"}  # fmt: skip


@pytest.fixture
def saved(build, tmp_path):
    """A model and the folder it was saved in."""
    pair = build()
    pair.model.save_pretrained(tmp_path / "base")
    return pair, tmp_path / "base"


def edit(folder: Path, change) -> None:
    tensors = load_file(folder / BRIDGE_FILE)
    change(tensors)
    save_file(tensors, folder / BRIDGE_FILE)


# ---------------------------------------------------------------------- the bridge


def test_a_checkpoint_is_the_bridge_alone(saved):
    pair, folder = saved
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors"}
    tensors = load_file(folder / BRIDGE_FILE)
    assert {name.split(".")[0] for name in tensors} == set(BRIDGE)
    outside = ("vision_model.", "language_model.")
    assert set(tensors) == {
        n for n, _ in pair.model.named_parameters() if not n.startswith(outside)
    }


@pytest.mark.parametrize("loader", [CromeForConditionalGeneration, AutoModelForImageTextToText])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip(saved, rows, loader, dtype):
    pair, folder = saved
    model = loader.from_pretrained(folder, dtype=dtype)
    assert isinstance(model, CromeForConditionalGeneration)
    assert not model.training
    for name, tensor in pair.model.state_dict().items():
        frozen = name.startswith(("vision_model.", "language_model."))
        expected = tensor.to(dtype) if frozen else tensor
        assert torch.equal(model.state_dict()[name], expected), name
    if dtype is torch.float32:
        batch = pair.batch(rows)
        assert torch.equal(model(**batch).logits, pair.model(**batch).logits)
    again = folder.parent / "again"
    model.save_pretrained(again)
    assert AutoConfig.from_pretrained(again).to_diff_dict().keys() == (
        AutoConfig.from_pretrained(folder).to_diff_dict().keys()
    )


def test_settings_can_be_changed_while_loading(saved):
    assert CromeForConditionalGeneration.from_pretrained(saved[1]).config.share_prefix
    model = CromeForConditionalGeneration.from_pretrained(saved[1], share_prefix=False)
    assert not model.config.share_prefix


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("query_tokens"), r"does not fit this model: missing query_tokens\."),
        (lambda t: t.update(extra=torch.ones(1)), r"unexpected extra\."),
        (lambda t: t.update({"query_projection.bias": torch.ones(7)}),
         r"query_projection\.bias is \(7,\), expected \(32,\)"),
        (lambda t: t.clear(), r"missing .*; missing .* …\."),
    ],
)  # fmt: skip
def test_loading_is_strict(saved, change, message):
    edit(saved[1], change)
    with pytest.raises(InputError, match=message):
        CromeForConditionalGeneration.from_pretrained(saved[1])


def test_a_file_that_was_cut_off_is_named(saved):
    file = saved[1] / BRIDGE_FILE
    whole = file.read_bytes()
    for kept in (len(whole) - 10, 5, 0):
        file.write_bytes(whole[:kept])
        with pytest.raises(InputError, match=r"model\.safetensors cannot be read.*cut off"):
            CromeForConditionalGeneration.from_pretrained(saved[1])
    file.unlink()
    with pytest.raises(InputError, match=r"model\.safetensors does not exist"):
        CromeForConditionalGeneration.from_pretrained(saved[1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no readable config\.json"),
        ("{", r"no readable config\.json"),
        ('{"model_type": "llama"}', r"is a 'llama' model; expected 'crome'"),
        ('{"model_type": "crome"}', r"names no towers \(vision_model_id, language_model_id\)"),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=message):
        CromeForConditionalGeneration.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["no/such-model", "no such/name!"])
def test_a_name_that_is_nothing_is_an_error(name):
    with pytest.raises(InputError, match=rf"no checkpoint '{name}': not a folder"):
        CromeForConditionalGeneration.from_pretrained(name)


# ---------------------------------------------------------------------- files are whole or not


def failing(kind: str, monkeypatch) -> None:
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    if kind == "move":
        monkeypatch.setattr(os, "replace", full)
    else:
        monkeypatch.setattr(tensors_module, "save_file", full)
        monkeypatch.setattr(Path, "write_text", full)


@pytest.mark.parametrize("kind", ["move", "write"])
@pytest.mark.parametrize("what", ["base", "adapter"])
def test_a_save_that_fails_leaves_the_earlier_one(saved, monkeypatch, kind, what):
    pair, folder = saved
    save = pair.model.save_pretrained if what == "base" else pair.model.save_adapter
    save(folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    pair.model.adapter.up["shared"].weight.data.zero_()
    with monkeypatch.context() as patch:
        failing(kind, patch)
        with pytest.raises(JobError, match=r"could not write .*No space.*before is intact"):
            save(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    save(folder)
    assert {p.name for p in folder.iterdir()} == before.keys()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small file system needs privileges; simulated elsewhere")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full_leaves_the_earlier_file(small_disk):
    file = small_disk / "a.safetensors"
    save_tensors({"x": torch.arange(100.0)}, file, {})
    with pytest.raises(JobError, match=r"could not write .*a\.safetensors"):
        save_tensors({"x": torch.zeros(100_000)}, file, {})
    assert torch.equal(load_file(file)["x"], torch.arange(100.0))
    assert [p.name for p in small_disk.iterdir()] == ["a.safetensors"]


def test_a_disk_that_is_full_while_a_tokenizer_is_saved_is_one_line(saved, small_disk):
    """The library of tokenizers raises a plain exception, not an error of the system."""
    pair, _ = saved
    (small_disk / "filling").write_bytes(bytes(60_000))
    with pytest.raises(JobError, match=r"could not write .*qformer_tokenizer: .*No space left"):
        pair.processor.save_pretrained(small_disk)


# ---------------------------------------------------------------------- adapters


def test_conformance_12_an_adapter_file_has_five_tensors(saved, tmp_path):
    pair, _ = saved
    pair.model.save_adapter(tmp_path / "task", metrics={"accuracy": 0.5})
    tensors = load_file(tmp_path / "task" / ADAPTER_FILE)
    assert set(tensors) == FIVE
    config = json.loads((tmp_path / "task" / ADAPTER_CONFIG).read_text())
    assert config["metrics"] == {"accuracy": 0.5}
    assert config["shapes"] == {name: list(tensor.shape) for name, tensor in tensors.items()}
    assert config["base"]["width"] == 32
    assert config["adapter"]["adapter_bottleneck"] == 4


@pytest.mark.parametrize(("dtype", "mebibytes"), [(torch.float32, 20), (torch.bfloat16, 10)])
def test_conformance_12_an_adapter_file_at_width_4096(tmp_path, dtype, mebibytes):
    adapter = CrossModalAdapter(4096).to(dtype)
    save_tensors(adapter.state_dict(), tmp_path / "adapter.safetensors", {})
    size = (tmp_path / "adapter.safetensors").stat().st_size
    assert 0 < size - mebibytes * 2**20 < 1000  # names and shapes
    assert set(load_file(tmp_path / "adapter.safetensors")) == FIVE


def test_an_adapter_comes_back_in_three_lines(saved, rows, randomise, tmp_path):
    pair, folder = saved
    batch = pair.batch(rows)
    plain = pair.model(**batch).logits
    randomise(pair.model.adapter)
    tuned = pair.model(**batch).logits
    pair.model.save_adapter(tmp_path / "task")
    model = CromeForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model.load_adapter(tmp_path / "task", name="task")
    assert torch.equal(model(**batch).logits, tuned)
    model.set_adapter(None)
    assert torch.equal(model(**batch).logits, plain)
    model.save_pretrained(tmp_path / "again")  # task adapters are no part of the base
    assert load_file(tmp_path / "again" / BRIDGE_FILE).keys() == (
        load_file(folder / BRIDGE_FILE).keys()
    )


def test_an_adapter_fits_its_base_in_either_type(saved, tmp_path):
    pair, folder = saved
    pair.model.save_adapter(tmp_path / "task")
    model = CromeForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
    model.load_adapter(tmp_path / "task")
    assert model.active_adapter == "task"


def test_an_adapter_may_have_another_shape_than_the_bases(saved, build, tmp_path):
    ungated = build(adapter_bottleneck=2, adapter_gated=False).model
    saved[0].model.save_pretrained(tmp_path / "b")
    kept = {k: v for k, v in saved[0].model.state_dict().items() if not k.startswith("adapter.")}
    ungated.load_state_dict(kept, strict=False)
    ungated.save_adapter(tmp_path / "task")
    saved[0].model.load_adapter(tmp_path / "task")
    assert set(saved[0].model.get_adapter("task").state_dict()) == FIVE - {
        "gate.query.weight", "gate.patch.weight"
    }  # fmt: skip


def other_bridge(pair) -> None:
    nn.init.normal_(pair.model.query_projection.weight)


def other_llm_id(pair) -> None:
    pair.model.config.language_model_id = "org/other"


def other_vision_id(pair) -> None:
    pair.model.config.vision_model_id = "org/other"


def other_llm_weights(pair) -> None:
    pair.model.language_model.lm_head.weight.data += 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_bridge, r"another base: bridge_fingerprint is \w+ here and \w+ there\. Load its"),
        (other_llm_id, r"language_model is org/other here and .*/llama there"),
        (other_vision_id, r"vision_model is org/other here and .*/eva there"),
        (other_llm_weights, r"language_fingerprint is"),
    ],
)
def test_conformance_12_an_adapter_refuses_another_base_by_name(saved, tmp_path, change, message):
    pair, _ = saved
    pair.model.save_adapter(tmp_path / "task")
    change(pair)
    with pytest.raises(InputError, match=message):
        pair.model.load_adapter(tmp_path / "task")
    assert not pair.model.task_adapters


def test_conformance_12_an_adapter_refuses_another_width(saved, tmp_path):
    pair, _ = saved
    pair.model.save_adapter(tmp_path / "task")
    file = tmp_path / "task" / ADAPTER_CONFIG
    config = json.loads(file.read_text())
    config["base"]["width"] = 4096
    file.write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"width is 32 here and 4096 there"):
        pair.model.load_adapter(tmp_path / "task")


def test_a_folder_that_is_no_adapter_is_named(saved, tmp_path):
    with pytest.raises(InputError, match=r"is not a task adapter"):
        saved[0].model.load_adapter(saved[1])
    saved[0].model.save_adapter(tmp_path / "task")
    with pytest.raises(InputError, match=r"holds a task adapter; load its base"):
        CromeForConditionalGeneration.from_pretrained(tmp_path / "task")


def test_a_model_without_an_adapter_has_none_to_save(build, tmp_path):
    with pytest.raises(InputError, match=r"no adapter to save"):
        build(adapter_bottleneck=None).model.save_adapter(tmp_path)


def test_fingerprints_tell_weights_apart_and_not_their_type():
    state = {"a": torch.randn(1000), "b": torch.arange(3)}
    first = fingerprint(state)
    assert fingerprint({"a": state["a"].bfloat16(), "b": state["b"]}) == first
    assert fingerprint({"a": state["a"] + 1, "b": state["b"]}) != first
    assert fingerprint({"c": state["a"], "b": state["b"]}) != first
    assert fingerprint({"a": state["a"].view(10, 100), "b": state["b"]}) != first


# ---------------------------------------------------------------------- what a config may say


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_query_tokens": "8"}, r"'num_query_tokens' expected int, got str \(value: '8'\)"),
        ({"share_prefix": "no"}, r"'share_prefix' expected bool, got str"),
        ({"branches": 3}, r"'branches' with value 3 doesn't match"),
        ({"vision_config": 7}, r"does not describe a model"),
        ({"text_config": {"model_type": "none"}}, r"does not describe a model: .*none"),
        ({"adapter_bottleneck": 0}, r"adapter_bottleneck is 0; expected a whole number above 0"),
        ({"adapter_activation": "sulu"}, r"adapter_activation is 'sulu'"),
    ],
)
def test_a_config_of_wrong_types_is_one_line(saved, change, message):
    file = saved[1] / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=message) as told:
        CromeForConditionalGeneration.from_pretrained(saved[1])
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 400


def test_a_lost_tokenizer_is_refused(saved, tmp_path):
    """Without it the Q-Former would see no question, and answer otherwise."""
    pair, folder = saved
    with pytest.raises(InputError, match=r"qformer_tokenizer is missing.* copy the folder anew"):
        CromeProcessor.from_pretrained(folder)
    assert CromeProcessor.from_pretrained(folder, instruction_aware=False).qformer_tokenizer is None
    pair.processor.save_pretrained(folder)
    assert CromeProcessor.from_pretrained(folder).qformer_tokenizer is not None


def test_towers_load_without_bars(saved, capfd):
    CromeForConditionalGeneration.from_pretrained(saved[1])
    assert "Loading weights" not in capfd.readouterr().err
