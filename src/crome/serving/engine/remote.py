"""The engine that forwards to a vLLM: prompts are made here, and decoded there.

A prompt with pictures becomes the embeddings of all its tokens, one without stays token ids. The
language model there never learns that there was a picture. vLLM must be started with
`--enable-prompt-embeds`; keep its port private, since whoever sends embeddings bypasses the
tokenizer. Where the adapter is attached to a vision-language model, vLLM serves that model, and
gets the embeddings of pictures alone; see `crome.serving.engine.image_embeds`.
"""

import asyncio
import threading
import time
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from openai import APIConnectionError, APIStatusError, AsyncOpenAI, OpenAI, OpenAIError
from torch import Tensor

from crome.attached import AttachedModel
from crome.errors import InputError
from crome.serving.engine.bridge import prompt_attention
from crome.serving.engine.defaults import model_sampling
from crome.serving.engine.image_embeds import TEMPLATE, chat, check_family, check_prompt
from crome.serving.engine.protocol import (
    ClosedError,
    DeadlineError,
    EngineError,
    Gauges,
    Piece,
    Prompt,
    RemovedError,
    Request,
)
from crome.serving.engine.sampling import Sampling, Token
from crome.serving.engine.thread import ModelThread
from crome.serving.vllm import encode


class RemoteEngine:
    """Answers requests with the completions endpoint of a vLLM.

    Args:
        model: All that runs before the language model, and its embeddings.
        processor: Of the model.
        url: The vLLM's address, up to and including `/v1`.
        name: The language model's name there.
        key: Sent as a bearer token.
        max_batch: Requests that are sent together at most.

    Raises:
        InputError: `url` is no http address.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        url: str,
        name: str,
        key: str | None = None,
        max_batch: int = 256,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise InputError(
                f"engine_url is {url!r}; expected something like http://localhost:8000/v1."
            )
        self.model = model
        self.processor = processor
        self.name = name
        self.max_batch = max_batch
        self.attached = isinstance(model, AttachedModel)
        if self.attached:
            check_family(model, processor)
        config = model.language_model.config.get_text_config()
        self.max_length: int | None = getattr(config, "max_position_embeddings", None)
        self._client = AsyncOpenAI(
            base_url=url.rstrip("/"), api_key=key or "none", max_retries=1, timeout=600
        )
        self._front_end = ModelThread()  # the model is used by one thread at a time
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="crome-remote",
                                        daemon=True)  # fmt: skip
        self._block = 0
        self._requests: set[asyncio.Future[None]] = set()
        self._closing = False

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def connect(self) -> None:
        """Asks the vLLM for its models, and for the length that it takes.

        Raises:
            InputError: It cannot be reached, or has no model of that name.
        """
        url, key = str(self._client.base_url), self._client.api_key
        try:
            served = {m.id: m for m in OpenAI(base_url=url, api_key=key, timeout=20).models.list()}
        except OpenAIError as error:
            raise InputError(f"no vLLM answers at {url}: {error}. Is it started?") from error
        if self.name not in served:
            raise InputError(
                f"the vLLM at {url} serves {', '.join(served) or 'nothing'}; expected "
                f"{self.name!r}. Name it with --engine_model."
            )
        self.max_length = getattr(served[self.name], "max_model_len", None) or self.max_length

    def submit(self, request: Request) -> None:
        """Sends a request on.

        Raises:
            ClosedError: The engine is shutting down.
        """
        if self._closing:
            raise ClosedError("the server is shutting down.")
        self._loop.call_soon_threadsafe(self._begin, self._answer(request))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)

    def close(self, timeout: float | None = None) -> None:
        """Answers what was taken, refuses anything new, and stops."""
        self._closing = True
        deadline = time.monotonic() + (timeout or 600)
        while self._requests and time.monotonic() < deadline:
            time.sleep(0.01)
        self._loop.call_soon_threadsafe(self._loop.stop)
        with suppress(RuntimeError):  # it was never started
            self._thread.join(5)
        self._front_end.close(5)

    @property
    def alive(self) -> bool:
        """Whether requests are being answered."""
        return self._thread.is_alive() and not self._closing

    @property
    def waiting(self) -> int:
        """Requests that nobody works on yet; vLLM has the queue."""
        return 0

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return len(self._requests)

    def length(self, prompt: Prompt) -> int:
        """Tokens of a prompt, as far as they are known before its pictures were read."""
        pictures = 0 if prompt.image_index is None else prompt.image_index.numel()
        return prompt.ids.shape[1] + pictures * self._block

    @property
    def sampling(self) -> Sampling:
        """How the model's own settings choose tokens."""
        return model_sampling(self.model.vlm if self.attached else self.model.language_model)

    def grammar(self, schema: dict[str, Any]) -> Any:
        """The schema, which vLLM reads itself."""
        return schema

    def add_adapter(self, key: str, folder: Path) -> None:
        """Loads an adapter; raises `InputError` when it is unfit."""
        self.model.task_adapters[key] = self.model.read_adapter(folder)

    def remove_adapter(self, key: str) -> None:
        """Forgets an adapter once the prompts that were taken before were made."""
        self._front_end.run(lambda: self.model.task_adapters.pop(key))

    def attention(self, prompt: Prompt) -> Tensor:
        """(Q, h, w) where the queries look in the first picture of a prompt."""
        return self._front_end.run(prompt_attention, self.model, prompt).result()

    def gauges(self) -> Gauges:
        """Levels for an operator's monitoring; vLLM has its own for decoding."""
        return {"adapters": ("Adapters loaded.", lambda: len(self.model.task_adapters))}

    # ------------------------------------------------------------------ one request

    async def _answer(self, request: Request) -> None:
        try:
            if request.cancelled:
                return
            fields = await asyncio.wrap_future(self._front_end.run(self._prompt, request.prompt))
            left = request.deadline - time.monotonic()
            async with asyncio.timeout(None if left == float("inf") else left):
                await self._stream(request, fields)
        except TimeoutError:
            request.fail(
                DeadlineError("the answer was not finished within the request's time limit.")
            )
        except APIStatusError as error:
            named = [o for o in ("--enable-prompt-embeds", "--enable-mm-embeds") if o in str(error)]
            hint = f" Start it with {named[0]}." if named else ""
            request.fail(EngineError(f"the engine refused the request: {error.message}.{hint}"))
        except APIConnectionError as error:
            request.fail(EngineError(f"the engine cannot be reached: {error}."))
        except Exception as error:
            request.fail(error)

    @torch.inference_mode()
    def _prompt(self, prompt: Prompt) -> dict[str, Any]:
        """A prompt as a field of a request to vLLM."""
        prompt.length = prompt.ids.shape[1]
        if prompt.adapter is not None and prompt.adapter not in self.model.task_adapters:
            raise RemovedError("the model was removed while the request waited.")
        if prompt.batch is not None and "media" in prompt.batch:
            return {"messages": chat(self.model, prompt)}
        if prompt.pixel_values is None or prompt.image_index is None:
            return {"prompt": prompt.ids.tolist()}
        device = self.model.get_input_embeddings().weight.device
        ids = prompt.ids.to(device)
        embeds, _ = self.model.prompt_embeddings(
            ids,
            torch.ones_like(ids),
            prompt.visual_position,
            pixel_values=prompt.pixel_values.to(device),
            image_index=prompt.image_index.to(device),
            **{name: tensor.to(device) for name, tensor in prompt.instruction.items()},
            adapter_names=[prompt.adapter],
        )  # (1, L, d)
        prompt.length = embeds.shape[1]
        self._block = (prompt.length - ids.shape[1]) // prompt.image_index.numel()
        return {"prompt_embeds": [encode(embeds[0].cpu())]}

    async def _stream(self, request: Request, fields: Mapping[str, Any]) -> None:
        """Passes pieces on as they come."""
        stream = await self._opened(request, fields)
        held, empty = "", True
        async with stream:
            async for chunk in stream:
                if request.cancelled:  # leaving the block closes the connection, which stops vLLM
                    return
                if not chunk.choices:
                    continue
                choice = chunk.choices[0]
                finish: Any = choice.finish_reason
                if "messages" in fields and (wrong := check_prompt(chunk, request.prompt.ids)):
                    raise EngineError(wrong)
                text = held + text_of(choice)
                if request.strip:  # space at the end may turn out to be the last
                    text = text.lstrip() if empty else text
                    whole, text = text, text.rstrip()
                    held, empty = whole[len(text) :], empty and not text
                request.deliver(Piece(text, self._tokens(choice, request.end_ids), finish))
                if finish is not None:
                    return
        raise EngineError("the engine broke off in the middle of an answer.")

    async def _opened(self, request: Request, fields: Mapping[str, Any]) -> Any:
        """The stream of an answer: of a conversation, or of what follows ids or embeddings."""
        sampling = request.sampling
        extra: dict[str, Any] = {
            "stop_token_ids": [*request.end_ids],
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "top_k": sampling.top_k or -1,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
        }
        if request.grammar is not None:
            extra["structured_outputs"] = {"json": request.grammar}
        common: dict[str, Any] = {
            "model": self.name,
            "stream": True,
            "max_tokens": request.max_new_tokens,
            "stop": list(request.stop) or None,
            **_sampling(sampling),
        }
        if "messages" in fields:
            extra["chat_template_kwargs"] = TEMPLATE
            if sampling.logprobs is not None:
                common |= {"logprobs": True, "top_logprobs": sampling.logprobs}
            return await self._client.chat.completions.create(
                messages=fields["messages"], extra_body=extra, **common
            )
        embeds = {k: v for k, v in fields.items() if k == "prompt_embeds"}
        if sampling.logprobs is not None:
            common["logprobs"] = sampling.logprobs
        return await self._client.completions.create(
            prompt=fields.get("prompt", ""), extra_body=extra | embeds, **common
        )

    def _tokens(self, choice: Any, end_ids: Any) -> tuple[Token, ...]:
        """The tokens of a piece, without the one that ends the answer."""
        found = reported(choice.logprobs)
        if not found:
            ids = getattr(choice, "token_ids", None)
            if ids is None:  # an older vLLM: counts are then nearly right
                ids = self.processor.tokenizer(text_of(choice), add_special_tokens=False).input_ids
            found = [Token(token) for token in ids]
        return tuple(token for token in found if token.id not in end_ids)


def text_of(choice: Any) -> str:
    """The text of a piece, of a conversation or of a completion."""
    return choice.text if hasattr(choice, "text") else choice.delta.content or ""


def reported(report: Any) -> list[Token]:
    """The tokens of a piece with their log-probabilities, in the form of either endpoint."""
    if report is None:
        return []
    if getattr(report, "content", None):
        return [
            Token(
                _number(one.token),
                one.logprob,
                tuple((_number(top.token), top.logprob) for top in one.top_logprobs),
            )
            for one in report.content
        ]
    rows = zip(
        getattr(report, "tokens", None) or [],
        getattr(report, "token_logprobs", None) or [],
        getattr(report, "top_logprobs", None) or [],
        strict=False,
    )
    return [
        Token(_number(t), p, tuple((_number(k), v) for k, v in (top or {}).items()))
        for t, p, top in rows
    ]


def _number(token: str) -> int:
    """The id in vLLM's `token_id:5`."""
    return int(token.rpartition(":")[2])


def _sampling(sampling: Sampling) -> dict[str, Any]:
    """Fields that OpenAI's API has."""
    return {
        "temperature": sampling.temperature,
        "top_p": max(sampling.top_p, 1e-6),  # vLLM wants more than 0
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        **({} if sampling.seed is None else {"seed": sampling.seed}),
    }
