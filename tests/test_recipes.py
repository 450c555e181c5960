"""Every recipe below configs/recipes: what it starts from, what it trains, and one step of it.

A recipe starts from the `out` of another, down to a base or a pair of towers; models are built from
that chain at full size without weights, and at toy width to learn from a batch.
"""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

from crome import cli
from crome.checkpoints import presets
from crome.checkpoints.loading import QFORMER
from crome.model.configuration import CromeConfig
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.stages import STAGES, apply_stage, stage_count
from crome.options import from_file

RECIPES = Path(__file__).parents[1] / "configs" / "recipes"
BASES = sorted(str(p.relative_to(RECIPES)) for p in RECIPES.rglob("base.yaml"))
RUNS = sorted(str(p.relative_to(RECIPES)) for p in RECIPES.rglob("*.yaml") if p.name != "base.yaml")
PAPER = ("vicuna-7b", "vicuna-13b", "flan-t5-xxl")
TOWERS: dict[str, tuple[str, str, dict[str, Any]]] = {  # family at toy width, class, real sizes
    "google/siglip2-so400m-patch14-224": ("siglip", "SiglipVisionConfig", {
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
        "num_attention_heads": 16, "image_size": 224, "patch_size": 14}),
    "google/siglip2-base-patch16-224": ("siglip", "SiglipVisionConfig", {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "image_size": 224, "patch_size": 16}),
    "facebook/dinov3-vitl16-pretrain-lvd1689m": ("dinov3", "DINOv3ViTConfig", {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "patch_size": 16, "num_register_tokens": 4}),
    "Qwen/Qwen3-4B-Instruct-2507": ("qwen3", "Qwen3Config", {
        "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 151936, "tie_word_embeddings": True}),
    "HuggingFaceTB/SmolLM3-3B": ("smollm3", "SmolLM3Config", {
        "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 128256,
        "tie_word_embeddings": True, "pad_token_id": 0}),
    "google/gemma-3-1b-it": ("gemma3", "Gemma3TextConfig", {
        "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
        "vocab_size": 262144, "tie_word_embeddings": True}),
}  # fmt: skip
FAMILY = {"vicuna-7b": "vicuna", "vicuna-13b": "vicuna", "flan-t5-xxl": "t5"}

# finetune, pretrain, instruct: CROME and BLIVA as printed in the paper, others added up by hand
TRAINED = {
    "vicuna-7b": (5_242_880, 14_163_968, 199_848_704),
    "vicuna-13b": (6_553_600, 17_704_960, 203_389_696),
    "flan-t5-xxl": (5_242_880, 14_163_968, 199_848_704),
    "bliva-vicuna-7b": (0, 8_921_088, 194_605_824),
    "bliva-flan-t5-xxl": (0, 8_921_088, 194_605_824),
    "ungated-vicuna-7b": (3_145_728, 12_066_816, 197_751_552),
    "bottleneck-64-vicuna-7b": (1_310_720, 10_231_808, 195_916_544),
    "bottleneck-128-vicuna-7b": (2_621_440, 11_542_528, 197_227_264),
    "bottleneck-512-vicuna-7b": (10_485_760, 19_406_848, 205_091_584),
    "siglip2-qwen3-4b": (3_276_800, 7_214_080, 40_430_848),
    "dinov3-smollm3-3b": (2_621_440, 5_509_120, 38_430_976),
    "siglip2-gemma3-1b": (1_474_560, 2_803_968, 35_136_000),
}


@cache
def parsed(name: str) -> dict[str, Any]:
    verb = "convert" if name in BASES else "train"
    return from_file(cli.load(cli.VERBS[verb].function), RECIPES / name)


@cache
def outs() -> dict[str, str]:
    """Where each recipe writes, and which it is."""
    return {str(parsed(name)["out"]): name for name in (*BASES, *RUNS)}


def origin(name: str) -> dict[str, Any]:
    """The recipe at the beginning of a chain: a base, or a run that joins two towers."""
    recipe = parsed(name)
    while "source" not in recipe and not recipe["vision_model"]:
        assert recipe["checkpoint"] in outs(), f"{name} starts from what no recipe makes"
        recipe = parsed(outs()[recipe["checkpoint"]])
    return recipe


@cache
def at_full_size(name: str) -> CromeForConditionalGeneration:
    """The model of a chain without weights."""
    begun, changes = origin(name), origin(name)["settings"] or {}
    if "preset" in begun:
        return presets.on_meta(begun["preset"], **changes)
    towers = (TOWERS[begun[f"{tower}_model"]] for tower in ("vision", "language"))
    vision, text = (getattr(transformers, kind)(**sizes).to_dict() for _, kind, sizes in towers)
    joined = {"vision_config": vision, "text_config": text, "qformer_config": QFORMER}
    with torch.device("meta"):
        return CromeForConditionalGeneration(CromeConfig(**joined, **changes))


def test_they_are_all_there():
    assert (len(BASES), len(RUNS)) == (11, 44)
    assert len(outs()) == 55  # no two write to the same place
    for llm in PAPER:
        for stage in ("pretrain", "instruct-d1", "instruct-d2", "instruct-d3", "scienceqa", "ai2d"):
            assert f"{llm}/{stage}.yaml" in RUNS


@pytest.mark.parametrize("name", [*BASES, *RUNS])
def test_they_write_below_their_own_name(name):
    assert str(parsed(name)["out"]) == f"runs/{name.removesuffix('.yaml')}"
    text = (RECIPES / name).read_text()
    verb = "convert" if name in BASES else "train"
    assert f"crome {verb} --config configs/recipes/{name}\n" in text
    assert set(yaml.safe_load(text)) <= set(parsed(name))


@pytest.mark.parametrize("name", RUNS)
def test_what_trains_at_full_size_is_the_published_number(name):
    model, (finetune, pretrain, instruct) = at_full_size_of(name)
    assert {stage: stage_count(model, stage) for stage in STAGES} == {
        "finetune": finetune, "pretrain": pretrain, "instruct": instruct
    }  # fmt: skip
    assert all(parameter.is_meta for parameter in model.parameters())


def at_full_size_of(name: str) -> tuple[CromeForConditionalGeneration, tuple[int, int, int]]:
    first = outs()[str(origin(name)["out"])]
    return at_full_size(first), TRAINED[name.split("/")[0]]


@pytest.mark.parametrize("name", [n for n in RUNS if n.split("/")[0] in PAPER])
def test_constants_are_the_papers(name):
    """arXiv 2408.06610, section 4.1; four passes over D3 are its two million steps."""
    recipe, stage = parsed(name), parsed(name)["stage"]
    settings = recipe["optimization"]
    expected = {"pretrain": (1e-5, 32, 5), "instruct": (1e-5, 16, 4), "finetune": (1e-4, 16, 10)}
    assert (settings.learning_rate, settings.batch_size, settings.epochs) == (expected[stage])
    assert (settings.warmup_steps, settings.weight_decay) == (1000, 0.05)
    assert (settings.gradient_accumulation_steps, settings.max_steps) == (1, -1)
    assert recipe["views"] == {"pretrain": 5, "instruct": 4, "finetune": 0}[stage]
    assert (RECIPES.parents[1] / recipe["data"]).is_file()


@pytest.mark.parametrize("name", RUNS)
def test_a_step_at_toy_width(name, build, rows):
    """The same chain on towers a hundredth as wide: its stage moves what it should."""
    begun, changes = origin(name), dict(origin(name)["settings"] or {})
    if "preset" in begun:
        system, llm = begun["preset"].split("-", 1)
        vision, language = "eva", FAMILY[llm]
        changes = presets.SYSTEMS[system] | {"prompt_format": "bare"} | changes
    else:
        vision = TOWERS[begun["vision_model"]][0]
        language = TOWERS[begun["language_model"]][0]
        changes |= {"num_query_tokens": 3, "normalize_features": True}
    if changes.get("adapter_bottleneck", 256) is not None:
        changes["adapter_bottleneck"] = changes.get("adapter_bottleneck", 256) // 64
    pair = build(vision, language, **changes)
    stage = parsed(name)["stage"]
    apply_stage(pair.model, stage)
    pair.model.train()
    trained = [p for p in pair.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    batch = pair.batch(rows)
    first = pair.model(**batch).loss
    first.backward()
    optimizer.step()
    assert pair.model(**batch).loss < first
    moved = {n.split(".")[0] for n, p in pair.model.named_parameters() if p.grad is not None}
    assert moved == {part for part in STAGES[stage] if hasattr(pair.model, part)}
