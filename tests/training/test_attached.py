"""Runs of the adapter on a vision-language model, from start to result."""

import json
import sys
from pathlib import Path

import pytest
from transformers.utils import logging

from crome.checkpoints.loading import load
from crome.errors import InputError
from crome.training.checkpoint_files import last_checkpoint
from crome.training.log import read_log

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def attached(short, place, monkeypatch):
    """Trains on a tiny LLaVA in a folder that is named from its neighbour."""
    if not BENCHMARKS.is_dir():
        pytest.skip("benchmarks/ is not part of this installation")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    sys.modules.pop("tiny_vlms", None)
    import tiny_vlms

    logging.set_verbosity_error()
    vlm, processor = tiny_vlms.build("llava")
    vlm.save_pretrained(place / "llava")
    processor.save_pretrained(place / "llava")
    monkeypatch.chdir(place)

    def run(out="run", **settings):
        usual = {"checkpoint": "llava", "settings": {"bottleneck": 4}}
        return short(out, **usual | settings)

    return run


def test_a_run_is_saved_and_goes_on_and_its_result_is_loaded_from_anywhere(
    attached, place, monkeypatch
):
    attached(steps=1)
    out = attached(steps=2)
    assert [line["step"] for line in read_log(out / "log.jsonl") if "loss" in line] == [1, 2]
    assert last_checkpoint(out).name == "checkpoint-2"
    base = json.loads((out / "adapter_config.json").read_text())["base"]
    assert base["checkpoint"] == str(place / "llava")
    monkeypatch.chdir("/")
    model, _ = load(str(out), "float32")
    assert len(model.adapter.down["image"].weight) == 4
    with pytest.raises(InputError, match=r"settings was .*4} and is .*8}"):
        attached(checkpoint=str(place / "llava"), settings={"bottleneck": 8})


def test_its_pictures_may_be_shown_in_views(attached):
    assert last_checkpoint(attached(views=2)).name == "checkpoint-2"


def test_it_starts_from_an_adapter_of_the_same_sizes(attached):
    first = attached(steps=1)
    assert last_checkpoint(attached("next", steps=1, adapter=first / "adapter"))
    with pytest.raises(InputError, match=r"other sizes .*--settings '{bottleneck: 4}'"):
        attached("other", steps=1, adapter=first / "adapter", settings={"bottleneck": 8})
