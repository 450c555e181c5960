"""Iteration-level batching: one thread, one language model, requests of any adapters together.

The adapter acts before the language model, so after its prompt is read a request is keys and values
like any other, and one decoding step serves all of them. A request joins the running batch between
two steps and leaves it when its answer ends. Prompts are read in chunks between the steps.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from crome.model.slots import Slots, records
from crome.serving.engine.admission import Admission
from crome.serving.engine.batch import Batch, Row, take_all
from crome.serving.engine.bridge import prompt_attention
from crome.serving.engine.defaults import model_processors, model_sampling
from crome.serving.engine.grammar import Grammars
from crome.serving.engine.intake import Intake
from crome.serving.engine.memory import free_memory, return_memory
from crome.serving.engine.pace import Pace
from crome.serving.engine.prefill import Prefill, device_of
from crome.serving.engine.protocol import Gauges, Prompt, RemovedError, Request
from crome.serving.engine.reading import Reading
from crome.serving.engine.sampling import Sampling
from crome.serving.engine.slotted import SlottedBatch
from crome.serving.engine.thread import ModelThread

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
TOGETHER = 16
"""Prompts whose embeddings are computed together at most."""
READ, READ_ON_GPU = 1024, 4096
"""Prompt tokens between two steps at most. Fewer leave a GPU idle; how many of them running answers
can wait for is learnt."""
IDLE_SECONDS = 5.0


class LocalEngine:
    """Takes requests from any thread and answers them on its own.

    Args:
        model: In eval mode, used by nobody else while the engine runs.
        processor: The model's own.
        max_batch: Rows decoded together at most.
        prefill_tokens: Prompt tokens, with padding, read between two steps at most; None for a
            number that keeps the device busy.
        gap: Seconds that reading prompts may take between two steps of running answers.
        cache_bytes: Keys and values of all rows together; None for half of the free memory.
        prefill: Reads the prompts.
        thread: The thread on which the model was loaded; a new one by default.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        max_batch: int = 32,
        prefill_tokens: int | None = None,
        gap: float = 0.1,
        cache_bytes: int | None = None,
        prefill: Prefill | None = None,
        thread: ModelThread | None = None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.max_batch = max_batch
        cuda = device_of(model).type == "cuda"
        self.prefill_tokens = prefill_tokens or (READ_ON_GPU if cuda else READ)
        self.prefill = prefill or Prefill(model)
        self.admission = Admission(self.prefill, max_batch, gap, cache_bytes)
        self.batch: Batch | SlottedBatch = Batch(model)
        self.steps = 0
        self.failed = False
        config = model.language_model.config.get_text_config()
        self.max_length: int | None = getattr(config, "max_position_embeddings", None)
        self._processors = model_processors(model.language_model, processor.end_ids)
        vocabulary = model.get_output_embeddings().weight.shape[0]
        self._grammars = Grammars(processor.tokenizer, vocabulary, processor.end_ids)
        self._slots: Slots | None = None
        self._readings: list[tuple[Row, Reading]] = []
        self._pace = Pace(gap, self.prefill_tokens)
        self._intake = Intake(thread)
        self._urgent: deque[Callable[[], object]] = deque()

    # ------------------------------------------------------------------ from any thread

    def start(self) -> None:
        """Begins to answer."""
        if device_of(self.model).type == "cuda":
            # cuDNN's attention makes a plan for each number of keys, and every step has a new one.
            torch.backends.cuda.enable_cudnn_sdp(False)
        self._intake.start(self._run)

    def warm_up(self, prompt: Prompt) -> None:
        """Reads a prompt, which measures what a picture and a token take; before `start`."""
        self._intake.thread.run(lambda: self._warm_up(prompt)).result()

    def submit(self, request: Request) -> None:
        """Queues a request.

        Raises:
            ClosedError: The engine is shutting down, or cannot go on.
        """
        self._intake.put(request)

    def call(self, function: Callable[[], object]) -> None:
        """Runs a function on the engine's thread once the prompts that now wait were begun."""
        self._intake.put(function)

    def between(self, function: Callable[[], Result]) -> "Future[Result]":
        """Runs a function between two decoding steps, before any prompt that waits."""
        done: Future[Result] = Future()

        def run() -> None:
            if done.set_running_or_notify_cancel():
                try:
                    done.set_result(function())
                except BaseException as error:
                    done.set_exception(error)

        self._intake.put(run, self._urgent)
        return done

    def close(self, timeout: float | None = None) -> None:
        """Answers what was taken, refuses anything new, and stops."""
        self._intake.close(timeout)

    @property
    def alive(self) -> bool:
        """Whether requests are being answered."""
        return self._intake.alive

    @property
    def waiting(self) -> int:
        """Requests that nobody works on yet."""
        return len(self._intake.waiting)

    @property
    def running(self) -> int:
        """Requests that are being read or answered."""
        return len(self.batch.rows) + len(self._readings)

    def length(self, prompt: Prompt) -> int:
        """Tokens of a prompt, as far as they are known before its pictures were read."""
        return self.prefill.length(prompt)

    @property
    def sampling(self) -> Sampling:
        """How the model's own settings choose tokens."""
        return model_sampling(self.model.language_model)

    def grammar(self, schema: dict[str, Any]) -> Any:
        """Prepares answers in JSON that fits a schema; raises `InputError` when it cannot."""
        return self._grammars.json(schema)

    def add_adapter(self, key: str, folder: Path) -> None:
        """Loads an adapter on the caller's thread; raises `InputError` when it is unfit."""
        self.model.task_adapters[key] = self.model.read_adapter(folder)

    def remove_adapter(self, key: str) -> None:
        """Forgets an adapter once the prompts that wait now were begun."""
        self.call(lambda: self.model.task_adapters.pop(key))

    def attention(self, prompt: Prompt) -> Tensor:
        """(Q, h, w) where the queries look in the first picture of a prompt."""
        return self.between(lambda: prompt_attention(self.model, prompt)).result()

    def gauges(self) -> Gauges:
        """Levels for an operator's monitoring."""
        features, prefixes = self.prefill.features, self.prefill.prefixes
        return {
            "decoding_steps": ("Steps since the start.", lambda: self.steps),
            "decoding_rows": ("Answers in the last step.", lambda: len(self.batch.rows)),
            "reading": ("Prompts that are being read.", lambda: len(self._readings)),
            "adapters": ("Adapters loaded.", lambda: len(self.model.task_adapters)),
            "key_value_bytes": ("Keys and values of answers.", self._reserved),
            "feature_cache_bytes": ("Visual features kept.", lambda: features.bytes),
            "feature_cache_hits": ("Pictures that were known.", lambda: features.hits),
            "feature_cache_misses": ("Pictures that were not.", lambda: features.misses),
            "prefix_cache_bytes": ("Image prefixes kept.", lambda: prefixes.bytes),
            "prefix_cache_hits": ("Prefixes that were known.", lambda: prefixes.hits),
            "prefix_cache_misses": ("Prefixes that were not.", lambda: prefixes.misses),
        }

    # ------------------------------------------------------------------ on the engine's thread

    def _warm_up(self, prompt: Prompt) -> None:
        with torch.inference_mode():
            for _ in range(2):  # the first time pays for much that later ones do not
                self.prefill.prefixes.clear()
                (reading,) = self.prefill.begin([prompt])
                began, tokens = time.monotonic(), 0
                while not reading.finished:
                    tokens += self.prefill.advance([reading], self.prefill_tokens)
                self._pace.begin(tokens, time.monotonic() - began)
        memory = free_memory(device_of(self.model))
        self.prefill.suit(memory)
        self.admission.cache_bytes = self.admission.cache_bytes or memory // 2
        self.prefill.features.clear()
        self.prefill.prefixes.clear()

    def _run(self) -> None:
        with torch.inference_mode():
            if records(self.model.language_model):
                limit = self.admission.cache_bytes or float("inf")
                self._slots = Slots(self.model.language_model, limit)
            while self._has_work():
                try:
                    self._iterate()
                except Exception as error:  # of any kind: all requests that wait must fail with it
                    logger.exception("the engine failed")
                    self._fail_all(error)
            while self._urgent:  # other threads wait for these to end, too
                self._urgent.popleft()()

    def _has_work(self) -> bool:
        """Waits for work; False once there is none and none can come."""
        rested = self.steps == 0
        with self._intake.changed:
            while not (self._pending() or self._intake.closed):
                if not self._intake.changed.wait(IDLE_SECONDS) and not rested:
                    return_memory()
                    rested = True
            return self._pending() and not self.failed

    def _pending(self) -> bool:
        return bool(self._intake.waiting or self._urgent or self._readings or self.batch.rows)

    def _iterate(self) -> None:
        while self._urgent:
            self._urgent.popleft()()
        with self._intake.changed:  # requests that were given up leave the queue at once
            queue = self._intake.waiting
            left = [item for item in queue if not isinstance(item, Request) or item.wanted()]
            queue.clear()  # it stays the same object, because other threads may be adding to it
            queue.extend(left)
        self._readings = [(row, r) for row, r in self._readings if row.request.wanted()]
        rows = self.batch.rows
        self.batch.keep([i for i, row in enumerate(rows) if row.request.wanted()])
        self._begin(self._next())
        self._read()
        if self.batch.rows:
            began = time.monotonic()
            self.batch = self._step(self.batch)
            self._pace.stepped(time.monotonic() - began)
            self.steps += 1

    # ------------------------------------------------------------------ prompts

    def _next(self) -> list[Request]:
        """Waiting requests that may begin now; runs the functions that stand before them."""
        chosen: list[Request] = []
        pictures, taken = 0, self._taken()
        waiting = self._intake.waiting
        while waiting and len(chosen) < TOGETHER:
            item = waiting[0]
            if isinstance(item, Request):
                pictures += self.prefill.new_pictures(item.prompt)
                if not self.admission.has_place(item, taken):
                    break
                if chosen and self.batch.rows and self.admission.too_slow(pictures):
                    break
                chosen.append(item)
                taken.append(self.admission.tokens(item))
            elif chosen:
                break  # the function may concern the requests that were chosen
            waiting.popleft()
            if not isinstance(item, Request):
                item()
        return [request for request in chosen if not request.cancelled]

    def _reserved(self) -> int:
        return self.admission.reserved(self._taken())

    def _taken(self) -> list[int]:
        """Places of each row that is read or answered."""
        return [row.tokens for row in self.batch.rows] + [row.tokens for row, _ in self._readings]

    def _begin(self, requests: Sequence[Request]) -> None:
        """Computes the embeddings of prompts; one that fails ends no other."""
        if not requests:
            return
        pictures = sum(self.prefill.new_pictures(request.prompt) for request in requests)
        began = time.monotonic()
        try:
            rows = [Row(r, self.processor.tokenizer, self._processors) for r in requests]
            found = self.prefill.begin([request.prompt for request in requests])
        except Exception as error:
            if len(requests) > 1:
                for request in requests:
                    self._begin([request])
                return
            if not isinstance(error, RemovedError):
                logger.exception("a prompt could not be read")
            requests[0].fail(error)
            return
        for row, reading in zip(rows, found, strict=True):
            row.request.prompt.reused = reading.reused
            self._readings.append((row, reading))
        self.admission.learn(pictures, time.monotonic() - began)

    def _read(self) -> None:
        """Reads the next chunks of prompts; those read whole join the running batch."""
        if not self._readings:
            return
        began = time.monotonic()
        tokens = self._advance([reading for _, reading in self._readings], self._allowance())
        if device_of(self.model).type == "cuda":
            torch.cuda.synchronize()  # otherwise only the queueing would be timed
        if self.batch.rows:
            self._pace.passed(tokens, time.monotonic() - began)
        read = [(row, reading) for row, reading in self._readings if reading.finished]
        self._readings = [
            (row, reading) for row, reading in self._readings
            if not reading.finished and not row.request.cancelled
        ]  # fmt: skip
        read = [(row, reading) for row, reading in read if not row.request.cancelled]
        if not read:
            return
        logits = torch.stack([r.logits for _, r in read if r.logits is not None])
        going = take_all([row for row, _ in read], logits)
        if going:
            if self._slots is not None and not self.batch.rows:
                self.batch = SlottedBatch(self.model, self._slots)
            self.batch.join([(read[i][0], read[i][1].layers) for i in going])

    def _allowance(self) -> int:
        """Tokens of prompts to read now: as many as running answers can wait for."""
        if not self.batch.rows:
            return self.prefill_tokens
        return self._pace.tokens

    def _advance(self, readings: Sequence[Reading], tokens: int) -> int:
        try:
            return self.prefill.advance(readings, tokens)
        except Exception as error:
            if len(readings) > 1:
                return sum(self._advance([reading], tokens) for reading in readings)
            logger.exception("a prompt could not be read")
            row = next(row for row, reading in self._readings if reading is readings[0])
            row.request.fail(error)
            self._check_device()
            return 0

    # ------------------------------------------------------------------ answers

    def _step(self, batch: Batch | SlottedBatch) -> Batch | SlottedBatch:
        """One token for every row; returns those whose answers go on.

        A step that fails is tried again with each half of the rows until the row at fault is found,
        so that the failure of one answer ends no other.
        """
        try:
            logits = batch.step()
        except Exception as error:
            if isinstance(batch, SlottedBatch):
                logger.warning("a decoding step in slots failed; they are given up", exc_info=True)
                self._slots = None
                return self._step(batch.part(range(len(batch.rows))))
            if len(batch.rows) == 1:
                logger.exception("a decoding step failed")
                batch.rows[0].request.fail(error)
                self._check_device()
                return Batch(self.model)
            middle, end = len(batch.rows) // 2, len(batch.rows)
            halves = batch.part(range(middle)), batch.part(range(middle, end))
            return Batch.beside([self._step(half) for half in halves])  # type: ignore[misc]
        batch.keep(take_all(batch.rows, logits))
        return batch

    def _check_device(self) -> None:
        """Tests after a failure whether the language model still works at all."""
        try:
            device = device_of(self.model)
            ids = torch.zeros(1, 1, dtype=torch.long, device=device)
            embeds = self.model.get_input_embeddings()(ids)
            bool(self.model.language_model(inputs_embeds=embeds).logits.isfinite().all())
        except Exception as error:
            logger.critical("the language model cannot run any more", exc_info=error)
            self.failed = True
            self._intake.refuse()
            self._fail_all(error)

    def _fail_all(self, error: BaseException) -> None:
        with self._intake.changed:
            waiting = [item for item in self._intake.waiting if isinstance(item, Request)]
            self._intake.waiting.clear()
        rows = [*self.batch.rows, *(row for row, _ in self._readings)]
        for request in [*waiting, *(row.request for row in rows)]:
            if not request.cancelled:
                request.fail(error)
        self.batch, self._readings = Batch(self.model), []
