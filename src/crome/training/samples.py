"""What the model says while it learns: answers to a few rows, with their pictures, at intervals."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from crome.images import load_image
from crome.model.answering import answer
from crome.model.protocol import Processor, VisionLanguageModel
from crome.rows import Row
from crome.storage import append_line
from crome.training.log import cut_after
from crome.training.progress import console

SIDE = 224  # of the pictures shown, in pixels


class SampleAnswers(TrainerCallback):
    """Answers a few rows at intervals: on the terminal, in a file, and wherever curves go.

    Every process answers, since the layers of a language model in shares run in all of them at
    once; the first one tells.

    Args:
        processor: The model's own.
        rows: The rows to answer.
        every: Steps between looks.
        path: JSON lines with step, question, gold answer and the model's.
        trackers: Where the pictures go, too.
    """

    def __init__(
        self,
        processor: Processor,
        rows: Sequence[Row],
        every: int,
        path: Path,
        trackers: Sequence[str] = (),
    ) -> None:
        self.processor = processor
        self.rows = list(rows)
        self.every = every
        self.path = path
        self.trackers = trackers

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Cuts what a killed run wrote after its last checkpoint."""
        if state.is_world_process_zero:
            cut_after(self.path, state.global_step)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: VisionLanguageModel | None = None,
        **kwargs: Any,
    ) -> None:
        """Generates, prints and records."""
        if model is None or state.global_step % self.every:
            return
        model.eval()
        answers = answer(model, self.processor, self.rows, max_new_tokens=16)
        model.train()
        if not state.is_world_process_zero:
            return
        for row, text in zip(self.rows, answers, strict=True):
            line = {"step": state.global_step, "question": row.question, "gold": row.answer}
            append_line(self.path, {**line, "answer": text})
        captions = [
            f"{row.question} → {text} ({row.answer})"
            for row, text in zip(self.rows, answers, strict=True)
        ]
        summary = "; ".join(shorten(caption, 100, placeholder=" …") for caption in captions)
        console.print(f"step {state.global_step} {summary}", style="dim", markup=False)
        try:
            self._show(captions, state.global_step)
        except Exception as error:
            self.trackers = ()
            console.print(f"pictures are not tracked: {error}", style="yellow", markup=False)

    def _show(self, captions: Sequence[str], step: int) -> None:
        if "tensorboard" in self.trackers:
            show_in_tensorboard(self.path.parent / "runs", self.rows, captions, step)
        for tracker in {"wandb", "trackio"}.intersection(self.trackers):
            show_in(tracker, self.rows, captions, step)


def show_in_tensorboard(
    folder: Path, rows: Sequence[Row], captions: Sequence[str], step: int
) -> None:
    """Adds pictures and captions as a run of their own beside the curves."""
    with SummaryWriter(folder / "samples") as writer:
        for number, (row, caption) in enumerate(zip(rows, captions, strict=True)):
            writer.add_text(f"sample {number}", caption, step)
            if row.images:
                pixels = np.asarray(thumbnail(row))
                writer.add_image(f"sample {number}", pixels, step, dataformats="HWC")


def show_in(tracker: str, rows: Sequence[Row], captions: Sequence[str], step: int) -> None:
    """Logs pictures with captions to W&B or trackio, whose calls are the same."""
    module = import_module(tracker)
    module.log(
        {
            f"sample {number}": module.Image(thumbnail(row), caption=caption)
            for number, (row, caption) in enumerate(zip(rows, captions, strict=True))
            if row.images
        },
        step=step,
    )


def thumbnail(row: Row) -> Image.Image:
    """The first picture of a row, small."""
    picture = load_image(row.images[0]).copy()
    picture.thumbnail((SIDE, SIDE))
    return picture
