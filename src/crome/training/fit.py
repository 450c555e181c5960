"""One stage trained on rows in order, from the first step or from the last checkpoint."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset, IterableDataset
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from crome.data.collator import Collator
from crome.data.failures import in_one_line
from crome.features.verbs import agree, caches, prepare
from crome.model.lengths import Room
from crome.model.recompute import checkpoint_activations
from crome.model.stages import STAGES, Stage, apply_stage, count, parts
from crome.rows import Row
from crome.storage import remove_leftovers
from crome.training.arguments import arguments, check_processes, start_processes
from crome.training.checkpoint_files import last_checkpoint, steps_done
from crome.training.checks import check_lengths
from crome.training.fsdp import layers, shard_language_model
from crome.training.log import LossLog
from crome.training.progress import ProgressBar, console
from crome.training.run_folder import claim, owned
from crome.training.samples import SampleAnswers
from crome.training.settings import RunSettings
from crome.training.stopping import StopOnSignal
from crome.training.trackers import trackers
from crome.training.trainer import LOSS_SCALE, STAGING, CromeTrainer
from crome.training.validation import BEST, BestKept, read_score

MANY_ROWS, SOME_ROWS = 200_000, 1_000
"""Beyond so many rows a run does not fill its cache itself (`crome cache build` does), but for so
many, which are compared with a live pass."""


def fit(
    model: Any,
    processor: Any,
    stream: Dataset[Any],
    out: Path,
    run: RunSettings,
    *,
    samples: Sequence[Row] = (),
    validation: list[Row] | None = None,
    record: dict[str, Any] | None = None,
    base: str | None = None,
) -> CromeTrainer:
    """Trains a stage on rows in order and saves the bridge in `out`, its adapter in `out/adapter`.

    A run that was stopped goes on from its last whole checkpoint.

    Args:
        model: The model; the run applies its own stage.
        processor: The model's own.
        stream: Rows, or groups of rows, in order; its length is the run's, but for `max_steps`,
            which cuts it.
        out: The run's folder, which belongs to this run alone.
        run: How the run is carried out.
        samples: Rows answered at intervals, for a look at what is being learnt.
        validation: Rows that `run.tracking` has answered at intervals.
        record: What else of the run is written to `run.yaml`.
        base: Name of the checkpoint the model is, where it is one on disk; a run that trains the
            adapter alone then saves nothing of it.

    Raises:
        InputError: The folder belongs to another run, or the settings do not fit the model.
        JobError: The loss is no number, memory or disk ran out, or the run was told to stop.
    """
    started = start_processes()
    optimization = run.optimization.rated(run.stage, model.hidden_size)
    run = replace(run, optimization=optimization)
    args = arguments(out, run)
    check_processes(args, started)
    run.holding.check(args.world_size)
    first = args.process_index == 0
    facts = {
        **(record or {}),
        "stage": run.stage,
        "optimization": plain(optimization),
        "seed": run.seed,
        "global_batch": optimization.batch(args.world_size),
    }
    room = Room.measured(model, processor)
    check_lengths(room, processor, stream, run.skip_unreadable)
    with owned(out):
        claim(out, facts, write=first)
        resume = last_checkpoint(out)
        if first:
            shutil.rmtree(out / STAGING, ignore_errors=True)  # of a process killed while saving
            for folder in (out, out / "adapter", out / BEST):
                remove_leftovers(folder)
        apply_stage(model, run.stage)
        model.train()
        if first and not run.quiet:
            console.print(trainable_table(model, run.stage))
        with in_one_line():  # of several processes one computes, and the others take it up
            rows = visited(stream, run, args.world_size) if caches(processor) else []
            workers = run.workers or 0
            skip = run.skip_unreadable
            prepare(model, processor, rows, workers=workers, skip_unreadable=skip)
            agree(processor)
        prepare_language_model(model, run, args.world_size)
        small = base if run.stage == "finetune" else None
        trainer = new_trainer(
            model, processor, stream, out, args, run, samples, validation, small, room
        )
        carry_out(trainer, run, resume)
        if first:
            save_result(trainer, out, run, facts)
        return trainer


def new_trainer(
    model: Any,
    processor: Any,
    stream: Dataset[Any],
    out: Path,
    args: TrainingArguments,
    run: RunSettings,
    samples: Sequence[Row],
    validation: list[Row] | None,
    base: str | None,
    room: Room,
) -> CromeTrainer:
    """The Trainer of a run, with everything that happens on the way."""
    if run.stage == "instruct" and not getattr(model.config, "instruction_aware", True):
        args.ddp_find_unused_parameters = True  # the Q-Former's text path then idles
    first = args.process_index == 0
    callbacks: list[TrainerCallback] = [LossLog(out / "log.jsonl"), StopOnSignal()]
    callbacks += trackers(run.tracking.report_to)
    if first and not run.quiet:
        callbacks.append(ProgressBar())
    if samples and run.sample_steps:
        places = out / "samples.jsonl", run.tracking.report_to
        callbacks.append(SampleAnswers(processor, samples, run.sample_steps, *places))
    if validation and (run.tracking.keep_best or run.tracking.patience):
        callbacks.append(BestKept(model, run.tracking, out, base))
    skipped = out / "skipped.jsonl" if run.skip_unreadable else None
    trainer = CromeTrainer(
        model=model,
        args=args,
        train_dataset=stream,
        eval_dataset=validation,
        data_collator=Collator(processor, room, skipped),
        processing_class=processor,
        callbacks=callbacks,
    )
    trainer.base, trainer.in_shares = base, run.holding.shard
    if run.trainer:
        trainer.check_optimizer()
    trainer.remove_callback(PrinterCallback)  # its lines are in the log and on the bar
    if model.language_model.dtype is torch.float16:
        trainer.scale_gradients(LOSS_SCALE)
    return trainer


def carry_out(trainer: CromeTrainer, run: RunSettings, resume: Path | None) -> None:
    """Trains, and leaves in the model what is the result.

    Raises:
        JobError: See `fit`.
        SystemExit: The run was told to stop, and has saved where it was.
    """
    model: Any = trainer.model
    if resume is not None and 0 < run.optimization.max_steps <= steps_done(resume):
        model.load_trained(resume)  # the Trainer would take a step beyond the last
    else:
        stop = next(c for c in trainer.callback_handler.callbacks if isinstance(c, StopOnSignal))
        with stop.listening(), in_one_line():
            trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        if stop.stopped:
            console.print(
                f"Stopped after step {trainer.state.global_step}, as asked by SIGTERM. The same "
                "command goes on from the last checkpoint.",
                soft_wrap=True,
            )
            raise SystemExit(143)  # 128 + 15, as the shell says of a process that ends so
    out = Path(str(trainer.args.output_dir))
    if run.tracking.keep_best and (score := read_score(out / BEST)) is not None:
        model.load_trained(out / BEST)
        console.print(f"The weights of step {score['step']} are the result: the best validation.")
    trainer.check_finite()
    model.eval()


def save_result(trainer: CromeTrainer, out: Path, run: RunSettings, facts: dict[str, Any]) -> None:
    """Writes the bridge, or the adapter alone where the rest is in a base, and the adapter."""
    model: Any = trainer.model
    model.save_pretrained(out, base=trainer.base)
    trainer.processing_class.save_pretrained(out)  # type: ignore[union-attr]
    if "adapter" in parts(model):
        if run.stage != "finetune":
            model.config.name_or_path = str(out)  # what its adapter now belongs to
        model.save_adapter(out / "adapter", training=facts)


def visited(stream: Dataset[Any], run: RunSettings, processes: int) -> list[Row]:
    """Rows whose features are worth computing before a run: all it sees, or a few of very many."""
    if isinstance(stream, IterableDataset):
        return []  # pictures that stream by may never come again
    seen = len(stream)  # type: ignore[arg-type]
    if run.optimization.max_steps > 0:
        seen = min(seen, run.optimization.max_steps * run.optimization.batch(processes))
    return [stream[i] for i in range(seen if seen <= MANY_ROWS else SOME_ROWS)]


def prepare_language_model(model: Any, run: RunSettings, processes: int) -> None:
    """Cuts up, checkpoints or compiles the layers of the frozen language model."""
    if run.holding.activation_checkpointing:
        checkpoint_activations(model.language_model)
    if run.holding.shard:
        shard_language_model(model)
    if processes > 1:
        # Frozen on every device alike: not for DDP to compare, copy or reduce.
        frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
        frozen += [n for n, _ in model.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen)
    if run.compile_layers:
        chosen = list(layers(model.language_model))
        # Every layer's place in the key-value cache is a case of its own to the compiler.
        torch._dynamo.config.recompile_limit = 4 * len(chosen)
        for layer in chosen:
            layer.compile(dynamic=True)


def trainable_table(model: Any, stage: Stage) -> Table:
    """Part, parameters, trains or frozen: what a stage changes."""
    table = Table(title=f"Stage {stage}", title_justify="left")
    table.add_column("part")
    table.add_column("parameters", justify="right")
    table.add_column("")
    total = trained = 0
    for name, part in parts(model).items():
        size, trains = count(part), name in STAGES[stage]
        total, trained = total + size, trained + size * trains
        table.add_row(name, f"{size:,}", "[bold green]trains[/]" if trains else "[dim]frozen[/]")
    table.add_section()
    table.add_row("trained", f"{trained:,}", f"{trained / total:.2%} of {total:,}")
    return table


def plain(settings: Any) -> dict[str, Any]:
    """A dataclass of settings as what YAML can hold."""
    return {key: plain_value(value) for key, value in asdict(settings).items()}


def plain_value(value: Any) -> Any:
    """A setting as what YAML can hold."""
    if isinstance(value, dict):
        return {key: plain_value(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [plain_value(inner) for inner in value]
    return os.fspath(value) if isinstance(value, Path) else value
