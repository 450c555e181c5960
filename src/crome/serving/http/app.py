"""The HTTP interface: OpenAI's routes, and the few that it lacks."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Form, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from crome.errors import InputError
from crome.serving.adapters import Served, TakenError, UnknownError
from crome.serving.classifiers import Classifier
from crome.serving.engine import ClosedError
from crome.serving.engine import Request as Job
from crome.serving.gate import ApiError, Gate, Keys
from crome.serving.prefill import Prompt, RemovedError
from crome.serving.prompts import prompt_attention
from crome.serving.sampling import Sampling
from crome.serving.schema import (
    AdapterRequest,
    AttentionRequest,
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    Generation,
    Name,
)
from crome.serving.service import Answers, Service
from crome.serving.wire import Reply, sse
from crome.version import __version__

logger = logging.getLogger(__name__)
PAGE = Path(__file__).parent / "page"
Result = TypeVar("Result")


def create_app(service: Service, keys: Keys | None = None, **limits: Any) -> Gate:
    """Builds the application.

    Args:
        service: Started by the application when it starts.
        keys: Who may ask; everybody by default.
        limits: Of `Gate`.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(service.start)
        yield
        await asyncio.to_thread(service.engine.close, 10)

    app = FastAPI(
        title="crome", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        redirect_slashes=False,
    )  # fmt: skip
    _state_routes(app, service)
    _answer_routes(app, service)
    _model_routes(app, service)
    _attention_route(app, service)
    _classifier_routes(app, service)
    _error_handlers(app)
    # Last, not mounted at "/": there it would take a wrong method of a route for a missing file.
    app.router.default = StaticFiles(directory=PAGE, html=True)
    return Gate(app, keys or Keys(), service.metrics.observe, **limits)


# ---------------------------------------------------------------------- state


def _state_routes(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether the process works."""
        alive = service.engine.alive or service.draining
        return JSONResponse({"status": "ok" if alive else "failed"}, 200 if alive else 503)

    @app.get("/ready")
    async def ready() -> JSONResponse:
        """Whether new requests are taken."""
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counts and times for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


# ---------------------------------------------------------------------- answers


def _answer_routes(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answers the last message of a conversation, with images or without."""
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        wanted = body.max_completion_tokens or body.max_tokens
        number = body.n or 1
        return await answer(request, body, service.chat_prompts, number, wanted, logprobs)

    @app.post("/v1/completions", response_model=None)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continues a text."""
        number = (body.n or 1) * (1 if isinstance(body.prompt, str) else len(body.prompt))
        make = service.completion_prompts
        return await answer(request, body, make, number, body.max_tokens or 16, body.logprobs)

    async def answer(
        request: Request,
        body: Any,
        make: Callable[[Any, str], list[Prompt]],
        number: int,
        wanted: int | None,
        logprobs: int | None,
    ) -> Response:
        with ExitStack() as stack:
            stack.enter_context(service.places(number))
            deadline = time.monotonic() + service.limits.timeout
            prompts = await service.work(make, body, request.state.tenant)
            length = service.new_tokens(prompts, wanted)
            answers = Answers(service.engine, service.metrics)
            stack.callback(answers.cancel)
            is_chat = isinstance(body, ChatRequest)
            end_ids = () if body.ignore_eos else service.processor.end_ids
            for index, prompt in enumerate(prompts):
                answers.submit(
                    Job(
                        prompt,
                        answers.channel(index),
                        length,
                        _sampling(body, index, logprobs),
                        body.stops,
                        end_ids,
                        is_chat,
                        deadline,
                    )
                )
            tokenizer = service.processor.tokenizer
            reply = Reply(body.model, is_chat, tokenizer, answers.requests, logprobs is not None)
            pieces = answers.pieces()
            if not body.stream:
                return JSONResponse(await unless_gone(request, reply.whole(pieces)))
            # What fails before the first token still gets a status of its own.
            first = await unless_gone(request, anext(pieces))
            with_usage = bool(body.stream_options and body.stream_options.include_usage)
            events = _told(reply.events(_and_then(first, pieces), with_usage))
            return HeldResponse(events, stack.pop_all())


def _sampling(body: Generation, index: int, logprobs: int | None) -> Sampling:
    return Sampling(
        body.temperature or 0.0,
        1.0 if body.top_p is None else body.top_p,
        None if body.seed is None else (body.seed + index) % 2**63,
        logprobs,
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


async def _told(events: AsyncIterator[str]) -> AsyncIterator[str]:
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


# ---------------------------------------------------------------------- models


def _model_routes(app: FastAPI, service: Service) -> None:
    adapters = service.adapters

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The base and its adapters."""
        return {"object": "list", "data": [_model(served, adapters.base) for served in adapters]}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        return _model(adapters.find(name), adapters.base)

    @app.post("/v1/adapters")
    async def add(body: AdapterRequest, request: Request) -> dict[str, Any]:
        """Loads an adapter from an allowed folder; needs the admin key."""
        require_admin(request)

        def load() -> Served:
            return adapters.add(body.name, adapters.inside_roots(body.path))

        return _model(await service.on_engine(load), adapters.base)

    @app.delete("/v1/adapters/{name}")
    async def remove(name: str, request: Request) -> dict[str, Any]:
        """Removes an adapter; needs the admin key."""
        require_admin(request)
        adapters.remove(name)
        return {"id": name, "object": "model", "deleted": True}


def _model(served: Served, base: str) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "crome",
        "root": base,
        "parent": None if served.name == base else base,
        "metadata": served.about,
    }


def require_admin(request: Request) -> None:
    """Refuses everybody but the administrator."""
    if not request.state.admin:
        raise ApiError(
            403, "this needs the admin key, with which the server must have been started.",
            "admin_only",
        )  # fmt: skip


# ---------------------------------------------------------------------- beside OpenAI's


def _attention_route(app: FastAPI, service: Service) -> None:
    @app.post("/v1/attention")
    async def look(body: AttentionRequest, request: Request) -> dict[str, Any]:
        """Where the queries look in a picture for a question: rows of shares that sum to one."""
        with service.places(1):
            if body.model is not None:
                service.adapters.find(body.model)
            prompt = await service.work(service.attention_prompt, body)
            model = service.engine.model
            weights = await service.on_engine(lambda: prompt_attention(model, prompt))  # (Q, h, w)
        told: dict[str, Any] = {"object": "attention", "grid": weights.mean(0).tolist()}
        return told | ({"queries": weights.tolist()} if body.per_query else {})


def _classifier_routes(app: FastAPI, service: Service) -> None:
    known = service.classifiers

    @app.get("/v1/classifiers")
    async def classifiers(request: Request) -> dict[str, Any]:
        """The classifiers that the caller may use."""
        found = known.visible(request.state.tenant)
        return {"object": "list", "data": [_classifier(c) for c in found]}

    @app.post("/v1/classifiers")
    async def fit(
        request: Request,
        name: Annotated[Name, Form()],
        labels: Annotated[list[Name], Form()],
        images: list[UploadFile],
        method: Annotated[str | None, Form()] = None,
    ) -> dict[str, Any]:
        """Fits a classifier on pictures, each with the name of its class in `labels`."""
        files = [await image.read() for image in images]

        tenant, opened = request.state.tenant, service.pictures.decode
        with service.places(1):
            work = (known.fit, name, labels, files, tenant, method, opened)
            return _classifier(await service.classifying(*work))

    @app.post("/v1/classify")
    async def classify(body: ClassifyRequest, request: Request) -> dict[str, Any]:
        """The likeliest classes of pictures."""
        tenant, opened = request.state.tenant, service.pictures.open
        with service.places(1):
            work = (known.classify, body.model, body.images, tenant, body.top, opened)
            found = await service.classifying(*work)
        rows = [[{"label": k, "probability": p} for k, p in row] for row in found]
        data = [{"index": i, "classes": row} for i, row in enumerate(rows)]
        return {"object": "list", "model": body.model, "data": data}

    @app.delete("/v1/classifiers/{name}")
    async def forget(name: str, request: Request) -> dict[str, Any]:
        """Forgets a classifier; needs the admin key."""
        require_admin(request)
        known.remove(name)
        return {"id": name, "object": "classifier", "deleted": True}


def _classifier(classifier: Classifier) -> dict[str, Any]:
    return {
        "id": classifier.name,
        "object": "classifier",
        "created": classifier.created,
        "classes": classifier.classes,
        "metadata": classifier.about,
    }


# ---------------------------------------------------------------------- errors


def as_api_error(error: BaseException) -> ApiError:
    """What a client is told about an error: everything about its own, nothing about ours."""
    match error:
        case ApiError():
            return error
        case TakenError():
            return ApiError(409, str(error), "name_taken", "name")
        case UnknownError() | RemovedError():
            return ApiError(404, str(error), "model_not_found", "model")
        case InputError():
            return ApiError(400, str(error), "invalid_value")
        case TimeoutError():
            return ApiError(
                503,
                str(error) or "the server took too long.",
                "timeout",
                headers={"retry-after": "1"},
            )
        case ClosedError():
            return ApiError(503, str(error), "shutting_down")
        case RequestValidationError():
            return _validation_error(error)
        case HTTPException():
            return ApiError(error.status_code, error.detail, headers=dict(error.headers or {}))
    logger.error("a request failed", exc_info=error)
    return ApiError(500, "the server failed on this request.", "internal_error")


def _validation_error(error: RequestValidationError) -> ApiError:
    # Of a field that takes a text or a list, the deepest says what is wrong with what was sent.
    first = max(error.errors(), key=lambda found: len(found["loc"]))
    where = ".".join(str(part) for part in first["loc"][1:] if "[" not in str(part))
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is not valid JSON.", "invalid_json")
    known = {"extra_forbidden": "this server knows no such field"}
    message = f"{where or 'body'}: {known.get(first['type'], first['msg'])}"
    message = message.replace("Value error, ", "")
    return ApiError(400, message[:500], "invalid_value", where[:200] or None)


def _methods(app: FastAPI, scope: Scope) -> list[str]:
    """What may be done at a path."""
    here = (route for route in app.routes if route.matches(scope)[0] is not Match.NONE)
    return sorted({method for route in here for method in getattr(route, "methods", ())})


def _error_handlers(app: FastAPI) -> None:
    async def handle(request: Request, error: Exception) -> Response:
        if isinstance(error, GoneError):
            return Response(status_code=499)  # nobody reads it; the log does
        told = as_api_error(error)
        if told.status == 405:  # Starlette names the methods of the first route alone
            told.headers["Allow"] = ", ".join(_methods(app, request.scope)) or "GET, HEAD"
        return JSONResponse(told.body, told.status, told.headers)

    for kind in (
        ApiError, InputError, UnknownError, RemovedError, TimeoutError, ClosedError, GoneError,
        RequestValidationError, HTTPException, Exception,
    ):  # fmt: skip
        app.add_exception_handler(kind, handle)
