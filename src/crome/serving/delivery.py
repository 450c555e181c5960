"""The pieces of one request's answers, from the engine's thread to the event loop."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

from crome.serving.engine.protocol import Engine, Piece, Prompt, Request
from crome.serving.engine.sampling import Sampling
from crome.serving.metrics import Metrics


class Answers:
    """The pieces of one request's answers, in the order in which they come.

    Args:
        engine: Makes them.
        metrics: Counts them.
    """

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self._metrics = metrics
        self.requests: list[Request] = []
        self._engine = engine
        self._queue: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def channel(self, index: int) -> Callable[[Piece], None]:
        """Takes the pieces of an answer from the engine's thread."""

        def deliver(piece: Piece) -> None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, piece))

        return deliver

    def submit(self, prompts: Sequence[Prompt], **settings: Any) -> None:
        """Has the engine answer prompts; `settings` are those of `Request` that all share."""
        sampling = settings.pop("sampling")
        for index, prompt in enumerate(prompts):
            request = Request(
                prompt, self.channel(index), sampling=_with_seed(sampling, index), **settings
            )
            self._engine.submit(request)
            self.requests.append(request)

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Yields (answer, piece) until all are finished; raises what went wrong."""
        left = len(self.requests)
        began = time.monotonic()
        last: dict[int, float] = {}
        while left:
            index, piece = await self._queue.get()
            if piece.error is not None:
                raise piece.error
            now = time.monotonic()
            if index not in last:
                self._metrics.first_token.observe(now - began)
                self._metrics.prompt_tokens.inc(self.requests[index].prompt.length)
            else:
                self._metrics.next_token.observe(now - last[index])
            last[index] = now
            self._metrics.new_tokens.inc(len(piece.tokens))
            left -= piece.finish is not None
            yield index, piece

    def cancel(self) -> None:
        """Stops whatever still runs."""
        for request in self.requests:
            request.cancel()


def _with_seed(sampling: Sampling, index: int) -> Sampling:
    """The settings of one of several choices, which draw differently."""
    if sampling.seed is None:
        return sampling
    return replace(sampling, seed=(sampling.seed + index) % 2**63)
