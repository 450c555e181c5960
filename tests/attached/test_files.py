"""Adapter files: what they say, and which model refuses them."""

import json

import pytest
import torch

import crome
from crome.errors import InputError


@pytest.fixture
def saved(case, tmp_path):
    case("llava").draw()
    case("llava").model.save_adapter(tmp_path, training={"rows": 3})
    return tmp_path


def test_a_file_says_what_it_belongs_to(saved):
    config = json.loads((saved / "adapter_config.json").read_text())
    assert config["base"]["architecture"] == "LlavaForConditionalGeneration"
    assert config["base"]["prompts"]["enable_thinking"] is False
    assert config["adapter"]["branches"] == ["image"]
    assert config["shapes"]["down.image.weight"] == [8, 32]
    assert config["training"] == {"rows": 3}


def test_its_settings_need_not_be_those_of_the_model(case, tmp_path):
    one = case("llava")
    other, _ = crome.attach(
        one.vlm, one.own, bottleneck=4, gated=False, shared_up=False, activation="gelu"
    )
    other.adapter.up["image"].weight.data.normal_()
    other.save_adapter(tmp_path)
    one.model.load_adapter(tmp_path, "other")
    batch = one.batch([(one.small, "what is it?")], ["red"])
    with torch.no_grad():
        assert torch.equal(one.model(**batch).loss, other(**batch).loss)
    one.model.delete_adapter("other")


def test_another_models_adapter_is_refused_by_name(case, saved):
    with pytest.raises(InputError, match="architecture is Qwen3VL"):
        case("qwen3_vl").model.load_adapter(saved)


def test_other_weights_are_refused(case, saved):
    model = case("llava").model
    weight = case("llava").vlm.get_output_embeddings().weight
    before, model.identity = model.identity, None
    weight.data[0] += 1
    with pytest.raises(InputError, match=r"fingerprint is .* here and .* there"):
        model.load_adapter(saved)
    weight.data[0] -= 1
    model.identity = before


def test_another_revision_is_refused_where_weights_cannot_be_compared(case, saved):
    model = case("llava").model
    before = model.identity
    model.identity = {**before, "model_fingerprint": None, "revision": "abc"}
    with pytest.raises(InputError, match="revision is abc here and None there"):
        model.load_adapter(saved)
    model.identity = before


def test_other_prompts_are_refused(case, saved):
    one = case("llava")
    other, _ = crome.attach(one.vlm, one.own, bottleneck=8, system_prompt="Be brief.")
    with pytest.raises(InputError, match="trained with other prompts: system_prompt"):
        other.load_adapter(saved)


def test_a_crome_adapter_is_refused(case, build, tmp_path):
    build(language="llama").model.save_adapter(tmp_path)
    with pytest.raises(InputError, match="belongs to a CROME checkpoint"):
        case("llava").model.load_adapter(tmp_path)


def test_a_damaged_file_is_refused(case, saved):
    (saved / "adapter_model.safetensors").write_bytes(b"0")
    with pytest.raises(InputError, match="damaged"):
        case("llava").model.load_adapter(saved)


def test_a_run_goes_on_from_what_was_saved(case, tmp_path):
    one = case("llava")
    one.draw()
    one.model.save_pretrained(tmp_path)
    expected = {k: v.clone() for k, v in one.model.adapter.state_dict().items()}
    one.model.adapter.reset_parameters()
    one.model.load_trained(tmp_path)
    found = one.model.adapter.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_an_unknown_adapter_is_named(case):
    batch = case("llava").batch([(case("llava").small, "what?")], ["red"])
    with pytest.raises(InputError, match="no adapter named 'x' is loaded"):
        case("llava").model(**batch, adapter_names=["x"])
