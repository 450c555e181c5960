"""Recipes of attached adapters: what trains at full size, and a step at toy width."""

import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText

from crome import cli
from crome.attached import attach
from crome.attached.modeling import AttachedModel
from crome.data.collator import Collator
from crome.model.lengths import Room
from crome.model.stages import apply_stage, stage_count
from crome.options import from_file
from crome.rows import Row

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs" / "attached").glob("*.yaml"))
if not RECIPES:
    pytest.skip("configs/ is not part of this installation", allow_module_level=True)
sys.path.insert(0, str(ROOT / "benchmarks"))

import tiny_vlms  # noqa: E402

SIGLIP = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
          "num_attention_heads": 16, "patch_size": 14}  # fmt: skip
SIZES = {  # family, then the published sizes
    "qwen3-vl-2b": ("qwen3_vl", {
        "text_config": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
                        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
                        "vocab_size": 151936},
        "vision_config": {"depth": 24, "hidden_size": 1024, "num_heads": 16, "patch_size": 16,
                          "intermediate_size": 4096, "out_hidden_size": 2048,
                          "deepstack_visual_indexes": [5, 11, 17]}}),
    "smolvlm2-500m": ("smolvlm", {
        "text_config": {"model_type": "llama", "hidden_size": 960, "intermediate_size": 2560,
                        "num_hidden_layers": 32, "num_attention_heads": 15,
                        "num_key_value_heads": 5, "vocab_size": 49280},
        "vision_config": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                          "num_attention_heads": 12, "image_size": 512, "patch_size": 16},
        "scale_factor": 4}),
    "gemma-3-4b": ("gemma3", {
        "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
                        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
                        "vocab_size": 262208},
        "vision_config": {**SIGLIP, "image_size": 896}, "mm_tokens_per_image": 256}),
    "internvl3-8b": ("internvl", {
        "text_config": {"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944,
                        "num_hidden_layers": 28, "num_attention_heads": 28,
                        "num_key_value_heads": 4, "vocab_size": 151674},
        "vision_config": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                          "num_attention_heads": 16, "image_size": 448, "patch_size": 14}}),
    "llava-onevision-0.5b": ("llava_onevision", {
        "text_config": {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
                        "num_hidden_layers": 24, "num_attention_heads": 14,
                        "num_key_value_heads": 2, "vocab_size": 152000},
        "vision_config": {"model_type": "siglip_vision_model", **SIGLIP, "image_size": 384}}),
}  # fmt: skip
TRAINED = {  # 3 × width × 256
    "qwen3-vl-2b": 1_572_864,
    "smolvlm2-500m": 737_280,
    "gemma-3-4b": 1_966_080,
    "internvl3-8b": 2_752_512,
    "llava-onevision-0.5b": 688_128,
}


def test_they_are_all_there():
    assert {path.stem for path in RECIPES} == set(SIZES) == set(TRAINED)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_command_line_takes_them(path):
    parsed = from_file(cli.load(cli.VERBS["train"].function), path)
    assert parsed["stage"] == "finetune"
    assert f"crome train --config configs/attached/{path.name}" in path.read_text()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_what_trains_at_full_size(path):
    family, sizes = SIZES[path.stem]
    with torch.device("meta"):
        vlm = AutoModelForImageTextToText.from_config(AutoConfig.for_model(family, **sizes))
        model = AttachedModel(vlm, **yaml.safe_load(path.read_text())["settings"])
    assert stage_count(model, "finetune") == TRAINED[path.stem]
    apply_stage(model, "finetune")
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == TRAINED[path.stem]
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_step_at_toy_width(path):
    """The same family a hundredth as wide: the adapter moves, and nothing else."""
    settings = yaml.safe_load(path.read_text())["settings"] | {"bottleneck": 8}
    model, processor = attach(*tiny_vlms.build(SIZES[path.stem][0]), **settings)
    apply_stage(model, "finetune")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rows = [Row((Image.new("RGB", (60, 50), "red"),), "What colour?", "red", "1")]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model.train()
    model(**Collator(processor, Room(None))(rows)).loss.backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"adapter.up.shared.weight"}  # the rest follows once this is no longer zero
