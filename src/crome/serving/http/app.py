"""The application: OpenAI's routes, those that it lacks, the page, and errors in one shape."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from crome.errors import InputError
from crome.model.attention import has_queries
from crome.serving.adapters import Served
from crome.serving.classifiers import Classifier
from crome.serving.conversation import Attachment
from crome.serving.engine.protocol import ClosedError, EngineError, RemovedError
from crome.serving.errors import ApiError, UnknownError
from crome.serving.http.answers import GoneError, add_answer_routes
from crome.serving.http.body import reads
from crome.serving.http.failures import as_api_error, not_found
from crome.serving.http.forms import KIND, read_form
from crome.serving.http.gate import Gate, Keys
from crome.serving.http.responses import ResponsesRequest
from crome.serving.schema import (
    AdapterRequest,
    AttentionRequest,
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    FitForm,
)
from crome.serving.service import Service, at_fault, media_of
from crome.version import __version__

PAGE = Path(__file__).parents[1] / "page"
BODIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/adapters": AdapterRequest,
    "/v1/classifiers": FitForm,
    "/v1/attention": AttentionRequest,
    "/v1/classify": ClassifyRequest,
}
"""What each route reads, for the description of the API."""


def create_app(
    service: Service,
    keys: Keys | None = None,
    allow_origins: Sequence[str] = (),
    **limits: Any,
) -> ASGIApp:
    """Builds the application.

    Args:
        service: Started by the application when it starts.
        keys: Who may ask; everybody by default.
        allow_origins: Web pages of other origins that may ask; "*" for all.
        limits: Of `Gate`.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(service.start)
        yield
        await asyncio.to_thread(service.engine.close, 10)

    app = FastAPI(
        title="crome", version=__version__, lifespan=lifespan, openapi_url=None, docs_url=None,
        redoc_url=None, redirect_slashes=False,
    )  # fmt: skip
    keys = keys or Keys()
    _state_routes(app, service, keys)
    add_answer_routes(app, service)
    _model_routes(app, service)
    _attention_route(app, service)
    _classifier_routes(app, service)
    _error_handlers(app)
    _describe_bodies(app)
    # Last, not mounted at "/": there it would take a wrong method of a route for a missing file.
    app.router.default = Page()
    gate = Gate(app, keys, service.metrics.observe, **limits)
    if not allow_origins:
        return gate
    # Outside the gate: a browser asks for permission without a key.
    return CORSMiddleware(
        gate, allow_origins=allow_origins, allow_methods=["*"], allow_headers=["*"],
        expose_headers=["x-request-id", "retry-after"],
    )  # fmt: skip


class Page(StaticFiles):
    """The files of the page; an unknown path is not found, whatever is done to it."""

    def __init__(self) -> None:
        super().__init__(directory=PAGE, html=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends a file.

        Raises:
            ApiError: There is none at the path.
            HTTPException: There is one, and something else than reading it was asked for.
        """
        path = self.get_path(scope)
        found = path == "."
        with suppress(ValueError, OSError):  # a name that no file can have
            found |= (await asyncio.to_thread(self.lookup_path, path))[1] is not None
        if scope["path"].startswith("/v1") or not found:
            raise not_found(scope["path"])
        await super().__call__(scope, receive, send)


def _describe_bodies(app: FastAPI) -> None:
    """Puts what routes read into the description: they read it themselves, within limits."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = made()
            models = [(model, "validation") for model in BODIES.values()]
            _, found = models_json_schema(models, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
            schema.setdefault("components", {}).setdefault("schemas", {}).update(found["$defs"])
            for path, model in BODIES.items():
                content = {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}
                kind = KIND if model is FitForm else "application/json"
                body = {"required": True, "content": {kind: content}}
                schema["paths"][path]["post"]["requestBody"] = body
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]

    @app.get("/openapi.json", include_in_schema=False)
    def description() -> JSONResponse:  # not async: FastAPI's own is made on the event loop
        return JSONResponse(app.openapi())


# ---------------------------------------------------------------------- state


def _state_routes(app: FastAPI, service: Service, keys: Keys) -> None:
    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether the process works."""
        alive = service.engine.alive or service.draining
        return JSONResponse({"status": "ok" if alive else "failed"}, 200 if alive else 503)

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready")
    async def ready() -> JSONResponse:
        """Whether new requests are taken."""
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        """Counts and times for Prometheus; where there are keys, caches for the admin alone."""
        everything = request.state.admin or not keys.needed
        text = service.metrics.text(everything)
        return Response(text, media_type="text/plain; version=0.0.4")


# ---------------------------------------------------------------------- models


def _model_routes(app: FastAPI, service: Service) -> None:
    adapters = service.adapters

    def described(served: Served) -> dict[str, Any]:
        return {
            "id": served.name,
            "object": "model",
            "created": served.created,
            "owned_by": "crome",
            "root": adapters.base,
            "parent": None if served.name == adapters.base else adapters.base,
            "max_model_len": service.limits.max_length,
            "capabilities": {
                "media": list(service.processor.media),
                "attention": has_queries(service.engine.model),
            },
            "metadata": served.about,
        }

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The base and its adapters."""
        return {"object": "list", "data": [described(served) for served in adapters]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        return described(adapters.find(name))

    @app.post("/v1/adapters")
    async def add(
        body: Annotated[AdapterRequest, Depends(reads(AdapterRequest))], request: Request
    ) -> dict[str, Any]:
        """Loads an adapter from an allowed folder; needs the admin key."""
        require_admin(request)

        def load() -> Served:
            return adapters.add(body.name, adapters.inside_roots(body.path))

        return described(await asyncio.to_thread(load))

    @app.delete("/v1/adapters/{name}")
    async def remove(name: str, request: Request) -> dict[str, Any]:
        """Removes an adapter; needs the admin key."""
        require_admin(request)
        adapters.remove(name)
        return {"id": name, "object": "model", "deleted": True}


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
    async def look(
        body: Annotated[AttentionRequest, Depends(reads(AttentionRequest))],
    ) -> dict[str, Any]:
        """Where the queries look in a picture for a question: rows of shares that sum to one."""
        with service.places(1):
            if body.model is not None:
                service.adapters.find(body.model)
            fetched = await service.fetch(media_of(body))
            prompt = await service.work(service.attention_prompt, body, fetched)
            weights = await service.attention(prompt)  # (Q, h, w)
        reply: dict[str, Any] = {"object": "attention", "grid": weights.mean(0).tolist()}
        return reply | ({"queries": weights.tolist()} if body.per_query else {})


def _classifier_routes(app: FastAPI, service: Service) -> None:
    known = service.classifiers

    @app.get("/v1/classifiers")
    async def classifiers(request: Request) -> dict[str, Any]:
        """The classifiers that the caller may use."""
        found = known.visible(request.state.tenant)
        own = request.state.tenant
        return {"object": "list", "data": [_classifier(c, own) for c in found]}

    @app.post("/v1/classifiers")
    async def fit(form: Annotated[FitForm, Depends(read_form)], request: Request) -> dict[str, Any]:
        """Fits a classifier on pictures, each with the name of its class in `labels`."""
        tenant, images = request.state.tenant, list(enumerate(form.images))

        def opened(image: tuple[int, bytes]) -> Any:
            with at_fault(f"images[{image[0]}]"):
                return service.pictures.decode(image[1])

        with service.places(1):
            work = (known.fit, form.name, form.labels, images, tenant, form.method, opened)
            return _classifier(await service.classifying(*work), tenant)

    @app.post("/v1/classify")
    async def classify(
        body: Annotated[ClassifyRequest, Depends(reads(ClassifyRequest))], request: Request
    ) -> dict[str, Any]:
        """The likeliest classes of pictures."""
        tenant = request.state.tenant
        pictures = [Attachment(url, f"images[{i}]") for i, url in enumerate(body.images)]
        with service.places(1):
            fetched = await service.fetch(pictures, len(pictures))

            def opened(picture: Attachment) -> Any:
                return service.opened(picture, fetched)

            work = (known.classify, body.model, pictures, tenant, body.top, opened)
            found = await service.classifying(*work)
        rows = [[{"label": k, "probability": p} for k, p in row] for row in found]
        data = [{"index": i, "classes": row} for i, row in enumerate(rows)]
        return {"object": "list", "model": body.model, "data": data}

    @app.get("/v1/classifiers/{name}/file", response_model=None)
    async def download(name: str, request: Request) -> Response:
        """A classifier as a file for `crome fewshot` and for `crome serve --classifier`."""
        classifier = known.find(name, request.state.tenant)
        with TemporaryDirectory() as folder:
            file = Path(folder) / f"{name}.safetensors"
            await service.classifying(known.save, classifier, file)
            data = await asyncio.to_thread(file.read_bytes)
        headers = {"content-disposition": f'attachment; filename="{file.name}"'}
        return Response(data, media_type="application/octet-stream", headers=headers)

    @app.delete("/v1/classifiers/{name}")
    async def forget(name: str, request: Request) -> dict[str, Any]:
        """Forgets a classifier: the caller's own, or with the admin key whatever has the name."""
        if not known.remove_own(name, request.state.tenant):
            require_admin(request)
            known.remove(name)
        return {"id": name, "object": "classifier", "deleted": True}


def _classifier(classifier: Classifier, tenant: str) -> dict[str, Any]:
    return {
        "id": classifier.name,
        "object": "classifier",
        "created": classifier.created,
        "classes": classifier.classes,
        "own": classifier.owner == tenant,
        "metadata": classifier.about,
    }


# ---------------------------------------------------------------------- errors


def _methods(app: FastAPI, scope: Scope) -> list[str]:
    """What may be done at a path."""
    here = (route for route in app.routes if route.matches(scope)[0] is not Match.NONE)
    return sorted({method for route in here for method in getattr(route, "methods", ())})


def _error_handlers(app: FastAPI) -> None:
    async def handle(request: Request, error: Exception) -> Response:
        if isinstance(error, GoneError):
            return Response(status_code=499)  # nobody reads it; the log does
        reply = as_api_error(error)
        if reply.status == 405:  # Starlette names the methods of the first route alone
            reply.headers["Allow"] = ", ".join(_methods(app, request.scope)) or "GET, HEAD"
        return JSONResponse(reply.body, reply.status, reply.headers)

    for kind in (
        ApiError, InputError, UnknownError, RemovedError, TimeoutError, ClosedError, EngineError,
        GoneError, HTTPException, Exception,
    ):  # fmt: skip
        app.add_exception_handler(kind, handle)
