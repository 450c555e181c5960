"""Checkpoints of every released format load, and compute what they computed when they were saved.

Twenty steps of a training are kept as numbers, too: whatever changes them changes results.
"""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor

GOLDEN = Path(__file__).parents[1] / "golden"
VERSIONS = sorted(path.parent.name for path in GOLDEN.glob("*/computed.json"))


@pytest.fixture(scope="module")
def make():
    spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_is_a_checkpoint_of_each_released_format():
    assert VERSIONS == ["0.1.0"]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_released_checkpoint_loads_and_computes_the_same(make, version, monkeypatch):
    folder = GOLDEN / version
    monkeypatch.chdir(folder)  # its towers are named as folders beside it
    model = CromeForConditionalGeneration.from_pretrained("base", dtype=torch.float32)
    processor = CromeProcessor.from_pretrained("base")
    model.load_adapter("adapter", name="task")
    found, expected = make.computed(model, processor), json.loads(Path("computed.json").read_text())
    assert found["answers"] == expected["answers"]
    for name in ("losses", "training"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4), name
    assert expected["training"][-1] < expected["training"][0] - 0.05
