"""Two processes give one process's result; a killed run goes on as if nothing had happened."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from crome.checkpoints.loading import Holding
from crome.data.reader import read_rows
from crome.data.stream import RowStream
from crome.errors import InputError
from crome.training.checkpoint_files import checkpoint_folders
from crome.training.log import read_log
from crome.training.train import Optimization, train

sys.path.insert(0, str(Path(__file__).parent))
from processes import train_in

ROWS = 24
STEPS = 6
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
"""Sums in another order differ by 1e-7 of a gradient, and Adam divides by the gradient's size."""


@pytest.fixture(scope="module")
def settings(build, pictures, tmp_path_factory):
    """A saved base, and twenty-four rows of which every second shows no picture."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    pair = build()
    pair.model.save_pretrained(folder / "base")
    pair.processor.save_pretrained(folder / "base")
    lines = []
    for number in range(ROWS):
        row = {"question": f"What is number {number}?", "answer": "blue yes no"[: 3 + number % 8]}
        name = f"{number // 2 % 4}.png"
        pictures[number // 2 % 4].save(folder / name)
        lines.append(row if number % 2 else row | {"image": name})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return {
        "data": folder / "rows.jsonl", "checkpoint": str(folder / "base"), "stage": "instruct",
        "dtype": "float32", "log_steps": 1, "save_steps": 2, "sample_steps": 0,
        "questions_per_image": 2,
        "optimization": optimization(4),
    }  # fmt: skip


def optimization(batch_size: int, accumulated: int = 1) -> Optimization:
    return Optimization(
        learning_rate=1e-3, batch_size=batch_size, gradient_accumulation_steps=accumulated,
        epochs=STEPS * 4 / ROWS, warmup_steps=0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def one(settings, tmp_path_factory):
    """The run that nothing happens to: one process, four rows a step."""
    out = tmp_path_factory.mktemp("one") / "run"
    assert train_in(1, out, **settings) == [0]
    assert len(losses(out)) == STEPS
    return out


def losses(out: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_log(out / "log.jsonl") if "loss" in line]


def bridge(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def assert_close(out: Path, expected: Path) -> None:
    """The same losses to 1e-5 and the same weights, in the same files."""
    assert [step for step, _ in losses(out)] == [step for step, _ in losses(expected)]
    for (_, loss), (_, wanted) in zip(losses(out), losses(expected), strict=True):
        assert loss == pytest.approx(wanted, rel=1e-5)
    for name, tensor in bridge(expected).items():
        if name.endswith("key.bias"):
            continue  # softmax does not see a key's bias: what moves it is rounding
        torch.testing.assert_close(bridge(out)[name], tensor, **TOLERANCE)
    assert files(out) == files(expected)


def files(out: Path) -> set[str]:
    """What a run leaves for others: its own folder and its adapter's, without its tracker's."""
    return {p.relative_to(out).as_posix() for d in (out, out / "adapter") for p in d.iterdir()}


def without_the_last(out: Path, copy: Path) -> Path:
    """A run as it was after its checkpoint before the last."""
    shutil.copytree(out, copy)
    shutil.rmtree(checkpoint_folders(copy)[-1])
    return copy


# ---------------------------------------------------------------------- two processes


def test_two_processes_are_one(one, settings, tmp_path):
    """Two rows each; a text-only half on one side while the other shows pictures."""
    rows = read_rows(settings["data"])
    stream = RowStream(rows, 1, questions_per_image=2, seed=0)
    shown = [bool(stream[i].images or stream[i + 1].images) for i in range(0, ROWS, 2)]
    assert any(left != right for left, right in zip(shown[::2], shown[1::2], strict=True))
    two = tmp_path / "two"
    assert train_in(2, two, **settings | {"optimization": optimization(2)}) == [0, 0]
    assert_close(two, one)
    assert {p.name for p in checkpoint_folders(two)[-1].glob("rng*")} == {
        "rng_state_0.pth", "rng_state_1.pth"
    }  # fmt: skip

    # and from its checkpoint one process goes on, from one's checkpoint two
    for processes, source in ((1, two), (2, one)):
        out = without_the_last(source, tmp_path / f"on-{processes}")
        share = {"optimization": optimization(4 // processes)}
        assert train_in(processes, out, **settings | share) == [0] * processes
        assert_close(out, one)


def test_a_language_model_in_shares_gives_the_same(one, settings, tmp_path):
    shares = {"holding": Holding(shard=True), "optimization": optimization(1, accumulated=2)}
    out = tmp_path / "shares"
    assert train_in(2, out, **settings | shares) == [0, 0]
    assert_close(out, one)
    ours, theirs = (json.loads((p / "adapter/adapter_config.json").read_text())["base"]
                    for p in (out, one))  # fmt: skip
    assert ours["language_fingerprint"] == theirs["language_fingerprint"]


def test_shares_need_several_processes(settings, tmp_path):
    with pytest.raises(InputError, match=r"shard shares the language model between processes"):
        train(tmp_path / "run", **settings | {"holding": Holding(shard=True)})
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------- kill -9


@pytest.mark.parametrize("moment", ["seal", "replace", 0.0, 0.1])
def test_a_killed_run_goes_on_bit_for_bit(one, settings, tmp_path, moment):
    """Killed before its first checkpoint is sealed, inside its first file, and some time later."""
    out = tmp_path / "killed"
    assert train_in(1, out, die=moment, **settings) in ([-9], [0])
    if isinstance(moment, str):
        assert not checkpoint_folders(out)
        assert (out / ".saving").exists()
    assert train_in(1, out, **settings) == [0]
    assert losses(out) == losses(one)
    assert all(torch.equal(t, bridge(one)[n]) for n, t in bridge(out).items())
    assert files(out) == files(one)
