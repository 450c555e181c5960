"""A run that is told to end (SIGTERM, as by a scheduler) saves first and can be gone on with."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StopOnSignal(TrainerCallback):
    """Ends a run after the step in which SIGTERM came, with a checkpoint of it.

    All processes of a run end after the same step: they ask each other after each.

    Attributes:
        signalled: Whether this process got the signal.
        stopped: Whether the run ended for it.
    """

    def __init__(self) -> None:
        self.signalled = False
        self.stopped = False

    def _ask(self, *_: Any) -> None:
        self.signalled = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signal while the block runs; only the main thread of a process can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ends the run, once any process was asked to."""
        if anywhere(self.signalled, args.device):
            self.stopped = state.global_step < state.max_steps
            control.should_save = True  # also of a run that saves nothing else on the way
            control.should_training_stop = True


def anywhere(flag: bool, device: torch.device) -> bool:
    """Whether a flag is set in any process."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return flag
    found = torch.tensor(int(flag), device=device)
    distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return bool(found)
