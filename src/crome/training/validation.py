"""Validation on the way: the loss and the right answers of held-out rows, the best weights kept."""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from crome.matching import exact_match
from crome.model.answering import answer
from crome.model.protocol import Processor, VisionLanguageModel
from crome.rows import Row
from crome.storage import build_folder, read_object, write_json
from crome.training.settings import Tracking

BEST, SCORE = "best", "score.json"


def validate(
    model: VisionLanguageModel, processor: Processor, rows: Sequence[Row], batch_size: int
) -> dict[str, float]:
    """The mean loss of the answers' tokens, and the share of rows that are answered right.

    Every process looks at all rows: a language model in shares runs in step.

    Args:
        model: It is in train mode again afterwards.
        processor: The model's own.
        rows: Rows with their answers.
        batch_size: Rows at a time.

    Returns:
        `loss` and `exact_match`.
    """
    model.eval()
    right, loss, tokens = 0.0, 0.0, 0
    device = model.get_input_embeddings().weight.device
    for start in range(0, len(rows), batch_size):
        some = rows[start : start + batch_size]
        given = answer(model, processor, some, max_new_tokens=32)
        right += sum(map(exact_match, given, (row.answer for row in some)))
        batch = processor.encode(some, answers=True)
        with torch.no_grad():
            losses = model(**batch.to(device)).token_losses
        loss, tokens = loss + float(losses.float().sum()), tokens + losses.numel()
    model.train()
    return {"loss": loss / max(1, tokens), "exact_match": right / len(rows)}


class BestKept(TrainerCallback):
    """Keeps the weights of the best validation, and ends a run that gets no better.

    Args:
        model: What it keeps the trained part of.
        tracking: By which measure, and for how long.
        folder: `best` in it holds the weights and their score.
        base: See `CromeTrainer.base`.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        tracking: Tracking,
        folder: Path,
        base: str | None = None,
    ) -> None:
        self.base = base
        self.model = model
        self.measure = tracking.keep_best or "loss"
        self.keep = tracking.keep_best is not None
        self.patience = tracking.patience
        self.folder = folder / BEST
        self.scores: list[tuple[int, float]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes over what an interrupted run had seen up to its checkpoint."""
        name = f"eval_{self.measure}"
        seen = {int(line["step"]): line[name] for line in state.log_history if name in line}
        self.scores = sorted(seen.items())
        kept = read_score(self.folder)
        if state.is_world_process_zero and (kept is None or kept["step"] > state.global_step):
            shutil.rmtree(self.folder, ignore_errors=True)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Compares the newest validation with those before."""
        value = (metrics or {})[f"eval_{self.measure}"]
        better = all(self._beats(value, other) for _, other in self.scores)
        self.scores.append((state.global_step, value))
        if self.keep and better and math.isfinite(value) and state.is_world_process_zero:
            build_folder(self.folder, lambda place: self._write(place, state.global_step, value))
        if self.patience and len(self.scores) - 1 - self._best() >= self.patience:
            control.should_training_stop = True

    def _beats(self, value: float, other: float) -> bool:
        return value < other if self.measure == "loss" else value > other

    def _best(self) -> int:
        """The place of the best validation so far, the first of equals."""
        sign = 1 if self.measure == "loss" else -1
        return min(range(len(self.scores)), key=lambda place: sign * self.scores[place][1])

    def _write(self, place: Path, step: int, value: float) -> None:
        self.model.save_pretrained(place, base=self.base)
        write_json(place / SCORE, {"step": step, self.measure: value})


def read_score(folder: Path) -> dict[str, Any] | None:
    """Step and score of the best weights kept in a folder; None where none are."""
    try:
        score = read_object(folder / SCORE)
    except (OSError, ValueError):
        return None
    return score if isinstance(score.get("step"), int) else None
