"""Iteration-level batching: one thread, one language model, requests of any adapters together.

The adapter acts before the language model, so after its prompt is read a request is keys and values
like any other, and one decoding step serves all of them. A request joins the running batch between
two steps and leaves it when its answer ends.

Rows are padded on the left to a common length; a mask hides the padding, and positions count real
tokens only. So a row's tokens stay contiguous, which sliding windows rely on.

Shapes: B running rows, L length of the longest with padding, H heads, D head width, V vocabulary.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor
from crome.serving.layers import Layers, layers_of, ones_of, side_by_side
from crome.serving.prefill import Prefill, Prompt, RemovedError, Stretch, device_of
from crome.serving.sampling import Sampling, Token, choose
from crome.serving.text import TextStream

logger = logging.getLogger(__name__)
Finish = Literal["stop", "length", "error"]


class DeadlineError(TimeoutError):
    """An answer was not finished in its time."""


class ClosedError(RuntimeError):
    """The engine takes no more requests."""


@dataclass(frozen=True)
class Piece:
    """Part of an answer: new tokens and the text they made certain.

    Attributes:
        text: May be empty while a character or a stop string is undecided.
        tokens: Generated since the last piece.
        finish: Why the answer ended; None while it goes on.
        error: What went wrong, with `finish` "error".
    """

    text: str = ""
    tokens: tuple[Token, ...] = ()
    finish: Finish | None = None
    error: BaseException | None = None


@dataclass
class Request:
    """A prompt, how to continue it, and where its pieces go.

    Attributes:
        prompt: What is read.
        deliver: Called on the engine's thread with each piece; must not block.
        max_new_tokens: Longest answer.
        sampling: How tokens are chosen.
        stop: Strings that end the answer.
        end_ids: Tokens that end the answer.
        strip: Whether outer space is left out.
        deadline: `time.monotonic()` at which the request is given up.
    """

    prompt: Prompt
    deliver: Callable[[Piece], None]
    max_new_tokens: int = 32
    sampling: Sampling = field(default_factory=Sampling)
    stop: Sequence[str] = ()
    end_ids: Sequence[int] = ()
    strip: bool = True
    deadline: float = float("inf")
    cancelled: bool = False

    def cancel(self) -> None:
        """Stops the work at the next step; no further piece matters."""
        self.cancelled = True

    def fail(self, error: BaseException) -> None:
        """Ends the answer with an error."""
        self.cancelled = True
        self.deliver(Piece(finish="error", error=error))


class Row:
    """A running request."""

    def __init__(self, request: Request, tokenizer: Any) -> None:
        self.request = request
        self.text = TextStream(tokenizer, request.stop, request.strip)
        self.generator = request.sampling.generator()
        self.count = 0
        self.last = 0

    def take(self, logits: Tensor) -> bool:
        """Chooses a token from (V,) logits, delivers it, and says whether the answer goes on."""
        request = self.request
        token = choose(logits, request.sampling, self.generator)
        self.count, self.last = self.count + 1, token.id
        if token.id in request.end_ids:
            request.deliver(Piece(self.text.finish(), (), "stop"))
            return False
        text = self.text.push(token.id)
        finish: Finish | None = None
        if self.count >= request.max_new_tokens:
            text, finish = text + self.text.finish(), "length"
        if self.text.stopped:
            finish = "stop"
        request.deliver(Piece(text, (token,), finish))
        return finish is None


class Batch:
    """The running rows with their keys and values side by side.

    Args:
        model: Whose language model decodes.
    """

    def __init__(self, model: CromeForConditionalGeneration) -> None:
        self.model = model
        self.rows: list[Row] = []
        self.cache = DynamicCache()
        self.mask = torch.zeros(0, 0, dtype=torch.long)  # (B, L)

    def join(self, rows: Sequence[tuple[Row, Layers]]) -> None:
        """Puts rows beside the running ones, all padded on the left to the longest."""
        parts = [(layers_of(self.cache), self.mask)] if self.rows else []
        parts += [(layers, ones_of(layers)) for _, layers in rows]
        self.cache, self.mask = side_by_side(parts)
        self.rows += [row for row, _ in rows]

    def keep(self, chosen: Sequence[int]) -> None:
        """Drops all other rows, and the padding that none of those left needs."""
        if len(chosen) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in chosen]
        self.mask = self.mask[list(chosen)]
        start = int(self.mask.any(0).int().argmax()) if chosen else 0
        self.mask = self.mask[:, start:]  # rows end together, so padding is in front
        layers: list[Any] = self.cache.layers
        for layer in layers:
            layer.keys = layer.keys[list(chosen), :, start:]
            layer.values = layer.values[list(chosen), :, start:]

    def step(self) -> Tensor:
        """Feeds each row its last token; returns the logits (B, V) of the next ones."""
        device = device_of(self.model)
        ids = torch.tensor([[row.last] for row in self.rows], device=device)
        self.mask = F.pad(self.mask, (0, 1), value=1)
        logits = self.model.language_model(
            inputs_embeds=self.model.get_input_embeddings()(ids),
            attention_mask=self.mask.to(device),
            position_ids=(self.mask.sum(1, keepdim=True) - 1).to(device),
            past_key_values=self.cache,
            use_cache=True,
        ).logits  # (B, 1, V)
        return logits[:, -1]


class Engine:
    """Takes requests from any thread and answers them on its own.

    Args:
        model: In eval mode, used by nobody else while the engine runs.
        processor: Of the model.
        max_batch: Rows decoded together at most.
        prefill_tokens: Prompt tokens, with padding, read between two steps, so that long prompts do
            not hold up running answers; at least one prompt is read.
        prefill: Reads the prompts.
    """

    def __init__(
        self,
        model: CromeForConditionalGeneration,
        processor: CromeProcessor,
        *,
        max_batch: int = 32,
        prefill_tokens: int = 1024,
        prefill: Prefill | None = None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.max_batch = max_batch
        self.prefill_tokens = prefill_tokens
        self.prefill = prefill or Prefill(model)
        self.batch = Batch(model)
        self.steps = 0
        self._waiting: deque[Request | Callable[[], object]] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="crome-engine", daemon=True)

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Queues a request.

        Raises:
            ClosedError: The engine is shutting down.
        """
        self._put(request)

    def call(self, function: Callable[[], object]) -> None:
        """Runs a function on the engine's thread, after the prompts that now wait were read."""
        self._put(function)

    def close(self, timeout: float | None = None) -> None:
        """Answers what was taken, refuses anything new, and stops."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    @property
    def alive(self) -> bool:
        """Whether requests are being answered."""
        return self._thread.is_alive() and not self._closing

    @property
    def waiting(self) -> int:
        """Requests whose prompt was not read yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests whose answers are being decoded."""
        return len(self.batch.rows)

    def _put(self, item: Request | Callable[[], object]) -> None:
        with self._wake:
            if self._closing:
                raise ClosedError("the server is shutting down.")
            self._waiting.append(item)
            self._wake.notify()

    # ------------------------------------------------------------------ on the engine's thread

    def _run(self) -> None:
        with torch.inference_mode():
            while self._has_work():
                try:
                    self._iterate()
                except Exception as error:  # whatever it is, those who wait must hear of it
                    logger.exception("a decoding step failed")
                    for row in self.batch.rows:
                        row.request.fail(error)
                    self.batch = Batch(self.model)

    def _has_work(self) -> bool:
        """Waits for work; False once there is none and none can come."""
        with self._wake:
            while not (self._waiting or self.batch.rows or self._closing):
                self._wake.wait()
            return bool(self._waiting or self.batch.rows)

    def _iterate(self) -> None:
        with self._wake:  # whoever gave up leaves the queue at once, not when its turn comes
            self._waiting = deque(item for item in self._waiting if _wanted(item))
        self._admit()
        rows = self.batch.rows
        self.batch.keep([i for i, row in enumerate(rows) if _wanted(row.request)])
        if self.batch.rows:
            logits = self.batch.step()
            self.steps += 1
            self.batch.keep([i for i, row in enumerate(self.batch.rows) if _take(row, logits[i])])

    def _admit(self) -> None:
        """Reads waiting prompts into the batch, those that come together side by side."""
        prompts: list[tuple[Row, list[Stretch]]] = []
        for request in self._next():
            try:
                row = Row(request, self.processor.tokenizer)
                prompts.append((row, self.prefill.stretches(request.prompt)))
            except Exception as error:
                if not isinstance(error, RemovedError):
                    logger.exception("a prompt could not be read")
                request.fail(error)
        if not prompts:
            return
        try:
            read = self.prefill.read([stretches for _, stretches in prompts])
        except Exception as error:
            logger.exception("prompts could not be read")
            for row, _ in prompts:
                row.request.fail(error)
            return
        joining = []
        for (row, _), (layers, logits, reused) in zip(prompts, read, strict=True):
            row.request.prompt.reused = reused
            if _take(row, logits):
                joining.append((row, layers))
        if joining:
            self.batch.join(joining)

    def _next(self) -> list[Request]:
        """Waiting requests to read together; runs the functions that stand before them."""
        chosen: list[Request] = []
        longest = 0
        while self._waiting and len(self.batch.rows) + len(chosen) < self.max_batch:
            item = self._waiting[0]
            if isinstance(item, Request):
                longest = max(longest, self.prefill.length(item.prompt))
                if chosen and longest * (len(chosen) + 1) > self.prefill_tokens:
                    break
                chosen.append(item)
            elif chosen:
                break  # what it does may concern them
            self._waiting.popleft()
            if not isinstance(item, Request):
                item()
        return chosen


def _wanted(request: Request | Callable[[], object]) -> bool:
    """Whether somebody still waits for the answer; those whose time is up are told."""
    if not isinstance(request, Request):
        return True
    if not request.cancelled and time.monotonic() > request.deadline:
        request.fail(DeadlineError("the answer was not finished within the request's time limit."))
    return not request.cancelled


def _take(row: Row, logits: Tensor) -> bool:
    try:
        return row.take(logits)
    except Exception as error:
        logger.exception("a token could not be chosen")
        row.request.fail(error)
        return False
