"""Presets: counts exact to the unit, on models of full size without weights."""

import pytest

from crome.checkpoints import presets
from crome.errors import InputError
from crome.model.stages import count, parts, stage_count

VIT = 985_949_440 + 2_816  # with `ln_vision`, which transformers counts to the encoder
QFORMER, QUERIES = 185_660_160, 24_576
LANGUAGE = {"vicuna-7b": 6_738_415_616, "vicuna-13b": 13_015_864_320, "flan-t5-xxl": 11_135_332_352}
WIDTH = {"vicuna-7b": 4096, "vicuna-13b": 5120, "flan-t5-xxl": 4096}
WHOLE = {"vicuna-7b": 7_924_216_576, "vicuna-13b": 14_205_206_272, "flan-t5-xxl": 12_321_133_312}
STAGES = {  # finetune, pretrain, instruct
    "crome-vicuna-7b": (5_242_880, 14_163_968, 199_848_704),
    "crome-flan-t5-xxl": (5_242_880, 14_163_968, 199_848_704),
    "crome-vicuna-13b": (6_553_600, 17_704_960, 203_389_696),
    "bliva-vicuna-7b": (0, 8_921_088, 194_605_824),
    "bliva-flan-t5-xxl": (0, 8_921_088, 194_605_824),
    "instructblip-vicuna-7b": (0, 3_149_824, 188_834_560),
    "instructblip-flan-t5-xxl": (0, 3_149_824, 188_834_560),
}


@pytest.mark.parametrize("name", STAGES)
def test_conformance_1_parts_and_stages_are_exact(name):
    """`crome.md` 1.1, 2.1, 2.2 and 2.4."""
    model = presets.on_meta(name)
    system, language = name.split("-", 1)
    width = WIDTH[language]
    expected = {
        "vision_model": VIT,
        "language_model": LANGUAGE[language],
        "qformer": QFORMER,
        "query_tokens": QUERIES,
        "query_projection": 768 * width + width,
    }
    if system != "instructblip":
        expected["patch_projection"] = 1408 * width + width
    if system == "crome":
        expected["adapter"] = 5 * width * 256
        assert sum(p.numel() for p in model.parameters()) == WHOLE[language]
    assert {part: count(p) for part, p in parts(model).items()} == expected
    counted = tuple(stage_count(model, s) for s in ("finetune", "pretrain", "instruct"))
    assert counted == STAGES[name]
    assert all(p.is_meta for p in model.parameters())


def test_every_preset_is_listed_and_unknown_ones_are_named():
    assert set(presets.PRESETS) >= {*STAGES, "bliva-vicuna-13b", "crome-tiny"}
    assert len(presets.PRESETS) == 10
    with pytest.raises(InputError, match=r"no preset 'crome-vicuna-8b'; there are crome-vicuna-7b"):
        presets.preset_config("crome-vicuna-8b")


@pytest.mark.parametrize("name", ["crome-vicuna-7b", "bliva-flan-t5-xxl", "instructblip-vicuna-7b"])
def test_predecessors_are_settings(name):
    config = presets.preset_config(name)
    system = name.split("-")[0]
    assert config.prompt_format == "bare"
    assert (config.adapter_bottleneck is None) == (system != "crome")
    assert config.branches == (["query"] if system == "instructblip" else ["query", "patch"])
    assert config.visual_order == ("patches_first" if system == "crome" else "queries_first")
