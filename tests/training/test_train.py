"""Training: what moves, accumulation, exact resume, the schedule, what is written."""

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import get_scheduler

from crome.data.stream import RowStream
from crome.errors import InputError, JobError
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.pretrained import bridge_state
from crome.model.processing import CromeProcessor
from crome.rows import Place, Row
from crome.training import samples
from crome.training import settings as settings_module
from crome.training import trainer as trainer_module
from crome.training import validation as validation_module
from crome.training.arguments import arguments
from crome.training.checkpoint_files import checkpoint_folders, last_checkpoint
from crome.training.fit import fit
from crome.training.log import read_log
from crome.training.settings import Optimization, RunSettings, Tracking
from crome.training.train import example, train

STAGES = ("pretrain", "instruct", "finetune")
LAST = "qformer.encoder.layer.2."  # of the Q-Former's three layers
DEAD = {
    f"{LAST}{part}.{kind}"
    for part in ("intermediate.dense", "output.dense", "output.LayerNorm")
    for kind in ("weight", "bias")
}
"""The text path's last feed-forward: no query reads what it computes (`crome.md` 1.3)."""


@pytest.fixture
def data(rows, pictures):
    """Twelve rows: two images, several questions each, one row without image."""
    shown = [((p,), q, a) for p in pictures[:2] for _, q, a in rows]
    shown += [((), "Is there no picture?", "no"), ((pictures[2], pictures[3]), "Which?", "blue")]
    shown += [((pictures[3],), q[:9], a) for _, q, a in rows] + [((pictures[2],), "no", "no")]
    return [Row(images, q, a, str(i)) for i, (images, q, a) in enumerate(shown)]


@pytest.fixture
def run(build, data, tmp_path):
    """Trains a fresh copy of one model; returns it, what it was before, and the trainer."""

    def run(out="out", pair=None, *, stage="finetune", language="llama", stream=None,
            save_steps=0, settings=None, **optimization):  # fmt: skip
        torch.manual_seed(0)
        pair = pair or build(language=language)
        before = {n: t.clone() for n, t in pair.model.state_dict().items()}
        usual = {"batch_size": 4, "learning_rate": 1e-2, "max_steps": 3, "warmup_steps": 0}
        trainer = fit(
            pair.model, pair.processor, stream or RowStream(data, epochs=9), tmp_path / out,
            RunSettings(stage, Optimization(**usual | optimization), quiet=True,
                        save_steps=save_steps, log_steps=1, **settings or {}),
        )  # fmt: skip
        return pair.model, before, trainer

    return run


def changed(model, before) -> set[str]:
    return {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}


def bridge(model) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in bridge_state(model).items()}


# ---------------------------------------------------------------------- what moves


@pytest.mark.parametrize("language", ["llama", "t5"])
@pytest.mark.parametrize("stage", STAGES)
def test_conformance_8_exactly_the_listed_tensors_move(build, run, rows, stage, language):
    """Three steps after a validation pass without gradients, from closed gates."""
    pair = build(language=language, open_gates=False)
    with torch.no_grad():
        pair.model(**pair.batch(rows))
    model, before, _ = run(pair=pair, stage=stage, weight_decay=0.0)
    trained = {
        "pretrain": ("query_projection.", "patch_projection.", "adapter."),
        "instruct": ("query_tokens", "qformer.", "query_projection.", "patch_projection.",
                     "adapter."),
        "finetune": ("adapter.",),
    }[stage]  # fmt: skip
    listed = {n for n in before if n.startswith(trained)} - DEAD
    # softmax does not see a key's bias: what moves it is rounding, or nothing does
    noise = {n for n in listed if n.endswith("key.bias")}
    moved = changed(model, before)
    assert moved <= listed
    assert listed - moved <= noise
    towers = {n for n in before if n.startswith(("vision_model.", "language_model."))}
    assert towers.isdisjoint(moved)
    assert {n for n, p in model.named_parameters() if p.grad is not None} <= listed | DEAD


def test_conformance_14_text_only_batches_train_beside_others(run, data):
    text_only = [dataclasses.replace(row, images=()) for row in data[:4]]
    model, before, trainer = run(stream=[*text_only, *data[:8]])
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 3
    assert all(torch.tensor(losses).isfinite())
    assert any(n.startswith("adapter.") for n in changed(model, before))


def test_losses_fall_on_rows_seen_again(run, data):
    _, _, trainer = run(stage="instruct", stream=data[:4] * 15, max_steps=15)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < 0.85 * losses[0]


# ---------------------------------------------------------------------- accumulation and resume


@pytest.mark.parametrize("language", ["llama", "t5"])
def test_accumulation_does_not_change_the_update(run, language):
    """8 × 1 = 4 × 2 = 2 × 4: answers have unequal lengths, so a mean of means would differ."""
    found = []
    for size in (8, 4, 2):
        model, before, trainer = run(
            f"out{size}", language=language, batch_size=size, max_steps=2, stage="pretrain",
            gradient_accumulation_steps=8 // size, max_grad_norm=0.0,
        )  # fmt: skip
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        found.append((losses, bridge(model)))
    assert changed(model, before)
    for losses, weights in found[1:]:
        assert losses == pytest.approx(found[0][0], rel=1e-4)  # logged to a few digits
        for name, tensor in weights.items():
            # Adam divides by a gradient's own size, which magnifies its rounding where it is tiny.
            torch.testing.assert_close(tensor, found[0][1][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("language", ["llama", "t5"])
def test_the_loss_is_the_mean_over_all_answer_tokens_of_a_step(build, run, data, language):
    pair = build(language=language)
    rows = data[:4]
    batch = pair.batch([(row.images, row.question, row.answer) for row in rows])
    expected = pair.model(**batch).token_losses.mean().item()
    _, _, trainer = run(pair=pair, stream=rows, max_steps=1, batch_size=2,
                        gradient_accumulation_steps=2)  # fmt: skip
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("language", ["llama", "t5"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(build, run, tmp_path, language):
    whole, _, _ = run("whole", language=language, stage="instruct", max_steps=6, save_steps=2)
    run("killed", language=language, stage="instruct", max_steps=6, save_steps=2)
    out = tmp_path / "killed"
    for lost in checkpoint_folders(out):  # the process died after step 4 was saved
        if lost.name == "checkpoint-6":
            trainer_module.shutil.rmtree(lost)
    assert last_checkpoint(out).name == "checkpoint-4"
    fresh = build(language=language)
    for tensor in bridge(fresh.model).values():
        tensor.zero_()
    resumed, _, trainer = run("killed", pair=fresh, stage="instruct", max_steps=6, save_steps=2)
    assert trainer.state.global_step == 6
    expected = whole.state_dict()
    assert all(torch.equal(t, expected[n]) for n, t in resumed.state_dict().items())
    logs = [[(line["step"], line.get("loss")) for line in read_log(tmp_path / name / "log.jsonl")]
            for name in ("whole", "killed")]  # fmt: skip
    assert logs[0] == logs[1]
    if language == "t5":  # conformance 11, after a resume
        model = resumed.language_model
        assert not torch.equal(model.lm_head.weight, model.shared.weight)


def test_a_resumed_run_refuses_a_damaged_checkpoint(run, tmp_path):
    run(save_steps=3)
    file = last_checkpoint(tmp_path / "out") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors is not as it was written"):
        run(save_steps=3)


# ---------------------------------------------------------------------- schedule


@pytest.mark.parametrize(
    ("stage", "width", "rate"),
    [("finetune", 4096, 1e-4), ("instruct", 4096, 1e-5), ("pretrain", 5120, 8e-6),
     ("finetune", 576, 7.1e-4)],
)  # fmt: skip
def test_rates_that_nobody_named_follow_stage_and_width(stage, width, rate):
    assert Optimization().rated(stage, width).learning_rate == pytest.approx(rate, rel=2e-3)
    assert Optimization(learning_rate=3e-4).rated(stage, width).learning_rate == 3e-4


@pytest.mark.parametrize(("peak", "warmup"), [(1e-5, 1000), (1e-4, 0.25)])
def test_conformance_9_learning_rates(tmp_path, peak, warmup):
    """1e-8 at step 0, the peak at 999 and 1000, half of it in the middle, 0 at the end."""
    steps = 4000
    args = arguments(
        tmp_path, RunSettings("instruct", Optimization(learning_rate=peak, warmup_steps=warmup))
    )
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=peak)
    schedule = get_scheduler(
        args.lr_scheduler_type, optimizer, args.get_warmup_steps(steps), steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )  # fmt: skip
    (rate,) = schedule.lr_lambdas
    expected = {0: 1e-8, 500: 1e-8 + (peak - 1e-8) * 500 / 999, 999: peak, 1000: peak,
                2500: peak / 2, 3999: 0.0}  # fmt: skip
    for step, value in expected.items():
        # transformers counts the cosine's steps from one, a shift of 1e-3 of the middle
        assert peak * rate(step) == pytest.approx(value, rel=1.5e-3, abs=1e-15)
    assert peak * rate(0) == pytest.approx(1e-8, rel=1e-6)


def test_the_optimiser_is_the_papers(run):
    _, _, trainer = run(stage="instruct")
    decayed, plain = trainer.optimizer.param_groups
    assert type(trainer.optimizer.optimizer) is torch.optim.AdamW
    assert (decayed["betas"], decayed["weight_decay"], plain["weight_decay"]) == (
        (0.9, 0.999), 0.05, 0.0)  # fmt: skip
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert all(p.ndim == 1 for p in plain["params"])
    assert {p.dtype for group in (decayed, plain) for p in group["params"]} == {torch.float32}


# ---------------------------------------------------------------------- what is written


def test_the_files_of_a_run(run, tmp_path):
    run(save_steps=1, max_steps=4, warmup_steps=2)
    out = tmp_path / "out"
    assert [p.name for p in checkpoint_folders(out)] == ["checkpoint-3", "checkpoint-4"]
    assert {p.name for p in out.iterdir()} >= {
        "config.json", "model.safetensors", "qformer_tokenizer", "adapter", "run.yaml", "log.jsonl",
    }  # fmt: skip
    assert not (out / ".saving").exists()
    for folder in (out, out / "checkpoint-4"):
        names = load_file(folder / "model.safetensors").keys()
        assert not any(n.startswith(("vision_model", "language_model")) for n in names)
    assert (out / "checkpoint-4" / "optimizer.pt").exists()
    log = [line for line in read_log(out / "log.jsonl") if "loss" in line]
    assert [line["step"] for line in log] == [1, 2, 3, 4]
    assert log[0]["learning_rate"] == pytest.approx(1e-8)


def test_a_checkpoint_that_cannot_be_moved_into_place_leaves_the_others(run, tmp_path, monkeypatch):
    move, out = trainer_module.os.replace, tmp_path / "out"

    def full(source, target):
        if str(target).endswith("checkpoint-3"):
            raise OSError("No space left on device")
        return move(source, target)

    monkeypatch.setattr(trainer_module.os, "replace", full)
    with pytest.raises(JobError, match=r"could not save .*checkpoint-3: No space.*from the last"):
        run(save_steps=1)
    assert [p.name for p in checkpoint_folders(out)] == ["checkpoint-1", "checkpoint-2"]
    assert not (out / ".saving").exists()


def test_a_loss_that_is_no_number_ends_the_run(run):
    with pytest.raises(JobError, match=r"(nan|number) at step .*lower the learning rate"):
        run(learning_rate=1e30, stage="instruct", max_steps=9, max_grad_norm=0.0)


# ---------------------------------------------------------------------- the verb


@pytest.fixture
def folder(build, data, tmp_path):
    """A saved base and a data file beside its pictures."""
    pair = build()
    pair.model.save_pretrained(tmp_path / "base")
    pair.processor.save_pretrained(tmp_path / "base")
    lines = []
    for row in data:
        names = [f"{row.id}-{i}.png" for i in range(len(row.images))]
        for name, image in zip(names, row.images, strict=True):
            image.save(tmp_path / name)
        entry = {"question": row.question, "answer": row.answer}
        lines.append(json.dumps(entry | ({"image": names} if names else {})))
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_the_verb_trains_saves_and_goes_on(folder):
    settings = {
        "data": folder / "data.jsonl", "checkpoint": str(folder / "base"), "dtype": "float32",
        "save_steps": 2, "sample_steps": 2, "log_steps": 1,
    }  # fmt: skip
    short = Optimization(batch_size=4, epochs=1)
    train(folder / "run", optimization=short, **settings)
    assert last_checkpoint(folder / "run").name == "checkpoint-3"
    train(folder / "run", optimization=dataclasses.replace(short, epochs=2), **settings)
    log = [line["step"] for line in read_log(folder / "run" / "log.jsonl") if "loss" in line]
    assert log == [1, 2, 3, 4, 5, 6]
    record = yaml.safe_load((folder / "run" / "run.yaml").read_text())
    assert record["optimization"]["epochs"] == 2
    assert (record["stage"], record["seed"]) == ("finetune", 0)
    samples = [json.loads(s) for s in (folder / "run" / "samples.jsonl").read_text().splitlines()]
    assert {"step", "question", "gold", "answer"} <= samples[0].keys()
    model = CromeForConditionalGeneration.from_pretrained(folder / "run")
    model.load_adapter(folder / "run" / "adapter")
    assert CromeProcessor.from_pretrained(folder / "run").qformer_tokenizer is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give --data FILE"),
        ({"data": Path("missing.jsonl")}, r"missing\.jsonl"),
    ],
)
def test_wrong_arguments_are_named(folder, settings, message):
    with pytest.raises(InputError, match=message):
        train(folder / "run", **settings)


def test_a_run_folder_that_is_a_file_is_named(folder):
    with pytest.raises(InputError, match=r"is a file; give --out a folder"):
        train(folder / "data.jsonl", data=folder / "data.jsonl")


# ---------------------------------------------------------------------- tracking


def test_validation_answers_are_counted_on_the_way(folder):
    """The share of right answers is logged at intervals, beside the losses."""
    train(
        folder / "run", data=folder / "data.jsonl", checkpoint=str(folder / "base"),
        dtype="float32", optimization=Optimization(batch_size=4, epochs=1), sample_steps=2,
        tracking=Tracking(validation=folder / "data.jsonl", validation_rows=5, validation_steps=2),
    )  # fmt: skip
    lines = read_log(folder / "run" / "log.jsonl")
    told = {line["step"]: line["eval_exact_match"] for line in lines if "eval_exact_match" in line}
    assert set(told) == {2, 3}  # the last step is looked at too
    assert told[2] * 5 == pytest.approx(round(told[2] * 5))
    events = EventAccumulator(str(folder / "run" / "runs" / "samples"))
    events.Reload()
    assert "sample 0" in events.Tags()["images"]


def test_validation_counts_right_answers(run, data, monkeypatch):
    _, _, trainer = run()
    trainer.eval_dataset = data
    half = iter([row.answer if i % 2 else "?" for i, row in enumerate(data)])
    monkeypatch.setattr(
        validation_module, "answer", lambda m, p, rows, **_: [next(half) for _ in rows]
    )
    assert trainer.evaluate()["eval_exact_match"] == 0.5


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(settings_module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"report_to wandb needs a package: pip install"):
        Tracking(report_to=("wandb",))


def test_samples_go_to_trackers_with_their_pictures(data, monkeypatch):
    logged = []
    fake = SimpleNamespace(
        Image=lambda image, caption: (image.size, caption),
        log=lambda values, step: logged.append((values, step)),
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    samples.show_in("wandb", data[:2], ["a → b (c)", "d → e (f)"], 7)
    assert logged == [
        ({"sample 0": ((28, 28), "a → b (c)"), "sample 1": ((28, 28), "d → e (f)")}, 7)
    ]


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(run, tmp_path, capsys):
    """Any byte: a cut file, a flipped bit, a file that is gone."""
    out = tmp_path / "out"
    run(save_steps=1)
    file = out / "checkpoint-3" / "optimizer.pt"
    content = file.read_bytes()
    for broken in (content[:-1], content[:500] + b"\0" + content[501:], None):
        file.unlink() if broken is None else file.write_bytes(broken)
        assert last_checkpoint(out).name == "checkpoint-2"
        said = " ".join(capsys.readouterr().err.split())
        assert "checkpoint-3 is damaged (optimizer.pt" in said
        assert "going on from checkpoint-2" in said
    (out / "checkpoint-2" / "files.json").write_text("{")
    with pytest.raises(InputError, match=r"checkpoint-3 is damaged.*checkpoint-2 is damaged"):
        last_checkpoint(out)


def test_the_command_that_is_printed_shows_pictures_at_their_places():
    film = Row((), "First?", "a", "1", videos=((Path("a.png"),),))
    places = (Place("image", 0, 8), Place("image", 0, 14))
    row = Row((Path("a.png"), Path("b.png")), "Compare  with .", "a", "2", places=places)
    command = example(Path("run"), [film, row])
    assert command == (
        "crome ask 'Compare <image> with <image>.' --checkpoint run --image a.png --image b.png"
    )
