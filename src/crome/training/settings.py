"""The settings of a run: how it optimises, what it tracks, and how it is carried out."""

from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Self

from crome.checkpoints.loading import PLAINLY, Holding
from crome.errors import InputError, not_negative, positive
from crome.model.stages import Stage

Optimizer = Literal["adamw", "adafactor", "lion", "sgd"]
Schedule = Literal["cosine", "linear", "constant"]


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
        weight_decay: Weight decay of matrices and embeddings, not of biases and norms.
        max_grad_norm: Gradients are clipped to this norm; 0 for none. Not in the paper.
        epochs: Passes over the rows.
        max_steps: Length of the run in steps, whatever `epochs` says; -1 for as long as `epochs`
            says.
        optimizer: `adamw` as in the paper; `lion` needs bitsandbytes.
        schedule: How the rate falls to zero after the warm-up: along a `cosine`, as in the paper,
            or a line; or `constant`.
    """

    learning_rate: float | None = None
    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    warmup_steps: float = 0.05
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    epochs: float = 3.0
    max_steps: int = -1
    optimizer: Optimizer = "adamw"
    schedule: Schedule = "cosine"

    def __post_init__(self) -> None:
        positive(
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            epochs=self.epochs,
        )
        not_negative(
            warmup_steps=self.warmup_steps,
            weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm,
        )
        if self.max_steps != -1 and self.max_steps < 1:
            raise InputError(
                f"max_steps is {self.max_steps}; expected a number above 0, or -1 for as many as "
                "epochs says."
            )
        if self.optimizer == "lion" and find_spec("bitsandbytes") is None:
            raise InputError(
                "optimizer lion needs bitsandbytes: pip install 'crome[quantization]'."
            )

    def rated(self, stage: Stage, width: int) -> Self:
        """The settings with the rate for a stage and the language model's width, if none is set."""
        if self.learning_rate is not None:
            return self
        at_4096 = 1e-4 if stage == "finetune" else 1e-5
        return replace(self, learning_rate=at_4096 * 4096 / width)

    def batch(self, processes: int) -> int:
        """Rows a step over all devices."""
        return self.batch_size * self.gradient_accumulation_steps * processes

    def passes(self, rows: float, processes: int) -> float:
        """Passes over so many rows an epoch that the run makes: `epochs`, or those of its steps."""
        if self.max_steps < 0:
            return self.epochs
        return self.max_steps * self.batch(processes) / rows


@dataclass(frozen=True)
class Tracking:
    """Where the curves go, and what is asked of the model on the way.

    Attributes:
        report_to: Trackers; the losses are kept as JSON lines whatever they are. `wandb` and
            `trackio` need the extra `track`. A tracker that fails is left out; the run goes on.
        validation: Rows whose loss is computed and that are answered at intervals; the loss and the
            share of right answers are logged.
        validation_rows: Only so many of them, the first.
        validation_steps: Steps between.
        keep_best: Keep as the result the weights of the best validation, by its loss or by the
            share of right answers, and not the last ones.
        patience: Stop after so many validations without a better one; 0 to go on.
    """

    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    validation: Path | None = None
    validation_rows: int = 200
    validation_steps: int = 200
    keep_best: Literal["loss", "exact_match"] | None = None
    patience: int = 0

    def __post_init__(self) -> None:
        positive(validation_rows=self.validation_rows, validation_steps=self.validation_steps)
        not_negative(patience=self.patience)
        for name in self.report_to:
            if find_spec(name) is None:
                raise InputError(f"report_to {name} needs a package: pip install 'crome[track]'.")
        if (self.keep_best or self.patience) and self.validation is None:
            raise InputError("keep_best and patience need --tracking.validation, rows to judge by.")


@dataclass(frozen=True)
class RunSettings:
    """How a run is carried out, beside its model, its rows and its folder.

    Attributes:
        stage: What trains.
        optimization: Rates, batch and length.
        holding: How the language model is kept in memory.
        device: "cpu", "cuda" or "mps", or "auto" for a GPU of CUDA where there is one.
        compile_layers: Compile the language model's layers.
        save_steps: Steps between checkpoints; 0 for none on the way.
        save_total_limit: Checkpoints that are kept, the newest.
        log_steps: Steps between logged losses.
        sample_steps: Steps between sample answers; 0 for none.
        tracking: Where curves go, and validation during the run.
        workers: Loader processes; None for some on a machine with a GPU and none without.
        tf32: Whether a GPU computes float32 products in TF32.
        trainer: Further `TrainingArguments` of transformers, by name.
        seed: Seed of everything random.
        skip_unreadable: Whether rows whose picture cannot be read are left out of their batches.
        quiet: No table and no progress bar.
    """

    stage: Stage = "finetune"
    optimization: Optimization = Optimization()
    holding: Holding = PLAINLY
    device: str = "auto"
    compile_layers: bool = False
    save_steps: int = 200
    save_total_limit: int = 2
    log_steps: int = 10
    sample_steps: int = 0
    tracking: Tracking = Tracking()
    workers: int | None = 0
    tf32: bool = False
    trainer: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    skip_unreadable: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        positive(log_steps=self.log_steps, save_total_limit=self.save_total_limit)
        not_negative(
            save_steps=self.save_steps,
            sample_steps=self.sample_steps,
            workers=self.workers or 0,
        )


TRACKING = Tracking()
