"""From a client's request to the engine and back: prompts, limits, and pieces as they come."""

import asyncio
import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from crome.errors import InputError
from crome.model.processing import CromeProcessor
from crome.rows import Medium, Row
from crome.serving.adapters import Adapters
from crome.serving.classifiers import Classifiers
from crome.serving.conversation import Attachment, Conversation, conversation
from crome.serving.engine.protocol import Engine, Prompt
from crome.serving.errors import ApiError
from crome.serving.fetching import Fetcher
from crome.serving.metrics import Metrics
from crome.serving.pictures import Pictures
from crome.serving.prompts import prompt_of
from crome.serving.recordings import Recordings
from crome.serving.schema import AttentionRequest, ChatRequest, CompletionRequest

Result = TypeVar("Result")
Fetched = Mapping[str, bytes]
"""URL → the bytes of what is there."""


@dataclass(frozen=True)
class Limits:
    """How much is taken at once and from one request.

    Attributes:
        max_queue: Answers that may wait beside those being decoded; more are told to come back.
        max_new_tokens: Length of an answer to a request that names none; one that names a length
            gets it as far as prompt and answer fit into `max_length`.
        max_length: Prompt and answer together, in tokens.
        max_media: Pictures and recordings in one request.
        timeout: Seconds for one request, from its arrival to the last token.
    """

    max_queue: int = 64
    max_new_tokens: int = 512
    max_length: int = 4096
    max_media: int = 8
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
        fetcher: Gets pictures and recordings from other hosts; by default from none.
    """

    def __init__(
        self,
        engine: Engine,
        processor: CromeProcessor,
        adapters: Adapters,
        pictures: Pictures | None = None,
        limits: Limits | None = None,
        classifiers: Classifiers | None = None,
        fetcher: Fetcher | None = None,
    ) -> None:
        self.engine = engine
        self.processor = processor
        self.adapters = adapters
        self.pictures = pictures or Pictures()
        self.recordings = Recordings(self.pictures.max_bytes)
        self.fetcher = fetcher or Fetcher()
        limits = limits or Limits()
        own = engine.max_length or limits.max_length
        self.limits = replace(limits, max_length=min(limits.max_length, own))
        self.classifiers = classifiers or Classifiers()
        self.sampling = engine.sampling
        self.metrics = Metrics(engine)
        self.taken = 0
        """Answers that were promised and are not finished."""
        self.draining = False
        self._seconds = 1.0  # of an answer, averaged over the last ones
        # Few: decoding pictures must take neither the event loop nor the cores that answer.
        self._workers = ThreadPoolExecutor(2, "crome-prepare")
        self._fitter = ThreadPoolExecutor(1, "crome-classify")

    def start(self) -> None:
        """Starts the engine, after it has read one prompt to warm up and to take its measures."""
        if (warm_up := getattr(self.engine, "warm_up", None)) is not None:
            blank = Row((Image.new("RGB", (64, 64)),), "What is this?", "", "warm-up")
            warm_up(prompt_of(self.processor, blank))
        with suppress(InputError):  # takes half a second, in which a request would hold up others
            self.engine.grammar({"type": "object"})
        self.engine.start()

    async def work(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Runs something slow beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, function, *arguments)

    async def classifying(self, function: Callable[..., Result], *arguments: object) -> Result:
        """The same, on a thread of its own: fitting takes long, and prompts do not wait for it."""
        return await asyncio.get_running_loop().run_in_executor(self._fitter, function, *arguments)

    async def attention(self, prompt: Prompt) -> Tensor:
        """(Q, h, w) where the queries look in the first picture of a prompt."""
        async with asyncio.timeout(self.limits.timeout):
            return await asyncio.to_thread(self.engine.attention, prompt)

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
        if self.draining:
            raise ApiError(503, "the server is shutting down.", "shutting_down")
        if not self.engine.alive:
            raise ApiError(503, "the server cannot answer any more.", "engine_failed")
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

    # ------------------------------------------------------------------ pictures, recordings

    async def fetch(self, media: Sequence[Attachment], most: int | None = None) -> Fetched:
        """The bytes of those pictures and recordings that are elsewhere.

        Args:
            media: Of one request.
            most: So many at most; None for the server's own limit.

        Raises:
            ApiError: There are too many, or one cannot be had.
        """
        most = most or self.limits.max_media
        if len(media) > most:
            noun = "images" if all(one.medium == "image" for one in media) else "media"
            raise ApiError(
                400, f"{len(media)} {noun}; at most {most} in one request.", "invalid_value",
                media[most].param,
            )  # fmt: skip
        elsewhere = {one.url: one for one in media if one.url[:5].lower() in ("http:", "https")}
        found = await asyncio.gather(*map(self._fetch, elsewhere.values()))
        return dict(zip(elsewhere, found, strict=True))

    async def _fetch(self, one: Attachment) -> bytes:
        with at_fault(one.param, one.medium):
            return await self.fetcher.fetch(one.url)

    def opened(self, one: Attachment, fetched: Fetched) -> Any:
        """A picture that a client sent or named, or (samples,) of a recording.

        Raises:
            ApiError: It is none, too large, or nothing that this model takes.
        """
        with at_fault(one.param, one.medium):
            if one.medium == "image":
                if one.url in fetched:
                    return self.pictures.decode(fetched[one.url])
                return self.pictures.open(one.url)
            if one.medium not in self.processor.media:
                raise InputError("this model does not hear; leave recordings out.")
            rate = getattr(self.processor, "sampling_rate", 16_000)
            if one.url in fetched:
                return self.recordings.decode(fetched[one.url], rate)
            return self.recordings.open(one.url, rate)

    # ------------------------------------------------------------------ prompts

    def chat_prompts(
        self, body: ChatRequest, dialogue: Conversation, fetched: Fetched, tenant: str
    ) -> list[Prompt]:
        """A prompt for each choice of a chat request.

        Raises:
            ApiError: A picture cannot be read, or the words are too long.
        """
        adapter = self.adapters.find(body.model).key
        texts = [
            dialogue.question,
            dialogue.begun,
            dialogue.system or "",
            *(t for p in dialogue.history for t in p),
        ]
        self._check_characters(sum(map(len, texts)), dialogue.param)
        opened: dict[tuple[Medium, str], Any] = {}
        for one in dialogue.media:
            if (one.medium, one.url) not in opened:
                opened[one.medium, one.url] = self.opened(one, fetched)
        try:
            prompt = self._chat_prompt(dialogue, opened, adapter, tenant)
        except InputError:  # the template has no place for a system message
            if dialogue.system is None:
                raise
            prompt = self._chat_prompt(dialogue.without_system(), opened, adapter, tenant)
        return [replace(prompt) for _ in range(body.n or 1)]

    def _chat_prompt(
        self,
        dialogue: Conversation,
        opened: Mapping[tuple[Medium, str], Any],
        adapter: str | None,
        tenant: str,
    ) -> Prompt:
        processor = copy.copy(self.processor)
        if not processor.uses_chat_template:
            dialogue = dialogue.without_system()
        elif dialogue.system is not None:
            processor.system_prompt = processor.words(dialogue.system)
        if not opened:  # the limit is the Q-Former's, which is not asked
            processor.max_question_tokens = self.limits.max_length
        else:
            self._check_question(dialogue.question, dialogue.param)
        shown: dict[Medium, list[Any]] = {"image": [], "audio": []}
        for one in dialogue.media:
            shown[one.medium].append(opened[one.medium, one.url])
        row = Row(
            tuple(shown["image"]), dialogue.question, "", "", history=dialogue.history,
            audios=tuple(shown["audio"]), places=dialogue.places,
        )  # fmt: skip
        prompt = prompt_of(processor, row, adapter, tenant)
        if dialogue.begun:
            begun = self._ids(processor.words(dialogue.begun))
            prompt = replace(prompt, ids=torch.cat([prompt.ids, begun], 1))
        return prompt

    def _ids(self, text: str) -> Tensor:
        ids = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return torch.tensor([ids], dtype=torch.long)

    def completion_prompts(
        self, body: CompletionRequest, fetched: Fetched, tenant: str
    ) -> list[Prompt]:
        """A prompt for each choice of each text of a completion request, without a template.

        Raises:
            ApiError: The picture cannot be read, or a text is empty or too long.
        """
        adapter = self.adapters.find(body.model).key
        texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        if len(texts) * (body.n or 1) > 8:
            raise ApiError(400, "at most 8 answers at once: prompts × n.", "invalid_value", "n")
        images = tuple(self.opened(picture, fetched) for picture in media_of(body))
        processor = copy.copy(self.processor)
        if not images:
            processor.max_question_tokens = self.limits.max_length
        prompts = []
        for text in texts:
            self._check_characters(len(text), "prompt")
            if images:
                self._check_question(text, "prompt")
            ids = torch.tensor([processor.tokenizer(text)["input_ids"]], dtype=torch.long)
            if not ids.numel():
                raise ApiError(400, "the prompt is empty.", "invalid_value", "prompt")
            prompt = prompt_of(processor, Row(images, text, "", ""), adapter, tenant)
            head = int(ids[0, 0] == processor.tokenizer.bos_token_id)
            prompt = replace(prompt, ids=ids, visual_position=torch.tensor([head]))
            prompts += [replace(prompt) for _ in range(body.n or 1)]
        return prompts

    def attention_prompt(self, body: AttentionRequest, fetched: Fetched) -> Prompt:
        """One picture and one question, for the base.

        Raises:
            ApiError: The picture cannot be read, or the question is empty or too long.
        """
        if not body.question.strip():
            raise ApiError(400, "the question is empty.", "invalid_value", "question")
        self._check_characters(len(body.question), "question")
        self._check_question(body.question, "question")
        image = self.opened(Attachment(body.image_url, "image_url"), fetched)
        return prompt_of(self.processor, Row((image,), body.question, "", ""))

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
            raise self._too_long(f"the prompt has {number:,} characters", param)

    def _too_long(self, what: str, param: str) -> ApiError:
        return ApiError(
            400,
            f"{what}; prompt and answer may have {self.limits.max_length} tokens together.",
            "context_length_exceeded",
            param,
        )

    def new_tokens(
        self, prompts: Sequence[Prompt], wanted: int | None, param: str, length_param: str
    ) -> int:
        """Length of the longest answer: the one asked for, or what limits and context allow.

        Args:
            prompts: Of one request.
            wanted: What was asked for; None for the server's own.
            param: The field that the prompts came in.
            length_param: The field that `wanted` came in.

        Raises:
            ApiError: The prompt leaves no room for an answer, or for one of the length asked for.
        """
        longest = max(map(self.engine.length, prompts))
        room = self.limits.max_length - longest
        if room < 1:
            raise self._too_long(f"the prompt has {longest} tokens", param)
        if wanted is not None and wanted > room:
            raise self._too_long(
                f"the prompt has {longest} tokens and the answer is to have up to {wanted}",
                length_param,
            )
        return min(self.limits.max_new_tokens, room) if wanted is None else wanted


def media_of(body: ChatRequest | CompletionRequest | AttentionRequest) -> list[Attachment]:
    """The pictures and recordings of a request."""
    if isinstance(body, ChatRequest):
        return list(conversation(body.messages).media)
    return [] if body.image_url is None else [Attachment(body.image_url, "image_url")]


@contextmanager
def at_fault(param: str, medium: Medium = "image") -> Iterator[None]:
    """Says of an error which field's picture or recording it is about."""
    try:
        yield
    except InputError as error:
        raise ApiError(400, f"{param}: {error}", f"invalid_{medium}", param) from error
