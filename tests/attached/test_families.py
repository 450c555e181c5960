"""Some families with pictures, and some with recordings, each with every check of the sweep."""

import sys
from functools import cache
from pathlib import Path

import pytest
import transformers

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("benchmarks/ is not part of this installation", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

from families import CHECKS, Case  # noqa: E402

FAMILIES = [
    "llava", "qwen2_5_vl", "qwen3_vl", "smolvlm", "gemma3", "internvl", "llava_next",
    "llava_onevision", "glm4v", "qwen3_5", "aya_vision",
    "hunyuan_vl",  # numbers pictures through all rows of a batch
    "chameleon",  # writes into logits of three dimensions
    "paligemma",  # reads prompts with pictures in both directions, and others in one
]  # fmt: skip
HEARING = [
    "gemma4", "gemma4_unified", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker", "muse_spark",
]  # fmt: skip
APART = ("qwen3_5", "paligemma", "gemma4", "gemma4_unified")
"""They keep a state, or pictures see the question, or layers share what they keep."""
transformers.logging.set_verbosity_error()
case = cache(Case)


@pytest.mark.gpu
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_family(family, check, device):
    found = CHECKS[check](case(family, device))
    assert (found == "apart") == (check == "shared" and family in APART)


@pytest.mark.gpu
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("family", HEARING)
def test_family_with_recordings(family, check, device):
    found = CHECKS[check](case(family, device, "audio"))
    assert (found == "apart") == (check == "shared" and family in APART)
