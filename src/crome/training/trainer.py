"""`transformers.Trainer` with three changes: order of rows, whole checkpoints, strict resume.

One process or many: Accelerate deals batches of the one stream to the processes in turn, so that a
step sees the same rows however many there are.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from crome.errors import InputError, JobError
from crome.matching import exact_match
from crome.model.answering import answer
from crome.training.sealing import damage, seal

STAGING = ".saving"
console = Console(stderr=True)  # one for bar and prints, which must not cut each other


class CromeTrainer(Trainer):
    """The Trainer on a dataset that is already in training order.

    A checkpoint is written beside the others under another name and moved into place when it is
    whole, so a process killed while saving leaves the last whole one to resume from.
    """

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(train_dataset or self.train_dataset)  # type: ignore[arg-type]

    def _get_output_dir(self, trial: Any = None) -> str:
        return os.path.join(str(self.args.output_dir), STAGING)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        name = f"checkpoint-{self.state.global_step}"
        staging, output = Path(self._get_output_dir()), Path(str(self.args.output_dir))
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # each process writes its random state
            if self.args.should_save:
                seal(staging / name)
                if (output / name).exists():
                    shutil.rmtree(output / name)
                os.replace(staging / name, output / name)
                for old in whole_checkpoints(output)[: -(self.args.save_total_limit or 10**9)]:
                    shutil.rmtree(old)
        except (OSError, RuntimeError) as error:  # torch.save has the latter for a full disk
            told = str(error).split(". ")[0].removesuffix(".")
            raise JobError(
                f"could not save {output / name}: {told}. Earlier checkpoints are intact; free "
                "some space and start again, training resumes from the last of them."
            ) from error
        finally:
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Answers the validation rows and logs how many answers are right; no logits are kept.

        Every process answers all of them: a language model in shares runs in step.
        """
        rows: Any = eval_dataset or self.eval_dataset
        model: Any = self.model
        processor: Any = self.processing_class
        model.eval()
        right = 0.0
        for start in range(0, len(rows), self.args.per_device_eval_batch_size):
            batch = rows[start : start + self.args.per_device_eval_batch_size]
            said = answer(model, processor, batch, max_new_tokens=32)
            right += sum(map(exact_match, said, (row.answer for row in batch)))
        model.train()
        metrics = {f"{metric_key_prefix}_exact_match": right / len(rows)}
        self.log(dict(metrics))
        return metrics

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        bridged: Any = model or self.model
        bridged.load_trained(Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except (RuntimeError, ValueError) as error:
            reason = str(error).split(". ")[0]
            raise InputError(
                f"{checkpoint} cannot be resumed: {reason}. It is damaged, or of another stage; "
                "remove it, or give another --out."
            ) from error


def whole_checkpoints(output: Path) -> list[Path]:
    """Checkpoint folders of a run, oldest first."""
    found = [p for p in output.glob("checkpoint-*") if p.name.split("-")[1].isdigit()]
    return sorted(found, key=steps_done)


def steps_done(folder: Path) -> int:
    """The step after which a checkpoint was saved."""
    return int(folder.name.split("-")[1])


class ProgressBar(TrainerCallback):
    """Steps, loss and time left on one line of stderr."""

    def __init__(self) -> None:
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self.task = self.bar.add_task("training", loss="–")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Shows the bar, at the step a resumed run goes on from."""
        self.bar.update(self.task, total=state.max_steps, completed=state.global_step)
        self.bar.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Moves the bar."""
        self.bar.update(self.task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Shows the newest loss; of a run too short for one, its mean."""
        loss = (logs or {}).get("loss")
        if loss is None and self.bar.tasks[self.task].fields["loss"] == "–":
            loss = (logs or {}).get("train_loss")
        if loss is not None:
            self.bar.update(self.task, loss=f"{loss:.3f}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leaves the finished bar on the screen."""
        self.bar.stop()


class LossLog(TrainerCallback):
    """Keeps the training curve as JSON lines beside the run, for reports and for people.

    A resumed run goes on after its checkpoint's step, so lines past that step are dropped first.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Cuts what a killed run wrote after its last checkpoint."""
        if state.is_world_process_zero:
            cut_after(self.path, state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Appends one line; a loss that is no number ends the run."""
        values = {"step": state.global_step, **(logs or {})}
        loss = values.get("loss")
        if loss is not None and not torch.isfinite(torch.tensor(loss)):
            raise JobError(
                f"the loss is {loss} at step {state.global_step}; lower the learning rate. "
                f"The last whole checkpoint in {args.output_dir} is from before."
            )
        if state.is_world_process_zero:
            with self.path.open("a") as file:
                file.write(json.dumps(values) + "\n")


def cut_after(path: Path, step: int) -> None:
    """Keeps the lines of a log up to a step."""
    kept = [line for line in read_log(path) if line["step"] <= step]
    path.write_text("".join(json.dumps(line) + "\n" for line in kept))


def read_log(path: Path) -> list[dict[str, Any]]:
    """Lines of a loss log; a cut last line is left out."""
    lines = []
    if path.exists():
        for text in path.read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
    return lines


def last_checkpoint(output: Path) -> Path | None:
    """The newest whole checkpoint of a run, None for a new run; damaged ones are named.

    Raises:
        InputError: The folder holds something else, or all its checkpoints are damaged.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; give --out a folder.")
    told: list[str] = []
    for folder in reversed(whole_checkpoints(output)):
        wrong = damage(folder)
        if wrong is None:
            for line in told:
                console.print(f"[yellow]{line}; going on from {folder.name}.[/]", soft_wrap=True)
            return folder
        told.append(f"{folder} is damaged ({wrong})")
    if told:
        raise InputError(f"{'; '.join(told)}. Remove it to start anew, or give another --out.")
    return None
