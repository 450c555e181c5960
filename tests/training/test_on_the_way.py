"""What happens while a run goes on: validation, a signal, trackers and processes that fail."""

import json
import os
import shlex
import signal
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from crome import cli, options
from crome.data import failures
from crome.errors import InputError, JobError
from crome.training import stopping, trackers
from crome.training.checkpoint_files import last_checkpoint
from crome.training.checks import vain
from crome.training.log import read_log
from crome.training.settings import Optimization, RunSettings, Tracking
from crome.training.validation import BestKept


@pytest.fixture
def scored(place, short):
    """A run that validates after each step."""

    def run(out="run", steps=4, **tracking):
        watched = Tracking((), place / "rows.jsonl", 4, 1, **tracking)
        return short(out, steps=steps, rate=3.0, tracking=watched)

    return run


def column(out, name):
    return [line[name] for line in read_log(out / "log.jsonl") if name in line]


def test_the_validation_loss_is_logged_once_a_step(scored):
    out = scored()
    assert len(column(out, "eval_loss")) == len(column(out, "eval_exact_match")) == 4


def same_weights(*folders):
    """Whether two results are equal bit for bit; the order of a file's metadata is not fixed."""
    one, other = (load_file(folder / "model.safetensors") for folder in folders)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_best_weights_are_the_result(scored):
    """At a rate that overshoots, the last weights are not the best ones."""
    kept, last = scored("kept", keep_best="loss"), scored("last")
    losses = column(kept, "eval_loss")
    assert losses == column(last, "eval_loss")
    best = json.loads((kept / "best" / "score.json").read_text())
    assert best["loss"] == min(losses)
    assert best["step"] == losses.index(min(losses)) + 1
    assert same_weights(kept, kept / "best")


def test_a_run_that_gets_no_better_ends(tmp_path):
    """Two validations in succession without a better one; equal is not better."""
    watcher = BestKept(None, Tracking((), tmp_path, patience=2), tmp_path)
    state, control = SimpleNamespace(global_step=0, is_world_process_zero=True), SimpleNamespace()
    ends = []
    for loss in (3.0, 2.0, 2.5, 1.0, 1.0, 1.5):
        control.should_training_stop = False
        watcher.on_evaluate(None, state, control, {"eval_loss": loss})
        ends.append(control.should_training_stop)
    assert ends == [False] * 5 + [True]


def test_best_and_patience_need_rows_to_judge_by():
    for settings in ({"keep_best": "loss"}, {"patience": 2}):
        with pytest.raises(InputError, match=r"need --tracking\.validation"):
            Tracking((), **settings)


def test_sigterm_saves_and_the_run_goes_on_bit_for_bit(short, monkeypatch):
    """The signal comes in the second of four steps, and no checkpoint is due there."""
    whole = short("whole", steps=4, save_steps=100)
    ask = stopping.StopOnSignal.on_step_end

    def signalled(self, args, state, control, **kwargs):
        if state.global_step == 2 and not self.signalled:
            os.kill(os.getpid(), signal.SIGTERM)
        ask(self, args, state, control, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(stopping.StopOnSignal, "on_step_end", signalled)
        with pytest.raises(SystemExit) as end:
            short("stopped", steps=4, save_steps=0)  # it saves all the same
    assert end.value.code == 143
    out = whole.parent / "stopped"
    assert last_checkpoint(out).name == "checkpoint-2"
    assert not (out / "model.safetensors").exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    short("stopped", steps=4, save_steps=0)
    assert same_weights(out, whole)


def test_a_tracker_that_fails_is_left_out(capsys):
    class Broken(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            raise ConnectionError("no key")

        def on_log(self, *args, **kwargs):
            raise AssertionError("it is called no more")

    class Unmade(TrainerCallback):
        def __init__(self):
            raise RuntimeError("not logged in")

    for make in (Broken, Unmade):
        guarded = trackers.Guarded("wandb", make)
        guarded.on_train_begin(None, None, None)
        guarded.on_log(None, None, None)
    said = capsys.readouterr().err
    assert "wandb is left out (no key)" in said
    assert "wandb is left out (not logged in)" in said


@pytest.mark.parametrize(
    ("raised", "kind", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), JobError, "batch_size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you"), JobError,
         "out of memory"),
        (MemoryError(), JobError, "out of memory"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), JobError,
         "fewer --workers"),
        (InputError("Caught InputError in DataLoader worker process 0.\nOriginal Traceback (most "
                    "recent call last):\n  File\ncrome.errors.InputError: a.png is cut off.\n"),
         InputError, "^a.png is cut off.$"),
    ],
)  # fmt: skip
def test_failures_under_a_run_are_one_line(raised, kind, told):
    with pytest.raises(kind, match=told), failures.in_one_line():
        raise raised


def test_a_picture_that_breaks_in_a_loader_process_is_one_line(short, place):
    (place / "2.png").write_bytes((place / "2.png").read_bytes()[:60])
    with pytest.raises(InputError, match=r"2\.png") as error:
        short(check_images=False, workers=1)
    assert "Traceback" not in str(error.value)


# ---------------------------------------------------------------------- where a run starts


def test_an_adapter_is_a_start(short):
    first = short()
    second = short("second", adapter=first / "adapter", rate=1e-9)
    name = "adapter/adapter_model.safetensors"
    from safetensors.torch import load_file

    ours, theirs = load_file(second / name), load_file(first / name)
    for key, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[key], rtol=0, atol=1e-4)
    with pytest.raises(InputError, match="adapter was None"):
        short(adapter=first / "adapter")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fresh": True}, "--fresh starts anew, and --checkpoint does not"),
        ({"checkpoint": "crome-tiny", "vision_model": "a"}, "go together"),
        ({"vision_model": "a", "language_model": "b"}, "two towers starts anew"),
        ({"checkpoint": "crome-tiny", "fresh": True, "settings": {"m": 1}}, "--settings belongs"),
        ({"checkpoint": "crome-tiny", "vision_model": "a", "language_model": "b",
          "settings": {"num_query_token": 3}}, r"no num_query_token \(meant num_query_tokens"),
        ({"checkpoint": "crome-tiny", "vision_model": "a", "language_model": "b", "fresh": True},
         "--fresh starts crome-tiny"),
        ({"settings": {"bottleneck": 3}}, "belongs to an adapter that is attached"),
        ({"trainer": {"learning_rate": 1}}, r"option of crome \(meant optimization.learning_rate"),
        ({"trainer": {"adam_beta": 1}}, r"TrainingArguments has no adam_beta \(meant adam_beta"),
    ],
)  # fmt: skip
def test_starts_that_contradict_themselves_are_refused(short, settings, message):
    with pytest.raises(InputError, match=message):
        short(**settings)


def test_further_arguments_reach_the_trainer(short, monkeypatch):
    from crome.training import fit as module

    seen = []
    make = module.arguments
    monkeypatch.setattr(module, "arguments", lambda *given: seen.append(make(*given)) or seen[-1])
    other = Optimization(
        batch_size=4, learning_rate=1e-3, max_steps=1, optimizer="adafactor", schedule="linear"
    )
    short(trainer={"adam_beta2": 0.98}, optimization=other)
    (args,) = seen
    assert (args.adam_beta2, args.optim, args.lr_scheduler_type) == (0.98, "adafactor", "linear")


@pytest.mark.parametrize(("name", "value", "told"), [
    ("adam_beta2", "two", "adam_beta2 is 'two'; expected a number"),
    ("adam_beta2", 2, "beta"),
    ("dataloader_drop_last", 1, "dataloader_drop_last is 1; expected true or false"),
    ("optim", "nope", "nope is not a valid"),
    ("lr_scheduler_type", "nope", "nope is not a valid"),
    ("lr_scheduler_kwargs", {"nope": 1}, "nope"),
    ("load_best_model_at_end", True, "meant tracking.keep_best"),
])  # fmt: skip
def test_further_arguments_that_make_no_sense_are_one_line(short, place, name, value, told):
    with pytest.raises(InputError, match=f"trainer: .*{told}"):
        short(trainer={name: value})
    assert not list((place / "run").glob("checkpoint-*"))


def test_another_schedule_is_not_given_what_belongs_to_the_cosine(short):
    assert column(short(trainer={"lr_scheduler_type": "polynomial"}), "learning_rate")


def test_a_float16_language_model_trains(short):
    """Gradients are scaled on their way through it, and the loss that is told is as it is."""
    plain = column(short(), "loss")
    half = column(short("half", dtype="float16"), "loss")
    assert half == pytest.approx(plain, rel=0.02)


def test_rows_without_pictures_are_refused(short, place):
    lines = [json.dumps({"question": "What?", "answer": "no"})] * 4
    (place / "text.jsonl").write_text("\n".join(lines))
    with pytest.raises(InputError, match="no row shows a picture"):
        short(data=place / "text.jsonl")


def test_rows_that_teach_nothing_are_counted(short, place, capsys):
    rows = [json.dumps({"question": "What?", "answer": "no"})] * 5
    rows += [json.dumps({"image": "0.png", "question": "What?", "answer": "no"})] * 4
    (place / "some.jsonl").write_text("\n".join(rows[:8]))
    short(data=place / "some.jsonl")
    assert "Of the first 8 rows 5 show no picture." in " ".join(capsys.readouterr().err.split())
    (place / "more.jsonl").write_text("\n".join(rows[1:]))
    short("more", data=place / "more.jsonl")
    assert "show no picture" not in " ".join(capsys.readouterr().err.split())


def test_steps_show_every_row_as_often(short, place):
    """Eight rows, batches of four and four steps: each row twice, whatever `epochs` says."""
    from crome.training.train import rows_in_order

    stream = rows_in_order(
        place / "rows.jsonl", None, "raise", True, 4,
        Optimization(batch_size=4, max_steps=4, epochs=0.5), 0,
    )  # fmt: skip
    seen = [stream[place].id for place in range(len(stream))]
    assert len(seen) == 16
    assert all(seen.count(name) == 2 for name in seen)


def test_what_is_in_vain_is_told():
    stream = type("Stream", (), {"epochs": 3.0, "__len__": lambda self: 32})()
    reads = SimpleNamespace(end_ids=[2])
    run = RunSettings("finetune", Optimization(batch_size=16, warmup_steps=1000))
    lines = vain(reads, run, stream, 8, new=True)
    assert [line.split()[0] for line in lines] == ["The", "The", "Each"]
    assert "1000 steps and the run 2" in lines[0]
    assert "3 epochs show 3 of its 8; give --views 3, or --optimization.epochs 8." in lines[2]
    quiet = RunSettings("instruct", Optimization(batch_size=16))
    assert not vain(reads, quiet, stream, 2, new=True)
    reads.end_ids = []
    (line,) = vain(reads, quiet, stream, 2, new=True)
    assert "no end token" in line
    assert "eos_token in the tokenizer_config.json" in line


# ---------------------------------------------------------------------- printed commands


def test_the_printed_command_runs(short, capsys):
    """In folders whose names want quoting, with a picture and a question of the rows."""
    short("it's a run")
    lines = capsys.readouterr().err.splitlines()
    (command,) = (line for line in lines if line.strip().startswith("crome ask"))
    words = shlex.split(command)
    assert words[:2] == ["crome", "ask"]
    cli.main([*words[1:], "--dtype", "float32", "--max_new_tokens", "2"])
    assert "--image" in words


@pytest.mark.parametrize("question", ["- is [/b] a [bold] mark?", "What\nis [it]?"])
def test_the_printed_command_holds_any_question(short, place, capsys, question):
    """Brackets are no markup, and a hyphen begins no option."""
    row = {"image": "0.png", "question": question, "answer": "no"}
    (place / "marks.jsonl").write_text(json.dumps(row))
    short(data=place / "marks.jsonl", steps=1, batch=1)
    words = shlex.split("crome ask" + capsys.readouterr().err.partition("crome ask")[2])
    asks = cli.load(cli.VERBS["ask"].function)
    given = options.parsed(options.described(asks, True), words[2:], "crome ask")
    assert given["question"] == question
