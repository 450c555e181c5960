"""A vision-language model of transformers by its name: told apart, loaded, and with its adapter."""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from crome.attached import AttachedModel
from crome.checkpoints import vlm as vlm_module
from crome.checkpoints.holding import Holding
from crome.checkpoints.loading import adapter_for, load
from crome.checkpoints.vlm import base_of, is_vlm
from crome.errors import InputError
from crome.model.answering import answer
from crome.rows import Row
from crome.training.plan_attached import vlm_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("benchmarks/ is not part of this installation", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import tiny_vlms  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny LLaVA as a folder that transformers wrote."""
    path = tmp_path_factory.mktemp("llava")
    vlm, processor = tiny_vlms.build("llava")
    vlm.save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture
def rows():
    return [
        Row((Image.new("RGB", (60, 40), "red"),), "What is it?", "a", "1"),
        Row((), "Is it?", "b", "2"),
    ]


def test_a_folder_is_told_by_its_config(folder, tmp_path):
    (tmp_path / "config.json").write_text("[1]")
    assert is_vlm(str(folder))
    assert not is_vlm(str(tmp_path))
    assert not is_vlm("crome-tiny")


def test_it_loads_with_the_adapter_attached(folder, rows):
    model, processor = load(str(folder), "float32", bottleneck=8)
    assert isinstance(model, AttachedModel)
    assert model.adapter.down["image"].weight.shape == (8, model.hidden_size)
    assert len(answer(model, processor, rows, max_new_tokens=3)) == 2


def test_the_folder_of_its_adapter_stands_for_both(folder, rows, tmp_path):
    model, processor = load(str(folder), "float32", bottleneck=8)
    torch.nn.init.normal_(model.adapter.up["shared"].weight, std=0.5)
    model.save_pretrained(tmp_path)
    expected = answer(model, processor, rows, max_new_tokens=5)
    again, processor = load(str(tmp_path), "float32")
    assert base_of(tmp_path)["checkpoint"] == str(folder)
    assert again.adapter.down["image"].weight.shape[0] == 8
    assert answer(again, processor, rows, max_new_tokens=5) == expected


@pytest.mark.parametrize("name", ["", None, 3])
def test_an_adapter_that_does_not_name_its_base_is_one_line(tmp_path, name):
    """That of a model which was built and not loaded."""
    saved = {"base": {"kind": "attached", "checkpoint": name}, "adapter": {"bottleneck": 8}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(saved))
    for call in (load, vlm_of):
        with pytest.raises(InputError, match="does not say where its base is; give --checkpoint"):
            call(str(tmp_path))


def test_a_base_that_was_named_from_its_neighbour_is_found_from_anywhere(
    folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(folder.parent)
    model, _ = load(folder.name, "float32", bottleneck=8)
    model.save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert base_of(tmp_path)["checkpoint"] == str(folder)
    load(str(tmp_path), "float32")


def test_an_adapter_of_peft_is_named(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(InputError, match=r"LORA adapter of PEFT.*merge_and_unload"):
        load(str(tmp_path))


def test_settings_of_an_attached_adapter_do_not_fit_a_crome_checkpoint():
    with pytest.raises(InputError, match="bottleneck belongs to an adapter that is attached"):
        load("crome-tiny", bottleneck=8)


def test_an_adapter_of_another_kind_of_base_is_named_before_loading(folder, tmp_path):
    model, _ = load(str(folder), "float32", bottleneck=8)
    model.save_adapter(tmp_path / "attached")
    assert adapter_for(str(folder), tmp_path / "attached") == tmp_path / "attached"
    with pytest.raises(InputError, match="crome-tiny is a CROME checkpoint; give --checkpoint"):
        adapter_for("crome-tiny", tmp_path / "attached")
    (tmp_path / "crome").mkdir()
    (tmp_path / "crome" / "adapter_config.json").write_text('{"base": {}}')
    with pytest.raises(InputError, match="belongs to a CROME checkpoint"):
        adapter_for(str(folder), tmp_path / "crome")


def test_a_family_without_the_way_in_is_refused_before_its_weights_are_read(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mllama"}')
    with pytest.raises(InputError, match="mllama model: its language model looks at pictures"):
        load(str(tmp_path))


def test_how_it_is_held_reaches_its_from_pretrained(folder, monkeypatch):
    seen, real = {}, vlm_module.AutoModelForImageTextToText.from_pretrained

    def spy(name, **keywords):
        seen.update(keywords)
        return real(name, **keywords)

    monkeypatch.setattr(vlm_module.AutoModelForImageTextToText, "from_pretrained", spy)
    model, _ = load(str(folder), "float32", holding=Holding(device_map="cpu"), device="cpu")
    assert seen == {"dtype": torch.float32, "device_map": "cpu"}
    assert model.adapter.up["shared"].weight.device == model.place


def test_a_model_that_reads_videos_too_is_loaded_without_torchvision(tmp_path, rows, monkeypatch):
    """Its folder as on the hub: each part of the processor in a file of its own."""
    monkeypatch.setattr(vlm_module, "find_spec", lambda name: None)
    vlm, processor = tiny_vlms.build("qwen3_vl")
    vlm.save_pretrained(tmp_path)
    for part in (processor.tokenizer, processor.image_processor):
        part.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(processor.chat_template)
    kinds = {"image_processor_type": "Qwen2VLImageProcessorFast"}
    file = tmp_path / "preprocessor_config.json"
    parts = json.loads(file.read_text()) | kinds | {"processor_class": "Qwen3VLProcessor"}
    file.write_text(json.dumps(parts))
    (tmp_path / "video_preprocessor_config.json").write_text(
        json.dumps({"video_processor_type": "Qwen3VLVideoProcessor"})
    )
    model, prepared = load(str(tmp_path), "float32", bottleneck=8)
    assert len(answer(model, prepared, rows, max_new_tokens=3)) == 2
    film = Row((), "What happens?", "a", "3", videos=((rows[0].images[0],) * 2,))
    with pytest.raises(InputError, match="processors of videos need torchvision"):
        prepared.encode([film])


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"adapter_activation": "gelu"}, "adapter_activation is no setting .* activation"),
        ({"activation": "nonsense"}, "nonsense"),
        ({"bottleneck": "many"}, "bottleneck"),
        ({"bottleneck": 2.5}, "bottleneck"),
        ({"bottleneck": True}, "bottleneck"),
        ({"branches": 3}, "branches"),
        ({"branches": ["smell"]}, "smell"),
        ({"gated": "no"}, "gated"),
        ({"shared_up": None}, "shared_up"),
        ({"system_prompt": 3}, "system_prompt"),
        ({"max_question_tokens": "long"}, "max_question_tokens"),
    ],
)
def test_settings_that_mean_nothing_are_named(folder, settings, named):
    with pytest.raises(InputError, match=named):
        load(str(folder), "float32", **settings)
