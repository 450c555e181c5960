"""The routes that answer: chat completions, completions and responses, whole and as streams."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from crome.errors import InputError
from crome.serving.conversation import Attachment, conversation
from crome.serving.delivery import Answers
from crome.serving.engine.protocol import Prompt
from crome.serving.engine.protocol import Request as Job
from crome.serving.engine.sampling import Sampling
from crome.serving.errors import ApiError
from crome.serving.http.body import beside, reads
from crome.serving.http.failures import as_api_error
from crome.serving.http.responses import ResponseReply, ResponsesRequest
from crome.serving.http.wire import Reply, sse
from crome.serving.schema import ChatRequest, CompletionRequest, Generation
from crome.serving.service import Fetched, Service, media_of

Result = TypeVar("Result")
Make = Callable[[Fetched], list[Prompt]]


@dataclass(frozen=True)
class Query:
    """One request for answers.

    Attributes:
        body: What the client sent.
        make: Makes its prompts, once its pictures are here.
        media: What it shows.
        number: Answers that it wants.
        length: Of each, None for the server's own; and the field that it came in.
        logprobs: Alternatives to report beside each token; None for no report.
        param: The field that the prompts came in, for errors.
    """

    body: ChatRequest | CompletionRequest
    make: Make
    media: tuple[Attachment, ...]
    number: int
    length: tuple[int | None, str]
    logprobs: int | None
    param: str

    @property
    def is_chat(self) -> bool:
        """Whether the form is that of chat completions."""
        return isinstance(self.body, ChatRequest)


def add_answer_routes(app: FastAPI, service: Service) -> None:
    """Adds the routes."""

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(
        body: Annotated[ChatRequest, Depends(reads(ChatRequest))], request: Request
    ) -> Response:
        """Answers the last message of a conversation, with images or without."""
        dialogue = await beside(conversation, body.messages)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None

        def make(fetched: Fetched) -> list[Prompt]:
            return service.chat_prompts(body, dialogue, fetched, request.state.tenant)

        new = body.max_completion_tokens is not None
        length = (body.max_completion_tokens if new else body.max_tokens,
                  "max_completion_tokens" if new else "max_tokens")  # fmt: skip
        query = Query(body, make, dialogue.media, body.n or 1, length, logprobs, dialogue.param)
        return await answer(service, request, query)

    @app.post("/v1/completions", response_model=None)
    async def completions(
        body: Annotated[CompletionRequest, Depends(reads(CompletionRequest))], request: Request
    ) -> Response:
        """Continues a text."""

        def make(fetched: Fetched) -> list[Prompt]:
            return service.completion_prompts(body, fetched, request.state.tenant)

        number = (body.n or 1) * (1 if isinstance(body.prompt, str) else len(body.prompt))
        media = tuple(media_of(body))
        length = (body.max_tokens or 16, "max_tokens")
        query = Query(body, make, media, number, length, body.logprobs, "prompt")
        return await answer(service, request, query)

    @app.post("/v1/responses", response_model=None)
    async def responses(
        body: Annotated[ResponsesRequest, Depends(reads(ResponsesRequest))], request: Request
    ) -> Response:
        """Answers the last message of a conversation, in OpenAI's newer form."""
        chat_body = await beside(body.chat)
        instructions = len(chat_body.messages) - (
            1 if isinstance(body.input, str) else len(body.input)
        )
        dialogue = await beside(conversation, chat_body.messages, "input", instructions)

        def make(fetched: Fetched) -> list[Prompt]:
            return service.chat_prompts(chat_body, dialogue, fetched, request.state.tenant)

        length = (body.max_output_tokens, "max_output_tokens")
        query = Query(chat_body, make, dialogue.media, 1, length, None, dialogue.param)
        return await answer(service, request, query, lambda requests: ResponseReply(body, requests))


async def answer(
    service: Service,
    request: Request,
    query: Query,
    form: Callable[[Sequence[Job]], ResponseReply] | None = None,
) -> Response:
    """Answers a request in the form that it wants; by default that of completions."""
    body = query.body
    with ExitStack() as stack:
        stack.enter_context(service.places(query.number))
        deadline = time.monotonic() + service.limits.timeout
        prompts = await unless_gone(request, prepared(service, query))
        wanted, length_param = query.length
        length = service.new_tokens(prompts, wanted, query.param, length_param)
        answers = Answers(service.engine, service.metrics)
        stack.callback(answers.cancel)
        answers.submit(
            prompts,
            max_new_tokens=length,
            sampling=sampling_of(body, service.sampling, query.number, query.logprobs),
            stop=body.stops,
            grammar=await grammar_of(service, body),
            end_ids=() if body.ignore_eos else service.processor.end_ids,
            strip=query.is_chat,
            deadline=deadline,
        )
        reply: Reply | ResponseReply
        if form is not None:
            reply = form(answers.requests)
        else:
            tokenizer, logprobs = service.processor.tokenizer, query.logprobs is not None
            reply = Reply(body.model, query.is_chat, tokenizer, answers.requests, logprobs)
        pieces = answers.pieces()
        if not body.stream:
            whole = await unless_gone(request, reply.whole(pieces))
            return Response(await beside(to_json, whole), media_type="application/json")
        # What fails before the first token still gets a status of its own.
        first = await unless_gone(request, anext(pieces))
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        events = with_errors(reply.events(_and_then(first, pieces), with_usage))
        return HeldResponse(events, stack.pop_all())


async def prepared(service: Service, query: Query) -> list[Prompt]:
    """The prompts of a request, made beside the event loop."""
    async with asyncio.timeout(service.limits.timeout):
        fetched = await service.fetch(query.media)
        return await service.work(query.make, fetched)


async def grammar_of(service: Service, body: ChatRequest | CompletionRequest) -> Any:
    """What an answer's form has to be; None for free text.

    Raises:
        ApiError: This server cannot answer in that form.
    """
    wanted = body.response_format if isinstance(body, ChatRequest) else None
    if wanted is None or wanted.type == "text":
        return None
    schema = wanted.json_schema.schema_ if wanted.json_schema else {"type": "object"}
    try:
        return await service.work(service.engine.grammar, schema)
    except InputError as error:
        raise ApiError(400, str(error), "invalid_value", "response_format") from error


def sampling_of(body: Generation, default: Sampling, number: int, logprobs: int | None) -> Sampling:
    """How a request has its tokens chosen, over what the language model's own settings say.

    A request without a temperature gets the likeliest answer, as evaluation measures it. One that
    wants several choices would get the same several times, so it draws at temperature 1.
    """
    temperature = body.temperature
    if temperature is None:
        temperature = 1.0 if (body.n or 1) > 1 and number > 1 else 0.0
    given: dict[str, Any] = {
        "top_p": body.top_p,
        "top_k": None if body.top_k is None else max(body.top_k, 0),
        "min_p": body.min_p,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "repetition_penalty": body.repetition_penalty,
        "seed": body.seed,
    }
    return replace(
        default,
        temperature=temperature,
        penalize_prompt=body.repetition_penalty is not None,
        logprobs=logprobs,
        **{name: value for name, value in given.items() if value is not None},
    )


class HeldResponse(StreamingResponse):
    """A stream of events that holds its place until it ends, however it ends."""

    def __init__(self, events: AsyncIterator[str], held: ExitStack) -> None:
        super().__init__(
            events, media_type="text/event-stream", headers={"cache-control": "no-store"}
        )
        self.held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the stream."""
        with self.held:
            await super().__call__(scope, receive, send)


async def _and_then(first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
    yield first
    async for value in rest:
        yield value


async def with_errors(events: AsyncIterator[str]) -> AsyncIterator[str]:
    """A stream that ends with an error event if it fails."""
    try:
        async for event in events:
            yield event
    except Exception as error:
        yield sse(as_api_error(error).body)


class GoneError(Exception):
    """The client has closed the connection."""


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """Waits for something, or for the client to leave, which ends it.

    Raises:
        GoneError: The client left first.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise GoneError
        return tasks[0].result()  # type: ignore[return-value]
    finally:
        for task in tasks:
            task.cancel()
