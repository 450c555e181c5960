"""Cards of adapters that are attached to a model of transformers."""

import sys
from pathlib import Path

import pytest
import torch

from crome.errors import InputError
from crome.interop.card import without_paths
from crome.interop.export import export

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("benchmarks/ is not part of this installation", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import tiny_vlms  # noqa: E402

from crome.attached import attach  # noqa: E402
from crome.checkpoints.loading import load  # noqa: E402


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny LLaVA on disk, and an adapter that was trained on it."""
    folder = tmp_path_factory.mktemp("card")
    vlm, processor = tiny_vlms.build("llava")
    vlm.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    model, _ = load(str(folder / "base"), "float32", bottleneck=8)
    torch.nn.init.normal_(model.adapter.up["shared"].weight)
    model.save_adapter(folder / "adapter", training={"data": "rows.jsonl"})
    return folder


def test_an_attached_adapter_is_published_with_its_base(run, tmp_path):
    out = tmp_path / "weld"
    export(out, checkpoint=str(run / "base"), adapter=run / "adapter", to="hub")
    card = (out / "README.md").read_text()
    assert "right before the language model of `base`" in card
    assert "crome.attach(vlm" in card
    assert str(run) not in card
    model, _ = attach(*tiny_vlms.build("llava"))
    model.load_adapter(out, "weld")


def test_what_cannot_be_exported_is_said(run, tmp_path):
    with pytest.raises(InputError, match="give --to hub and --adapter FOLDER"):
        export(tmp_path, checkpoint=str(run / "base"))


def test_paths_are_cut_and_long_texts_are_none(tmp_path):
    """A run writes down a hash of each of its first rows, together longer than a file's name."""
    record = {"data": str(tmp_path / "rows.jsonl"), "first_rows": "644d2d38 " * 32, "rows": [1]}
    assert without_paths(record) == record | {"data": "rows.jsonl"}
