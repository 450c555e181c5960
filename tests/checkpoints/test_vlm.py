"""A vision-language model of transformers by its name: told apart, loaded, and with its adapter."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from crome.attached import AttachedModel
from crome.checkpoints import vlm as vlm_module
from crome.checkpoints.holding import Holding
from crome.checkpoints.loading import adapter_for, load, new_bridge
from crome.checkpoints.vlm import base_of, is_vlm
from crome.errors import InputError
from crome.model.answering import answer
from crome.rows import Row
from crome.studies.ablate import ablate
from crome.studies.gate import gate
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
    assert (seen["dtype"], seen["device_map"]) == (torch.float32, "cpu")
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


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of the folder that a test may damage."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def change(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_weights_that_lack_a_tensor_are_not_drawn_at_random(copy):
    tensors = load_file(copy / "model.safetensors")
    name = next(name for name in tensors if "q_proj" in name)
    save_file({k: v for k, v in tensors.items() if k != name}, copy / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    with pytest.raises(InputError, match=r"cannot be loaded: it lacks .*q_proj"):
        load(str(copy), "float32")
    tensors[name] = tensors[name][:8]
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="weights have other shapes than its config"):
        load(str(copy), "float32")


def test_weights_that_are_no_numbers_are_named(copy, towers, tmp_path):
    words, sight = str(towers.language("vicuna")), str(towers.vision("clip"))

    def damaged(folder, part):
        other = Path(shutil.copytree(folder, tmp_path / f"without {part}"))
        tensors = load_file(other / "model.safetensors")
        tensors[next(name for name in tensors if part in name)].view(-1)[5] = float("nan")
        save_file(tensors, other / "model.safetensors", {"format": "pt"})
        return str(other)

    for part, call in (
        ("lm_head", lambda: load(damaged(copy, "lm_head"), "float32")),
        ("embed_tokens", lambda: new_bridge(sight, damaged(words, "embed_tokens"), "float32")),
        ("fc1", lambda: new_bridge(damaged(sight, "fc1"), words, "float32")),
    ):
        with pytest.raises(InputError, match=rf"{part}\S* holds numbers that are not finite"):
            call()


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_dense_weights_that_are_called_quantised_are_named(copy, bits):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (quantization)")
    change(copy / "config.json", quantization_config={"quant_method": "bitsandbytes", bits: True})
    with pytest.raises(InputError, match=r"config.json calls .* quantised, which it is not; take"):
        load(str(copy), "bfloat16")


@pytest.mark.parametrize("part", ["model", "processor"])
def test_code_of_a_checkpoint_is_neither_run_nor_asked_about(copy, part, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody is asked"))
    (copy / "own.py").write_text("raise SystemExit('it ran')")
    if part == "processor":
        change(copy / "processor_config.json", processor_class="Own",
               auto_map={"AutoProcessor": "own.Own"})  # fmt: skip
        with pytest.raises(InputError, match=r"processor of .* code out of a checkpoint is never"):
            load(str(copy), "float32")
    else:  # transformers has a class of its own for it
        change(copy / "config.json", auto_map={"AutoModelForImageTextToText": "own.Own"})
        load(str(copy), "float32")


def test_an_older_folder_without_the_size_of_patches_is_one_line(copy):
    settings = json.loads((copy / "processor_config.json").read_text())
    (copy / "preprocessor_config.json").write_text(json.dumps(settings["image_processor"]))
    (copy / "processor_config.json").unlink()
    with pytest.raises(InputError, match=r"set patch_size, num_additional.* patch_size 14 and 'de"):
        load(str(copy), "float32")


def test_parts_that_are_absent_are_named(copy):
    (copy / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"the processor of .* cannot be loaded"):
        load(str(copy), "float32")
    with pytest.raises(InputError, match=r"is a file; a checkpoint is the folder that"):
        load(str(copy / "config.json"))


def test_a_token_above_the_embeddings_is_one_line(copy):
    model, processor = load(str(copy), "float32")
    table = model.vlm.get_input_embeddings()
    table.weight = torch.nn.Parameter(table.weight[:20], requires_grad=False)
    with pytest.raises(InputError, match="a token that the model has no embedding for"):
        model(**processor(text=["What?"]))


def test_a_quantised_checkpoint_keeps_its_own_type(copy, monkeypatch):
    monkeypatch.setattr(
        vlm_module.AutoModelForImageTextToText, "from_pretrained",
        lambda *_, **keywords: pytest.fail(str(keywords["dtype"])),
    )  # fmt: skip
    change(copy / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(pytest.fail.Exception, match="auto"):
        load(str(copy), "bfloat16")


def test_an_adapter_fits_its_base_in_float16(folder, tmp_path):
    model, _ = load(str(folder), "float32", bottleneck=8)
    for weight in model.adapter.parameters():
        weight.data.normal_(std=0.1)
    model.save_adapter(tmp_path / "adapter")
    half, _ = load(str(folder), "float16", bottleneck=8)
    assert half.base_identity()["model_fingerprint"] != model.base_identity()["model_fingerprint"]
    half.load_adapter(tmp_path / "adapter")
    other = shutil.copytree(folder, tmp_path / "other")
    half, _ = load(str(other), "float16", bottleneck=8)
    with pytest.raises(InputError, match=r"checkpoint is .*other here"):
        half.load_adapter(tmp_path / "adapter")


@pytest.mark.parametrize("verb", [gate, ablate])
def test_studies_of_a_bridge_refuse_a_model_without_one(folder, tmp_path, verb):
    with pytest.raises(InputError, match=f"crome {verb.__name__} takes the bridge of a CROME"):
        verb(tmp_path, checkpoint=str(folder))
