"""The plan's arithmetic against what a model really takes; its advice; bad input."""

import json
import sys
from pathlib import Path

import pytest
import torch

from crome.checkpoints import presets
from crome.checkpoints.loading import Holding
from crome.errors import InputError
from crome.model.stages import apply_stage
from crome.training import probe
from crome.training.job import GIB, Job, changes
from crome.training.plan import device_memory, plan, sizes_of
from crome.training.probe import Cost, Rows, Sizes, measured, shallow, step_cost
from crome.training.train import Optimization

sys.path.insert(0, str(Path(__file__).parent))
from peak import Peak

ROWS = Rows(number=4, images=2, question_tokens=9, answer_tokens=3)


def deep(tiny_config, language: str, layers: int = 5):
    """A configuration with more layers than the tests' own."""
    config = tiny_config(language)
    for name in ("num_hidden_layers", "num_layers", "num_decoder_layers"):
        if hasattr(config.text_config, name):
            setattr(config.text_config, name, layers)
    config.vision_config.num_hidden_layers = layers
    return config


@pytest.mark.parametrize("language", ["llama", "t5", "gemma3", "qwen3"])
def test_memory_of_a_deep_model_follows_from_shallow_ones(tiny_config, language):
    """To the byte: layers are alike, and what autograd keeps of each is counted, not guessed."""
    config = deep(tiny_config, language)
    if hasattr(config.text_config, "layer_types"):
        config.text_config.layer_types = config.text_config.layer_types[:1] * 5
    told = step_cost(config, "instruct", ROWS, torch.float32)
    real = measured(config, "instruct", ROWS, torch.float32)
    assert told.activations == real.activations
    assert told.features == real.features
    assert told.seconds > 0


def test_towers_are_cut_in_depth_alone(tiny_config):
    small = shallow(deep(tiny_config, "qwen3"), 2, 1)
    assert (small.text_config.num_hidden_layers, small.vision_config.num_hidden_layers) == (2, 1)
    assert small.hidden_size == deep(tiny_config, "qwen3").hidden_size


def test_the_probe_counts_what_autograd_keeps():
    """Of y = (x W)²: x W, once; W is a parameter, and a frozen one keeps no input."""
    weight = torch.nn.Parameter(torch.ones(8, 16), requires_grad=False)
    x = torch.ones(4, 8, requires_grad=True)
    seen: dict[int, int] = {}
    kept = probe.counting(seen, {weight.untyped_storage().data_ptr()})
    with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
        ((x @ weight) ** 2).sum()
    assert sum(seen.values()) == 4 * 16 * 4


@pytest.mark.parametrize("answer", [3, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_holds_at_most_what_is_told(tiny_config, dtype, answer):
    """As memory allocators count: all that is held at a time, the loss's own tensors too."""
    config = deep(tiny_config, "llama", layers=6)
    config.text_config.vocab_size = 2000
    rows = Rows(4, 1, 9, answer)
    model = probe.without_weights(config, dtype, probe.CPU)
    apply_stage(model, "finetune")
    model.train()
    batch = probe.synthetic(config, rows, probe.CPU)
    model(**batch).loss.backward()  # what is tried once
    model.zero_grad()
    own = [*model.parameters(), *model.buffers(), *batch.values()]
    with Peak() as peak:
        peak.known |= {id(x.untyped_storage()) for x in own}
        model(**batch).loss.backward()
    gradients = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    told = step_cost(config, "finetune", rows, dtype).activations
    assert told == pytest.approx(peak.most - gradients, rel=0.05)


def test_bytes_of_weights_are_those_of_the_model(build):
    pair = build()
    apply_stage(pair.model, "instruct")
    sizes = sizes_of(pair.model.config, "instruct")
    job = Job(pair.model.config, sizes, Optimization(), Holding(), torch.float32, 1,
              Cost(1.0, 0.0, 0.0), 1)  # fmt: skip
    needed = job.memory()
    told = needed["language model"] + needed["vision encoder"] + needed["bridge"]
    assert told == sum(p.nbytes for p in pair.model.parameters())
    trained = sum(p.nbytes for p in pair.model.parameters() if p.requires_grad)
    assert needed["gradients and Adam"] == 3 * trained


@pytest.fixture
def vicuna(monkeypatch):
    """Vicuna-7B's sizes, and a step whose cost is given, not measured."""
    config = presets.preset_config("crome-vicuna-7b")
    sizes = Sizes(6_738_415_616, 6_476_005_376, 985_952_256, 199_848_704, 199_848_704, 5_242_880)
    return Job(config, sizes, Optimization(batch_size=16), Holding(), torch.bfloat16, 1,
               Cost(0.5, 4 * GIB, 1.44e6), 4)  # fmt: skip


def test_the_published_model_in_numbers(vicuna):
    needed = vicuna.memory()
    assert needed["language model"] == 2 * 6_738_415_616
    assert needed["bridge"] == 4 * 199_848_704
    assert needed["gradients and Adam"] == 12 * 199_848_704
    assert needed["activations"] == 16 * GIB
    assert vicuna.step_seconds() == 2.0


def test_advice_fits_and_keeps_the_step(vicuna):
    room = 24 * GIB
    advice = list(changes(vicuna, room))
    assert advice[0] == (
        "--optimization.batch_size 4 --optimization.gradient_accumulation_steps 4: 22.2 GiB"
    )
    assert any("--holding.quantization 4bit" in line for line in advice)
    assert all(float(line.split()[-2]) <= 24 for line in advice)
    assert list(changes(vicuna, 1 * GIB)) == [
        "nothing that this command can set; a device with more memory, or a smaller model"
    ]


def test_a_plan_from_the_options_of_a_run(build, tmp_path, capsys, monkeypatch):
    pair = build()
    pair.model.save_pretrained(tmp_path / "base")
    pair.processor.save_pretrained(tmp_path / "base")
    rows = [{"question": f"What is number {i}?", "answer": "blue"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = {
        "out": tmp_path / "run", "data": tmp_path / "rows.jsonl", "dtype": "float32",
        "optimization": Optimization(batch_size=8, epochs=2),
    }  # fmt: skip
    plan(checkpoint=str(tmp_path / "base"), json=True, memory=8, **options)
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["steps_per_epoch"], told["steps"]) == (40, 5, 10)
    assert told["adapter_bytes"] == 4 * 640
    assert told["fits"]
    assert not (tmp_path / "run").exists()
    plan(checkpoint=str(tmp_path / "base"), memory=0.5, **options)
    assert "It does not fit" in capsys.readouterr().out
    # On a machine with a GPU a run on the CPU is planned for the CPU, and measured there.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    plan(checkpoint=str(tmp_path / "base"), json=True, device="cpu", **options)
    told = json.loads(capsys.readouterr().out)
    assert told["capacity"] == device_memory(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="--device cuda: PyTorch finds no GPU"):
        plan(checkpoint=str(tmp_path / "base"), device="cuda", **options)
    with pytest.raises(InputError, match=r"no checkpoint 'runs/none'.*plan with --preset"):
        plan(checkpoint="runs/none", **options)
    with pytest.raises(InputError, match=r"give --data FILE"):
        plan(checkpoint=str(tmp_path / "base"), out=tmp_path)
