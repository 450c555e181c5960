"""The thread on which a model is loaded and run.

A model that runs on the thread that loaded it is faster on a CPU: memory is then where the threads
that read it are.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")


class ModelThread:
    """Runs functions one after the other; ends with the process."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="crome-engine", daemon=True)
        self._thread.start()

    def run(self, function: Callable[..., Result], *arguments: Any) -> "Future[Result]":
        """Queues a function."""
        done: Future[Result] = Future()

        def work() -> None:
            try:
                done.set_result(function(*arguments))
            except BaseException as error:
                done.set_exception(error)

        self._queue.put(work)
        return done

    def close(self, timeout: float | None = None) -> None:
        """Ends the thread after what was queued, and waits for it for so many seconds."""
        self._queue.put(None)
        self._thread.join(timeout)

    def _work(self) -> None:
        while (function := self._queue.get()) is not None:
            function()
