"""The training curve as JSON lines beside the run, for reports and for people."""

import json
import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from crome.errors import JobError
from crome.storage import append_line, write_text


class LossLog(TrainerCallback):
    """Keeps what the Trainer logs, a line each, and ends a run whose loss is no number.

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
        for name in ("loss", "train_loss"):
            if not math.isfinite(values.get(name, 0.0)):
                raise diverged(f"the loss is {values[name]}", state.global_step)
        if state.is_world_process_zero:
            append_line(self.path, values)


def diverged(what: str, step: int) -> JobError:
    """The error of a run whose numbers have left the finite ones."""
    return JobError(
        f"{what} at step {step}; lower the learning rate. Nothing of it is saved as a result, and "
        "checkpoints of earlier steps are as they were. A run with another rate needs another "
        "--out; --checkpoint can start it from one of these checkpoints."
    )


def cut_after(path: Path, step: int) -> None:
    """Keeps the lines of a log up to a step."""
    kept = [line for line in read_log(path) if line["step"] <= step]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def read_log(path: Path) -> list[dict[str, Any]]:
    """Lines of a log of steps; a line that was cut is left out."""
    lines = []
    if path.exists():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
    return lines
