"""A dozen language models and a dozen encoders of the sweep, every check on each.

The whole sweep is `python benchmarks/backbones.py`; its table is in `docs/results/backbones.md`.
"""

import sys
from pathlib import Path

import pytest
import transformers

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("benchmarks/ is not part of this installation", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import backbones  # noqa: E402

LANGUAGE = [
    *("llama", "qwen3", "gemma3_text", "mistral", "phi3", "olmo2"),
    *("gpt2", "opt", "bloom", "trocr", "mbart", "t5"),
]
ENCODERS = [
    *("clip_vision_model", "siglip_vision_model", "dinov2", "dinov3_vit", "vit", "deit"),
    *("mobilevit", "swiftformer", "resnet", "poolformer", "pvt_v2", "focalnet"),
]


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    return backbones.Towers(tmp_path_factory.mktemp("towers"))


@pytest.fixture(autouse=True)
def _quiet():
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()


@pytest.mark.parametrize("kind", LANGUAGE)
def test_a_language_model_passes_every_check(kind, towers):
    result = backbones.examine(kind, "language", towers)
    assert not backbones.faults(result)
    assert backbones.LANGUAGE_CHECKS.keys() <= result.keys()


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_passes_every_check(kind, towers):
    result = backbones.examine(kind, "encoder", towers)
    assert not backbones.faults(result)
    assert backbones.ENCODER_CHECKS.keys() <= result.keys()


def test_every_family_is_in_the_sweep():
    listed = backbones.families()
    assert {tower for _, tower in listed} == {"language", "encoder"}
    assert set(LANGUAGE) | set(ENCODERS) <= {kind for kind, _ in listed}


def test_a_report_counts_what_it_shows():
    names = dict.fromkeys(backbones.LANGUAGE_CHECKS, "yes")
    results = [
        {"family": "a", "tower": "language", **names},
        {"family": "b", "tower": "language", **names, "batch": "differs by 1"},
        {"family": "c", "tower": "language", "refused": "reads text in both directions"},
    ]
    text = backbones.report(results)
    assert "1 of the 2 families that are accepted pass every check; 1 are refused" in text
    assert "* c: reads text in both directions" in text
