"""The way into an engine: requests come from any thread, and the engine's own thread takes them."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from crome.serving.engine.protocol import ClosedError, Request
from crome.serving.engine.thread import ModelThread


class Intake:
    """A queue in front of an engine's thread, which can be closed.

    Args:
        thread: The thread on which the model was loaded; a new one by default.

    Attributes:
        waiting: Requests, and functions that run in their turn.
        changed: Held to change `waiting`; notified when something was put or the intake was closed.
        closed: Whether anything new is refused.
    """

    def __init__(self, thread: ModelThread | None = None) -> None:
        self.thread = thread or ModelThread()
        self.waiting: deque[Request | Callable[[], object]] = deque()
        self.changed = threading.Condition()
        self.closed = False
        self._running: Future[None] | None = None

    def start(self, engine: Callable[[], None]) -> None:
        """Runs an engine's loop on the thread."""
        self._running = self.thread.run(engine)

    def put(self, item: Any, queue: deque[Any] | None = None) -> None:
        """Adds something to `waiting`, or to another queue of the engine.

        Raises:
            ClosedError: The engine is shutting down, or cannot go on.
        """
        with self.changed:
            if self.closed:
                raise ClosedError("the server is shutting down.")
            (self.waiting if queue is None else queue).append(item)
            self.changed.notify()

    def close(self, timeout: float | None = None) -> None:
        """Refuses anything new, and waits for the engine to answer what it has."""
        self.refuse()
        self.thread.close(timeout)

    def refuse(self) -> None:
        """Refuses anything new."""
        with self.changed:
            self.closed = True
            self.changed.notify()

    @property
    def alive(self) -> bool:
        """Whether the engine runs and takes requests."""
        return self._running is not None and not self._running.done() and not self.closed
