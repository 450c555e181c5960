"""`crome train`: one stage of CROME on rows of images, questions and answers."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self

import torch
import yaml
from rich.table import Table
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset, IterableDataset
from transformers import PrinterCallback, TrainingArguments, set_seed

from crome.checkpoints.loading import PLAINLY, Holding, load, new_bridge, new_tiny
from crome.data.collator import Collator
from crome.data.mixture.prepare import open_stream
from crome.data.reader import read_rows
from crome.data.views import Views
from crome.errors import InputError, not_negative, positive
from crome.features.verbs import CACHING, Caching, caches, enable, prepare
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor
from crome.model.recompute import checkpoint_activations
from crome.model.stages import STAGES, Stage, apply_stage, count, parts
from crome.rows import Row
from crome.training.fsdp import layers, shard_language_model
from crome.training.samples import SampleAnswers
from crome.training.trainer import (
    STAGING,
    CromeTrainer,
    LossLog,
    ProgressBar,
    console,
    last_checkpoint,
    steps_done,
)
from crome.version import __version__

FIRST_ROWS = 200
"""So many are looked at for what would be cut."""
MANY_ROWS, SOME_ROWS = 200_000, 1_000
"""Beyond so many rows a run does not fill its cache itself (`crome cache build` does), but for so
many, which are compared with a live pass."""


@dataclass(frozen=True)
class Optimization:
    """How a stage is optimised; the defaults are the paper's constants of arXiv 2408.06610, 4.1.

    Attributes:
        learning_rate: Peak rate. By default the paper's at its width of 4096, 1e-4 for a task and
            1e-5 for both first stages, and in inverse proportion for narrower or wider language
            models, as Adam's rates carry over between widths (arXiv 2203.03466).
        batch_size: Rows a step on one device.
        gradient_accumulation_steps: Batches a step; the global batch is the product of both and of
            the number of devices.
        warmup_steps: Steps from 1e-8 to the peak, or a fraction of the run below 1. The paper has
            1,000, too many for a run of a few hundred steps.
        weight_decay: AdamW's, on matrices and embeddings, not on biases and norms.
        max_grad_norm: Gradients are clipped to this norm; 0 for none. Not in the paper.
        epochs: Passes over the rows.
        max_steps: Overrides `epochs` when positive.
    """

    learning_rate: float | None = None
    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    warmup_steps: float = 0.05
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    epochs: float = 3.0
    max_steps: int = -1

    def __post_init__(self) -> None:
        positive(
            learning_rate=1.0 if self.learning_rate is None else self.learning_rate,
            batch_size=self.batch_size,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            epochs=self.epochs,
        )
        not_negative(
            warmup_steps=self.warmup_steps,
            weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm,
        )

    def rated(self, stage: Stage, width: int) -> Self:
        """With the rate for a stage and a width of the language model, where none was given."""
        if self.learning_rate is not None:
            return self
        at_4096 = 1e-4 if stage == "finetune" else 1e-5
        return replace(self, learning_rate=at_4096 * 4096 / width)

    def batch(self, processes: int) -> int:
        """Rows a step over all devices."""
        return self.batch_size * self.gradient_accumulation_steps * processes


@dataclass(frozen=True)
class Tracking:
    """Where the curves go, and what is asked of the model on the way.

    Attributes:
        report_to: Trackers; the losses are kept as JSON lines whatever they are. `wandb` and
            `trackio` need the extra `track`.
        validation: Rows that are answered at intervals; the share of right ones is logged.
        validation_rows: Only so many of them, the first.
        validation_steps: Steps between.
    """

    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    validation: Path | None = None
    validation_rows: int = 200
    validation_steps: int = 200

    def __post_init__(self) -> None:
        positive(validation_rows=self.validation_rows, validation_steps=self.validation_steps)
        for name in self.report_to:
            if find_spec(name) is None:
                raise InputError(f"report_to {name} needs a package: pip install 'crome[track]'.")


TRACKING = Tracking()


def train(
    out: Path,
    data: Path | None = None,
    checkpoint: str = "crome-tiny",
    stage: Stage = "finetune",
    optimization: Optimization = Optimization(),
    fresh: bool = False,
    vision_model: str | None = None,
    language_model: str | None = None,
    settings: dict[str, Any] | None = None,
    image_root: Path | None = None,
    on_bad_row: Literal["raise", "skip"] = "raise",
    check_images: bool = True,
    questions_per_image: int = 4,
    dtype: Literal["bfloat16", "float32", "auto"] = "bfloat16",
    attention: Literal["eager", "sdpa", "flash_attention_2", "auto"] = "auto",
    holding: Holding = PLAINLY,
    compile_layers: bool = False,
    cache: Caching = CACHING,
    views: int = 0,
    save_steps: int = 200,
    log_steps: int = 10,
    sample_steps: int = 100,
    tracking: Tracking = TRACKING,
    workers: int = 0,
    seed: int = 0,
) -> None:
    """Train one stage: the adapter alone (`finetune`), or more of the bridge.

    The frozen towers are never changed and never saved. A run that was stopped goes on from its
    last checkpoint when the same command is given again.

    Args:
        out: Folder for checkpoints, logs, `run.yaml`, and the result.
        data: Rows, as JSONL, LLaVA JSON, chat messages, LAVIS triples or Parquet, or a mixture of
            data sets (.yaml); `crome validate` checks them.
        checkpoint: What to start from: a folder, a hub id, or a preset that has weights.
        stage: `finetune` trains the adapter, `pretrain` also both projections, `instruct` also the
            Q-Former and its queries.
        optimization: Rates, batch and length.
        fresh: Start crome-tiny from an untrained bridge.
        vision_model: With `language_model`: start from an untrained bridge between these two
            towers, hub ids, folders, or packaged ones such as asset:efficientnet-lite2.
        language_model: See `vision_model`; files that end in .gguf are read too.
        settings: Fields of the configuration of such a new model, such as num_query_tokens; or of
            an adapter attached to a vision-language model: bottleneck, branches.
        image_root: Folder that image paths in `data` start from, and the files of a mixture; by
            default the file's own.
        on_bad_row: Whether a bad row stops the run before it starts, or is left out and counted;
            with `skip` also rows whose picture goes away while training (skipped.jsonl in `out`).
        check_images: Whether to decode every picture once before the run starts, so that none stops
            it later; about 200 a second and core.
        questions_per_image: Rows of one image kept together, whose shared tokens are computed once.
        dtype: Type of the frozen towers; what trains is always float32.
        attention: Implementation inside the language model; `auto` takes eager on the CPU in
            bfloat16, where the fused kernel's backward is slow, and the model's own otherwise.
        holding: How a language model is held that is too large to be held plainly.
        compile_layers: Compile the language model's layers: needs a C++ compiler and some minutes,
            then each step is faster; worth it for runs of more than half an hour.
        cache: Features of what is frozen, computed once before the run and read from disk in it.
        views: Show each picture in so many random crops, mirrored half of the time, another each
            epoch, instead of whole; not for questions about left and right. 0 shows it whole.
        save_steps: Steps between checkpoints.
        log_steps: Steps between logged losses.
        sample_steps: Steps between sample answers; 0 for none.
        tracking: Where the curves go, and validation on the way.
        workers: Loader processes.
        seed: Of the order of rows and of everything random.
    """
    if data is None:
        raise InputError("give --data FILE, the rows to train on.")
    positive(questions_per_image=questions_per_image, log_steps=log_steps)
    not_negative(save_steps=save_steps, sample_steps=sample_steps, workers=workers, views=views)
    check_folder(out)
    resume = last_checkpoint(out)
    set_seed(seed)
    validation = validation_rows(tracking, image_root, check_images)
    stream: Dataset[Any] = open_stream(
        data, image_root, on_bad_row, check_images, optimization.epochs, questions_per_image, seed
    )
    if views:
        stream = Views(stream, views, max(1, round(len(stream) / optimization.epochs)), seed)  # type: ignore[arg-type]
    rows = list(islice(iter(stream), FIRST_ROWS))
    if vision_model and language_model:
        model, processor = new_bridge(
            vision_model, language_model, dtype, attention, holding, **(settings or {})
        )
    elif vision_model or language_model:
        raise InputError("--vision_model and --language_model go together; give both or neither.")
    else:
        start = new_tiny if fresh else partial(load, checkpoint)
        model, processor = start(dtype, attention, holding, **(settings or {}))
    processor = enable(model, processor, cache)
    tell_of_cuts(processor, rows)
    trainer = fit(
        model, processor, stream, out,
        stage=stage, optimization=optimization, samples=rows[:4], resume=resume,
        skip_unreadable=on_bad_row == "skip",
        holding=holding, compile_layers=compile_layers, save_steps=save_steps, log_steps=log_steps,
        sample_steps=sample_steps, tracking=tracking, validation=validation, workers=workers,
        seed=seed,
        record={"data": str(data), "checkpoint": checkpoint,
                "fresh": fresh, "vision_model": vision_model, "language_model": language_model,
                "settings": settings,
                "questions_per_image": questions_per_image, "views": views, "dtype": dtype,
                "data_fingerprint": getattr(stream, "fingerprint", None)},
    )  # fmt: skip
    if trainer.is_world_process_zero():
        done = f'Done: {out}. Ask it: crome ask --checkpoint {out} --image FILE "question"'
        console.print(done, soft_wrap=True)


def fit(
    model: CromeForConditionalGeneration,
    processor: CromeProcessor,
    stream: Dataset[Any],
    out: Path,
    *,
    stage: Stage,
    optimization: Optimization,
    samples: list[Row] | None = None,
    resume: Path | None = None,
    holding: Holding = PLAINLY,
    compile_layers: bool = False,
    save_steps: int = 200,
    log_steps: int = 10,
    sample_steps: int = 0,
    tracking: Tracking = TRACKING,
    validation: list[Row] | None = None,
    workers: int = 0,
    seed: int = 0,
    quiet: bool = False,
    skip_unreadable: bool = False,
    record: dict[str, Any] | None = None,
) -> CromeTrainer:
    """Trains a stage on rows in order and saves the bridge in `out`, its adapter in `out/adapter`.

    Args:
        model: With any stage applied before; `stage` decides anew.
        processor: Of the model.
        stream: Rows, or groups of rows, in order; its length is the run's.
        out: The run's folder.
        stage: What trains.
        optimization: Its epochs are the stream's affair; `max_steps` cuts the run.
        samples: Rows answered at intervals, for a look at what is being learnt.
        resume: A checkpoint folder to go on from.
        holding: See `train`.
        compile_layers: See `train`.
        save_steps: See `train`; 0 for no checkpoints on the way.
        log_steps: See `train`.
        sample_steps: See `train`.
        tracking: See `train`.
        validation: Rows that `tracking` has answered at intervals.
        workers: See `train`.
        seed: See `train`.
        quiet: No table and no progress bar.
        skip_unreadable: Whether rows whose picture cannot be read are left out of their batches.
        record: What else of the run is written to `run.yaml`.
    """
    optimization = optimization.rated(stage, model.hidden_size)
    args = arguments(out, optimization, save_steps, log_steps, workers, seed, tracking)
    holding.check(args.world_size)
    if stage == "instruct" and not getattr(model.config, "instruction_aware", True):
        args.ddp_find_unused_parameters = True  # the Q-Former's text path then idles
    first = args.process_index == 0
    record = {
        **(record or {}),
        "stage": stage,
        "optimization": _plain(optimization),
        "seed": seed,
        "global_batch": optimization.batch(args.world_size),
    }
    if resume is not None:
        same_run(out / "run.yaml", record)
    apply_stage(model, stage)
    model.train()
    if first:
        if not quiet:
            console.print(trainable_table(model, stage))
        shutil.rmtree(out / STAGING, ignore_errors=True)  # of a process killed while saving
        out.mkdir(parents=True, exist_ok=True)
        (out / "run.yaml").write_text(
            yaml.safe_dump({"crome_version": __version__, **record}, sort_keys=False)
        )
    with args.main_process_first(desc="features"):
        rows = visited(stream, optimization, args.world_size) if caches(processor) else []
        prepare(model, processor, rows, workers=workers, skip_unreadable=skip_unreadable)
    prepare_language_model(model, holding, compile_layers, args.world_size)
    callbacks: list[Any] = [LossLog(out / "log.jsonl")]
    if first and not quiet:
        callbacks.append(ProgressBar())
    if samples and sample_steps:
        callbacks.append(SampleAnswers(processor, samples, sample_steps, out / "samples.jsonl"))
    trainer = CromeTrainer(
        model=model,
        args=args,
        train_dataset=stream,
        eval_dataset=validation,
        data_collator=Collator(processor, out / "skipped.jsonl" if skip_unreadable else None),
        processing_class=processor,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)  # its lines are in the log and on the bar
    if resume is not None and 0 < optimization.max_steps <= steps_done(resume):
        model.load_trained(resume)  # the Trainer would take a step beyond the last
    else:
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    model.eval()
    if first:
        model.save_pretrained(out)
        processor.save_pretrained(out)
        if "adapter" in model.parts():
            model.save_adapter(out / "adapter", training=record)
    return trainer


def tell_of_cuts(processor: CromeProcessor, rows: Sequence[Row]) -> None:
    """Says how many of a run's first rows are longer than the checkpoint reads."""
    if cut := sum(not processor.reads_whole(row.question, row.answer) for row in rows):
        console.print(
            f"{cut} of the first {len(rows)} rows are cut: a question keeps its last "
            f"{processor.max_question_tokens} tokens, an answer its first "
            f"{processor.max_answer_tokens} (max_question_tokens and max_answer_tokens of the "
            "checkpoint).",
            style="yellow",
        )


def visited(stream: Dataset[Any], optimization: Optimization, processes: int) -> list[Row]:
    """Rows whose features are worth computing before a run: all it sees, or a few of very many."""
    if isinstance(stream, IterableDataset):
        return []  # pictures that stream by may never come again
    seen = len(stream)  # type: ignore[arg-type]
    if optimization.max_steps > 0:
        seen = min(seen, optimization.max_steps * optimization.batch(processes))
    return [stream[i] for i in range(seen if seen <= MANY_ROWS else SOME_ROWS)]


def prepare_language_model(
    model: CromeForConditionalGeneration, holding: Holding, compile_layers: bool, processes: int
) -> None:
    """Cuts up, checkpoints or compiles the layers of the frozen language model."""
    if holding.activation_checkpointing:
        checkpoint_activations(model.language_model)
    if holding.shard:
        shard_language_model(model)
    if processes > 1:
        # Frozen on every device alike: not for DDP to compare, copy or reduce.
        frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
        frozen += [n for n, _ in model.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen)
    if compile_layers:
        # Every layer's place in the key-value cache is a case of its own to the compiler.
        torch._dynamo.config.recompile_limit = 4 * len(list(layers(model.language_model)))
        for layer in layers(model.language_model):
            layer.compile(dynamic=True)


def arguments(
    out: Path,
    optimization: Optimization,
    save_steps: int,
    log_steps: int,
    workers: int,
    seed: int,
    tracking: Tracking = TRACKING,
) -> TrainingArguments:
    """The Trainer's arguments for a stage: the schedule of the paper, bridge checkpoints only."""
    assert optimization.learning_rate is not None
    args = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=optimization.batch_size,
        gradient_accumulation_steps=optimization.gradient_accumulation_steps,
        num_train_epochs=1,  # the stream holds all epochs
        max_steps=optimization.max_steps,
        learning_rate=optimization.learning_rate,
        weight_decay=optimization.weight_decay,
        adam_beta1=0.9,
        adam_beta2=0.999,
        max_grad_norm=optimization.max_grad_norm,
        warmup_steps=optimization.warmup_steps,
        lr_scheduler_type="cosine_warmup_with_min_lr",
        lr_scheduler_kwargs={
            "min_lr": 0.0,
            "warmup_lr_rate": 1e-8 / optimization.learning_rate,
        },
        bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        save_strategy="steps" if save_steps else "no",
        save_steps=save_steps or 500,
        save_total_limit=2,
        logging_steps=log_steps,
        logging_nan_inf_filter=False,  # LossLog ends a run on a loss that is no number
        report_to=list(tracking.report_to) or "none",
        eval_strategy="steps" if tracking.validation else "no",
        eval_steps=tracking.validation_steps,
        per_device_eval_batch_size=32,
        dataloader_num_workers=workers,
        accelerator_config={"dispatch_batches": False},  # streamed batches, too, stay whole
        remove_unused_columns=False,
        label_names=["labels"],
        seed=seed,
        data_seed=seed,
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,  # every batch touches all that trains
    )
    args._n_gpu = min(args.n_gpu, 1)  # else one process would cut batches up for several GPUs
    return args


def check_folder(out: Path) -> None:
    """Refuses a folder that cannot be made or written, before anything takes its time.

    Raises:
        InputError: With what is in the way.
    """
    place = next(p for p in (out, *out.absolute().parents) if p.exists())
    if not place.is_dir():
        raise InputError(f"{place} is a file; give --out a folder.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"{place} cannot be written; give --out another folder.")


def same_run(path: Path, record: dict[str, Any]) -> None:
    """Refuses to go on with a run under other settings than its own.

    Its length may change, and how many processes share the rows of a step.

    Raises:
        InputError: With what differs.
    """
    before = yaml.safe_load(path.read_text()) if path.exists() else {}
    if before.get("data_fingerprint") is None:  # of a version that did not look into files
        before.pop("data_fingerprint", None)
    started, now = flat(before), flat(record)
    free = {"epochs", "max_steps", "batch_size", "gradient_accumulation_steps"}
    told = [
        f"{key} was {started[key]!r} and is {now[key]!r}"
        for key in now.keys() & started.keys() - free
        if started[key] != now[key]
    ]
    if told:
        raise InputError(
            f"{path.parent} holds a run with other settings: {'; '.join(sorted(told))}. Give the "
            "same to go on with it, or another --out."
        )


def flat(record: dict[str, Any]) -> dict[str, Any]:
    """A record with the settings of its groups beside the others."""
    groups = [value for value in record.values() if isinstance(value, dict)]
    return {k: v for part in (record, *groups) for k, v in part.items() if not isinstance(v, dict)}


def validation_rows(tracking: Tracking, image_root: Path | None, check: bool) -> list[Row] | None:
    """The rows that are answered at intervals; None for none."""
    if tracking.validation is None:
        return None
    return read_rows(tracking.validation, image_root, check_images=check)[
        : tracking.validation_rows
    ]


def trainable_table(model: CromeForConditionalGeneration, stage: Stage) -> Table:
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


def _plain(settings: Any) -> dict[str, Any] | None:
    if settings is None:
        return None
    return {k: str(v) if isinstance(v, Path) else v for k, v in vars(settings).items()}
