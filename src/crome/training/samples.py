"""Sample answers during training: what the model says now, on the terminal and in TensorBoard."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from crome.data.rows import Row
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor
from crome.serving.chat import answer
from crome.training.trainer import console


class SampleAnswers(TrainerCallback):
    """Answers a few rows at intervals.

    Args:
        processor: Of the model.
        rows: The rows to answer.
        every: Steps between looks.
        path: JSON lines with step, question, gold answer and the model's.
    """

    def __init__(
        self, processor: CromeProcessor, rows: Sequence[Row], every: int, path: Path
    ) -> None:
        self.processor = processor
        self.rows = list(rows)
        self.every = every
        self.path = path

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: CromeForConditionalGeneration | None = None,
        **kwargs: Any,
    ) -> None:
        """Generates, prints and records."""
        if model is None or state.global_step % self.every or not state.is_world_process_zero:
            return
        model.eval()
        said = answer(model, self.processor, self.rows, max_new_tokens=16)
        model.train()
        with self.path.open("a") as file:
            for row, text in zip(self.rows, said, strict=True):
                line = {"step": state.global_step, "question": row.question, "gold": row.answer}
                file.write(json.dumps({**line, "answer": text}) + "\n")
        shown = "; ".join(
            f"{row.question} → {text} [dim]({row.answer})[/]"
            for row, text in zip(self.rows, said, strict=True)
        )
        console.print(f"[dim]step {state.global_step}[/] {shown}")
