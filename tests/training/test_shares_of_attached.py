"""A vision-language model of transformers with its language model in shares of two processes."""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from crome.attached import attach
from crome.checkpoints.holding import Holding, layers
from crome.checkpoints.loading import load, to_device
from crome.model import losses
from crome.rows import Row
from crome.training.train import Optimization

HERE = Path(__file__).parent
BENCHMARKS = HERE.parents[1] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("benchmarks/ is not part of this installation", allow_module_level=True)
sys.path[:0] = [str(HERE), str(BENCHMARKS)]

import tiny_vlms  # noqa: E402
from processes import train_in  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny LLaVA and eight rows on two pictures."""
    path = tmp_path_factory.mktemp("llava")
    vlm, processor = tiny_vlms.build("llava")
    vlm.save_pretrained(path)
    processor.save_pretrained(path)
    for colour in ("red", "blue"):
        Image.new("RGB", (60, 40), colour).save(path / f"{colour}.png")
    lines = [
        {"question": f"Is it {n}?", "answer": "yes" * (1 + n % 3), "image": f"{c}.png"}
        for n in range(4) for c in ("red", "blue")
    ]  # fmt: skip
    (path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return path


def test_its_layers_stay_in_host_memory_until_they_are_cut(folder):
    model, _ = load(str(folder), "float32", device="cpu")
    model = to_device(model, torch.device("meta"), Holding(shard=True))
    inside = {id(p) for layer in layers(model.language_model) for p in layer.parameters()}
    assert inside
    for parameter in model.parameters():
        assert parameter.device.type == ("cpu" if id(parameter) in inside else "meta")


@pytest.mark.parametrize(
    "family", ["llava", "qwen2_5_vl", "qwen3_vl", "smolvlm", "gemma3", "internvl"]
)
def test_the_loss_of_many_answer_tokens_is_computed_in_pieces(family, monkeypatch):
    """As in one piece: loss and gradient, where the logits are too many to keep at once."""
    vlm, processor = tiny_vlms.build(family)
    model, prepared = attach(vlm, processor, bottleneck=8)
    torch.nn.init.normal_(model.adapter.up["shared"].weight, std=0.1)
    shown = (Image.new("RGB", (60, 40), "red"),)
    rows = [Row(shown, "What?", "yes, it is", "1"), Row(shown, "Why?", "no", "2")]
    found = []
    for elements in (losses.CHUNK_ELEMENTS, 3 * tiny_vlms.VOCABULARY):
        monkeypatch.setattr(losses, "CHUNK_ELEMENTS", elements)
        model.zero_grad()
        loss = model(**prepared.encode(rows, answers=True)).loss
        loss.backward()
        found.append((loss.detach(), model.adapter.up["shared"].weight.grad.clone()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


def test_it_trains_as_in_one_process(folder, tmp_path):
    settings = {
        "data": folder / "rows.jsonl", "checkpoint": str(folder), "dtype": "float32",
        "save_steps": 0, "sample_steps": 0, "questions_per_image": 1, "device": "cpu",
        "settings": {"bottleneck": 8},
    }  # fmt: skip

    def optimization(batch_size: int) -> Optimization:
        return Optimization(learning_rate=1e-3, batch_size=batch_size, max_steps=3, warmup_steps=0)

    one, two = tmp_path / "one", tmp_path / "two"
    assert train_in(1, one, **settings, optimization=optimization(4)) == [0]
    shares = {"optimization": optimization(2), "holding": Holding(shard=True)}
    assert train_in(2, two, **settings, **shares) == [0, 0]
    ours, theirs = (next((p / "adapter").glob("*.safetensors")) for p in (two, one))
    for name, tensor in load_file(theirs).items():
        torch.testing.assert_close(load_file(ours)[name], tensor, rtol=1e-3, atol=1e-5)
    bases = [
        json.loads((p / "adapter/adapter_config.json").read_text())["base"] for p in (one, two)
    ]
    assert bases[0] == bases[1]
