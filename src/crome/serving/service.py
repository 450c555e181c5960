"""From a client's request to the engine and back: prompts, limits, and pieces as they come."""

import asyncio
import copy
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeVar

import torch
from PIL import Image

from crome.model.processing import CromeProcessor
from crome.rows import Row
from crome.serving.adapters import Adapters
from crome.serving.classifiers import Classifiers
from crome.serving.engine import Engine, Piece, Request
from crome.serving.gate import ApiError
from crome.serving.metrics import Metrics
from crome.serving.pictures import Pictures
from crome.serving.prefill import Prompt
from crome.serving.prompts import prompt_of
from crome.serving.schema import (
    AttentionRequest,
    ChatRequest,
    CompletionRequest,
    ImagePart,
    Message,
)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Limits:
    """How much is taken at once and from one request.

    Attributes:
        max_queue: Answers that may wait beside those being decoded; more are told to come back.
        max_new_tokens: Longest answer, and that of a request which names none.
        max_length: Prompt and answer together, in tokens.
        max_images: In one request.
        timeout: Seconds for one request, from its arrival to the last token.
    """

    max_queue: int = 64
    max_new_tokens: int = 512
    max_length: int = 4096
    max_images: int = 8
    timeout: float = 120


class Service:
    """What the routes share.

    Args:
        engine: Not started yet.
        processor: Of its model.
        adapters: Loaded ones, the base among them.
        pictures: Opens what clients send.
        limits: Of one request and of all.
        classifiers: Few-shot ones.
    """

    def __init__(
        self,
        engine: Engine,
        processor: CromeProcessor,
        adapters: Adapters,
        pictures: Pictures | None = None,
        limits: Limits | None = None,
        classifiers: Classifiers | None = None,
    ) -> None:
        self.engine = engine
        self.processor = processor
        self.adapters = adapters
        self.pictures = pictures or Pictures()
        limits = limits or Limits()
        config = engine.model.language_model.config.get_text_config()
        own = getattr(config, "max_position_embeddings", None) or limits.max_length
        self.limits = replace(limits, max_length=min(limits.max_length, own))
        self.classifiers = classifiers or Classifiers()
        self.metrics = Metrics(engine)
        self.taken = 0
        """Answers that were promised and are not finished."""
        self.draining = False
        self._seconds = 1.0  # of an answer, averaged over the last ones
        # Few: decoding pictures must take neither the event loop nor the cores that answer.
        self._workers = ThreadPoolExecutor(2, "crome-prepare")
        self._fitter = ThreadPoolExecutor(1, "crome-classify")

    def start(self) -> None:
        """Reads one prompt, which warms up and measures the visual block, and starts the engine."""
        blank = Row((Image.new("RGB", (64, 64)),), "What is this?", "", "warm-up")
        prompt = prompt_of(self.processor, blank)
        with torch.inference_mode():
            self.engine.prefill.read([self.engine.prefill.stretches(prompt)])
        self.engine.start()

    async def work(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Runs something slow beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, function, *arguments)

    async def classifying(self, function: Callable[..., Result], *arguments: object) -> Result:
        """The same, on a thread of its own: fitting takes long, and prompts do not wait for it."""
        return await asyncio.get_running_loop().run_in_executor(self._fitter, function, *arguments)

    async def on_engine(self, function: Callable[[], Result]) -> Result:
        """Runs something that needs the model between two decoding steps."""
        done: Future[Result] = Future()

        def run() -> None:
            if done.set_running_or_notify_cancel():
                try:
                    done.set_result(function())
                except BaseException as error:
                    done.set_exception(error)

        self.engine.call(run)
        async with asyncio.timeout(self.limits.timeout):
            return await asyncio.wrap_future(done)

    @property
    def ready(self) -> bool:
        """Whether new requests are taken."""
        return self.engine.alive and not self.draining

    @contextmanager
    def places(self, number: int) -> Iterator[None]:
        """Keeps places for so many answers.

        Raises:
            ApiError: There are none (429), or the server is stopping (503).
        """
        if not self.ready:
            raise ApiError(503, "the server is shutting down.", "shutting_down")
        room = self.engine.max_batch + self.limits.max_queue
        if self.taken + number > room:
            wait = math.ceil(self._seconds * self.taken / self.engine.max_batch)
            raise ApiError(
                429, f"{self.taken} answers are being worked on; try again later.", "overloaded",
                headers={"retry-after": str(min(max(wait, 1), 60))},
            )  # fmt: skip
        began = time.monotonic()
        self.taken += number
        try:
            yield
        finally:
            self.taken -= number
            self._seconds += 0.1 * (time.monotonic() - began - self._seconds)

    # ------------------------------------------------------------------ prompts

    def chat_prompts(self, body: ChatRequest, tenant: str) -> list[Prompt]:
        """A prompt for each choice of a chat request.

        Raises:
            InputError: A picture cannot be read.
            ApiError: The messages do not make a conversation, or are too long.
        """
        adapter = self.adapters.find(body.model).key
        row, system = self._row(body.messages)
        processor = copy.copy(self.processor)
        if system is not None:
            if not processor.uses_chat_template:
                raise ApiError(400, "this model takes no system message.", param="messages")
            processor.system_prompt = processor.words(system)
        if not row.images:  # the limit is the Q-Former's, which is not asked
            processor.max_question_tokens = self.limits.max_length
        else:
            self._check_question(row.question, "messages")
        prompt = prompt_of(processor, row, adapter, tenant)
        return [replace(prompt) for _ in range(body.n or 1)]

    def completion_prompts(self, body: CompletionRequest, tenant: str) -> list[Prompt]:
        """A prompt for each choice of each text of a completion request, without a template."""
        adapter = self.adapters.find(body.model).key
        texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        if len(texts) * (body.n or 1) > 8:
            raise ApiError(400, "at most 8 answers at once: prompts × n.", param="n")
        images = () if body.image_url is None else (self.pictures.open(body.image_url),)
        prompts = []
        for text in texts:
            self._check_characters(len(text), "prompt")
            ids = torch.tensor([self.processor.tokenizer(text)["input_ids"]], dtype=torch.long)
            if not ids.numel():
                raise ApiError(400, "the prompt is empty.", param="prompt")
            prompt = prompt_of(self.processor, Row(images, text, "", ""), adapter, tenant)
            head = int(ids[0, 0] == self.processor.tokenizer.bos_token_id)
            prompt = replace(prompt, ids=ids, visual_position=torch.tensor([head]))
            prompts += [replace(prompt) for _ in range(body.n or 1)]
        return prompts

    def attention_prompt(self, body: AttentionRequest) -> Prompt:
        """One picture and one question, for the base.

        Raises:
            InputError: The picture cannot be read.
            ApiError: The question is empty or too long.
        """
        if not body.question.strip():
            raise ApiError(400, "the question is empty.", param="question")
        self._check_characters(len(body.question), "question")
        self._check_question(body.question, "question")
        row = Row((self.pictures.open(body.image_url),), body.question, "", "")
        return prompt_of(self.processor, row)

    def _row(self, messages: Sequence[Message]) -> tuple[Row, str | None]:
        """Messages → a row, and the system message if there is one."""
        texts, urls = zip(*map(_parts, messages), strict=True)
        self._check_characters(sum(map(len, texts)), "messages")
        shown = list(chain.from_iterable(urls))
        if len(shown) > self.limits.max_images:
            raise ApiError(
                400, f"{len(shown)} images; at most {self.limits.max_images} in one request.",
                param="messages",
            )  # fmt: skip
        roles = ["system" if m.role == "developer" else m.role for m in messages]
        system = texts[0] if roles[0] == "system" else None
        said, roles = list(texts[system is not None :]), roles[system is not None :]
        expected = [("user", "assistant")[i % 2] for i in range(len(roles))]
        if roles != expected or not roles or roles[-1] != "user":
            raise ApiError(
                400, "the messages do not make a conversation; expected an optional system message "
                "and then user and assistant in turn, the user last.", param="messages",
            )  # fmt: skip
        if not said[-1].strip():
            raise ApiError(400, "the last message has no text.", param="messages")
        opened = {url: self.pictures.open(url) for url in dict.fromkeys(shown)}
        images = tuple(opened[url] for url in shown)
        history = tuple(zip(said[:-1:2], said[1::2], strict=True))
        return Row(images, said[-1], "", "", history=history), system

    def _check_question(self, question: str, param: str) -> None:
        """Refuses what the Q-Former would have to cut."""
        if not self.processor.reads_whole(question):
            raise ApiError(
                400, f"the question is longer than {self.processor.max_question_tokens} tokens, "
                "the most this model was trained to read beside an image.",
                "context_length_exceeded", param,
            )  # fmt: skip

    def _check_characters(self, number: int, param: str) -> None:
        """Refuses what is hopeless before a tokenizer spends its time on it."""
        if number > 20 * self.limits.max_length:
            raise self._too_long(f"{number:,} characters", param)

    def _too_long(self, what: str, param: str) -> ApiError:
        return ApiError(
            400,
            f"the prompt has {what}; prompt and answer may have {self.limits.max_length} tokens "
            "together.",
            "context_length_exceeded",
            param,
        )

    def new_tokens(self, prompts: Sequence[Prompt], wanted: int | None) -> int:
        """Length of the longest answer that limits and context allow.

        Raises:
            ApiError: The prompt leaves no room for an answer, or for one of the length asked for.
        """
        longest = max(map(self.engine.prefill.length, prompts))
        room = self.limits.max_length - longest
        if room < 1 or (wanted or 0) > room:
            raise self._too_long(f"{longest} tokens and the answer up to {wanted or 1}", "messages")
        return min(wanted or self.limits.max_new_tokens, self.limits.max_new_tokens, room)


def _parts(message: Message) -> tuple[str, list[str]]:
    """The words and picture URLs of a message."""
    if isinstance(message.content, str):
        return message.content, []
    urls = [part.image_url.url for part in message.content if isinstance(part, ImagePart)]
    if urls and message.role != "user":
        raise ApiError(400, "only user messages may show images.", param="messages")
    return "\n".join(p.text for p in message.content if not isinstance(p, ImagePart)), urls


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

    def submit(self, request: Request) -> None:
        """Has the engine work on an answer."""
        self._engine.submit(request)
        self.requests.append(request)

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Yields (answer, piece) until all are finished; raises what went wrong."""
        left = len(self.requests)
        began, started = time.monotonic(), set[int]()
        while left:
            index, piece = await self._queue.get()
            if piece.error is not None:
                raise piece.error
            if index not in started:
                started.add(index)
                self._metrics.first_token.observe(time.monotonic() - began)
                self._metrics.prompt_tokens.inc(self.requests[index].prompt.length)
            self._metrics.new_tokens.inc(len(piece.tokens))
            left -= piece.finish is not None
            yield index, piece

    def cancel(self) -> None:
        """Stops whatever still runs."""
        for request in self.requests:
            request.cancel()
