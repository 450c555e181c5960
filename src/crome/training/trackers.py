"""Where curves go besides the log: trackers, none of which can end a run."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from transformers import TrainerCallback
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from crome.training.progress import console


class Guarded(TrainerCallback):
    """A tracker's callback, which is left out from its first failure on.

    Args:
        name: Name of the tracker.
        make: Makes its callback.
    """

    def __init__(self, name: str, make: type[TrainerCallback]) -> None:
        self.name = name
        self.callback: TrainerCallback | None = None
        self._guard(lambda: setattr(self, "callback", make()))
        for event in dir(TrainerCallback):
            if event.startswith("on_"):
                setattr(self, event, partial(self._forward, event))

    def _forward(self, event: str, *args: Any, **kwargs: Any) -> Any:
        if self.callback is None:
            return None
        return self._guard(partial(getattr(self.callback, event), *args, **kwargs))

    def _guard(self, call: Any) -> Any:
        try:
            return call()
        except Exception as error:
            self.callback = None
            reason = " ".join(str(error).split())[:200]
            console.print(
                f"{self.name} is left out ({reason}); the losses are in log.jsonl.",
                style="yellow", markup=False, soft_wrap=True,
            )  # fmt: skip
            return None


def trackers(names: Sequence[str]) -> list[TrainerCallback]:
    """The callbacks of trackers."""
    return [
        Guarded(name, make)
        for name in names
        for make in get_reporting_integration_callbacks([name])
    ]
