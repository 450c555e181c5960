"""The arguments of the Trainer: the paper's schedule, and checkpoints of what trains only."""

import os
from dataclasses import fields
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from transformers import TrainingArguments

from crome.checkpoints.devices import device_named
from crome.errors import InputError
from crome.hints import meant
from crome.options import EXPECTED
from crome.training.settings import RunSettings

OPTIMIZERS = {"adafactor": "adafactor", "lion": "lion_32bit", "sgd": "sgd"}
"""Names that transformers has for the optimisers; AdamW is its own choice."""
OURS = frozenset({
    "output_dir", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs",
    "max_steps", "learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "warmup_ratio",
    "save_strategy", "save_steps", "save_total_limit", "logging_steps", "report_to",
    "eval_strategy", "eval_steps", "remove_unused_columns", "seed", "data_seed", "bf16", "fp16",
    "use_cpu", "resume_from_checkpoint", "load_best_model_at_end", "metric_for_best_model",
    "push_to_hub",
})  # fmt: skip
"""Arguments that crome has options of its own for, or that would change what a run is."""


def arguments(out: Path, run: RunSettings) -> TrainingArguments:
    """The Trainer's arguments.

    Args:
        out: The run's folder.
        run: Its optimisation has a learning rate.

    Raises:
        InputError: A further argument is unknown, or crome's own.
    """
    given = keywords(out, run)
    if "lr_scheduler_type" in run.trainer:
        given.pop("lr_scheduler_kwargs", None)  # they are the cosine's
    try:
        args = TrainingArguments(**given | further(run.trainer))
    except InputError:
        raise
    except (ValueError, TypeError, ImportError, AttributeError, OSError) as error:
        raise InputError(f"trainer: {in_brief(error)}.") from error
    args._n_gpu = min(args.n_gpu, 1)  # else one process would cut batches up for several GPUs
    return args


def keywords(out: Path, run: RunSettings) -> dict[str, Any]:
    """The arguments that crome sets itself."""
    optimization, device = run.optimization, device_named(run.device)
    cuda = device.type == "cuda"
    workers = loader_processes(run.workers, cuda)
    return {
        "output_dir": str(out),
        "use_cpu": device.type == "cpu",
        "per_device_train_batch_size": optimization.batch_size,
        "gradient_accumulation_steps": optimization.gradient_accumulation_steps,
        "num_train_epochs": 1,  # the stream holds all epochs
        "max_steps": optimization.max_steps,
        "learning_rate": optimization.learning_rate,
        "weight_decay": optimization.weight_decay,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "max_grad_norm": optimization.max_grad_norm,
        "warmup_steps": optimization.warmup_steps,
        **schedule(run),
        "save_strategy": "steps" if run.save_steps else "no",
        "save_steps": run.save_steps or 500,
        "save_total_limit": run.save_total_limit,
        "logging_steps": run.log_steps,
        "logging_nan_inf_filter": False,  # LossLog ends a run on a loss that is no number
        "report_to": "none",  # trackers are called so that none can end a run
        "eval_strategy": "steps" if run.tracking.validation else "no",
        "eval_steps": run.tracking.validation_steps,
        "per_device_eval_batch_size": 32,
        "dataloader_num_workers": workers,
        "dataloader_persistent_workers": workers > 0,
        "dataloader_prefetch_factor": 4 if workers else None,
        "dataloader_pin_memory": cuda,
        "accelerator_config": {"dispatch_batches": False},  # streamed batches, too, stay whole
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "seed": run.seed,
        "data_seed": run.seed,
        "disable_tqdm": True,
        "ddp_find_unused_parameters": False,  # every batch touches all that trains
        **({"tf32": run.tf32} if cuda else {}),
        **({"optim": name} if (name := OPTIMIZERS.get(optimization.optimizer)) else {}),
    }


def schedule(run: RunSettings) -> dict[str, Any]:
    """How the rate runs: a warm-up from 1e-8, then down, or not."""
    optimization = run.optimization
    assert optimization.learning_rate is not None
    if optimization.schedule != "cosine":
        constant = optimization.schedule == "constant"
        return {"lr_scheduler_type": "constant_with_warmup" if constant else "linear"}
    return {
        "lr_scheduler_type": "cosine_warmup_with_min_lr",
        "lr_scheduler_kwargs": {
            "min_lr": 0.0,
            "warmup_lr_rate": 1e-8 / optimization.learning_rate,
        },
    }


def loader_processes(workers: int | None, cuda: bool) -> int:
    """How many processes load rows: as many as are wanted, or some on a machine with a GPU."""
    if workers is not None:
        return workers
    if not cuda:
        return 0
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, min(4, (os.cpu_count() or 1) // here - 1))


def further(given: dict[str, Any]) -> dict[str, Any]:
    """Further arguments of transformers, by name.

    Raises:
        InputError: One is unknown, or one that crome has an option for.
    """
    known = [field.name for field in fields(TrainingArguments) if field.init]
    for name in given:
        if name in OURS:
            raise InputError(f"trainer: {name} is set by an option of crome{meant(name, OPTIONS)}.")
        if name not in known:
            raise InputError(f"trainer: TrainingArguments has no {name}{meant(name, known)}.")
        default = next(one.default for one in fields(TrainingArguments) if one.name == name)
        switch, number = isinstance(default, bool), isinstance(default, int | float)
        if number and (
            isinstance(given[name], bool) != switch or not isinstance(given[name], int | float)
        ):
            expected = EXPECTED[bool if switch else float]
            raise InputError(f"trainer: {name} is {given[name]!r}; expected {expected}.")
    return given


def in_brief(error: Exception) -> str:
    """An error in one line, without its end."""
    return shorten(str(error), 300, placeholder=" …").rstrip(".")


OPTIONS = (
    "out", "optimization.batch_size", "optimization.gradient_accumulation_steps",
    "optimization.epochs", "optimization.max_steps", "optimization.learning_rate",
    "optimization.weight_decay", "optimization.max_grad_norm", "optimization.warmup_steps",
    "save_steps", "save_total_limit", "log_steps", "tracking.report_to",
    "tracking.validation_steps", "tracking.keep_best", "seed", "device", "dtype",
)  # fmt: skip


def trainable_device(name: str) -> torch.device:
    """The device that a name stands for, on which the Trainer trains.

    Raises:
        InputError: The device is not there, or not one that the Trainer can take.
    """
    if ":" in name:
        raise InputError(
            f"--device {name}: training takes the first GPU that it sees; set "
            f"CUDA_VISIBLE_DEVICES={name.partition(':')[2]} and give --device cuda."
        )
    return device_named(name)


def start_processes(device: str = "auto") -> int:
    """How many processes were started together, ready to find each other on a CPU too.

    Raises:
        InputError: The device is not there, or not one that the Trainer can take.
    """
    started, place = int(os.environ.get("WORLD_SIZE", 1)), trainable_device(device)
    if started > 1 and place.type == "cpu":
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")  # else each would train alone
    return started


def check_processes(args: TrainingArguments, started: int) -> None:
    """Refuses processes that would each train on their own in one folder.

    Raises:
        InputError: Fewer train together than were started.
    """
    if args.world_size != started:
        raise InputError(
            f"{started} processes were started and {args.world_size} would train together; start "
            "them with torchrun or accelerate launch, with one GPU each or none at all."
        )
