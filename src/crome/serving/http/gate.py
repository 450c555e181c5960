"""What stands before the app: keys, sizes and times, checked before a body is even read."""

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class ApiError(Exception):
    """An answer in the shape of OpenAI's errors.

    Args:
        status: Of the HTTP answer.
        message: For the caller's eyes.
        code: For the caller's program.
        param: The field at fault.
        headers: Further headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        kind = "server_error" if status >= 500 else kinds.get(status, "invalid_request_error")
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Keys:
    """Who may ask, and who may change things.

    Args:
        keys: Of callers; none lets everybody ask.
        admin: Lets its holder add and remove adapters and classifiers; None lets nobody.
    """

    def __init__(self, keys: Iterable[str] = (), admin: str | None = None) -> None:
        self._digests = [_digest(key) for key in keys]
        self._admin = None if admin is None else _digest(admin)

    def tenant(self, authorization: str) -> tuple[str, bool] | None:
        """Name of the caller and whether it is the administrator; None for a wrong key."""
        scheme, _, key = authorization.partition(" ")
        digest = _digest(key.strip() if scheme.lower() == "bearer" else "")
        if self._admin is not None and hmac.compare_digest(digest, self._admin):
            return digest[:12], True
        # All are compared, so that the time taken says nothing.
        found = [known for known in self._digests if hmac.compare_digest(digest, known)]
        if found:
            return found[0][:12], False
        return None if self._digests else ("", False)


class Gate:
    """Lets through what is allowed, small and quick enough.

    Args:
        app: What it protects.
        keys: Of callers and the administrator.
        observe: Told the route, the status and the seconds of every response.
        max_body: Bytes of one request.
        max_bodies: Bytes of all requests being received or answered.
        body_seconds: In which a body must arrive.
        total_seconds: In which a request must be received, answered and read.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys,
        observe: Callable[[str, int, float], None],
        max_body: int = 32 << 20,
        max_bodies: int = 512 << 20,
        body_seconds: float = 30,
        total_seconds: float = 300,
    ) -> None:
        self.app = app
        self.keys = keys
        self.observe = observe
        self.max_body = max_body
        self.max_bodies = max_bodies
        self.body_seconds = body_seconds
        self.total_seconds = total_seconds
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        held, status, began = 0, 0, time.monotonic()

        async def sending(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        def hold(number: int) -> None:
            nonlocal held
            held += number
            self.held += number

        try:
            async with asyncio.timeout(self.total_seconds):
                self._identify(scope)
                body = await self._body(scope, receive, hold)
                await self.app(scope, _replay(body, receive), sending)
        except ApiError as error:
            await refuse(sending, error)
        except TimeoutError:
            if not status:  # else too slow a reader: the connection is closed
                await refuse(sending, ApiError(503, "the server took too long.", "timeout"))
        except ConnectionError:
            pass  # gone
        finally:
            self.held -= held
            route = getattr(scope.get("route"), "path", "other")  # of which there are few
            self.observe(route, status, time.monotonic() - began)

    def _identify(self, scope: Scope) -> None:
        state = scope.setdefault("state", {})
        known = self.keys.tenant(_header(scope, b"authorization"))
        state["tenant"], state["admin"] = known or ("", False)
        needs_key = scope["path"].startswith("/v1")
        if needs_key and known is None:
            raise ApiError(
                401,
                "the API key is missing or wrong; send it as `Authorization: Bearer KEY`.",
                "invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )

    async def _body(self, scope: Scope, receive: Receive, hold: Callable[[int], None]) -> bytes:
        """Reads the body; each part counts as soon as it is here, for senders may be many."""
        declared = _header(scope, b"content-length")
        if declared.isdigit() and int(declared) > self.max_body:
            raise self._too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(self.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionResetError
                    part = message.get("body", b"")
                    body += part
                    hold(len(part))
                    if len(body) > self.max_body:
                        raise self._too_large()
                    if self.held > self.max_bodies:
                        raise ApiError(
                            503, "too many large requests at once.", "overloaded",
                            headers={"retry-after": "1"},
                        )  # fmt: skip
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError as error:
            raise ApiError(
                408, f"the request did not arrive within {self.body_seconds:g} s.", "timeout"
            ) from error

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"the request is larger than {self.max_body:,} bytes.", "request_too_large",
            headers={"connection": "close"},
        )  # fmt: skip


async def refuse(send: Send, error: ApiError) -> None:
    """Sends an error."""
    body = json.dumps(error.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    pairs = [(k.encode(), v.encode()) for k, v in (headers | error.headers).items()]
    await send({"type": "http.response.start", "status": error.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def _replay(body: bytes, receive: Receive) -> Receive:
    """A channel that gives the body once, and then what the connection has to say."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _header(scope: Scope, name: bytes) -> str:
    values: dict[bytes, Any] = dict(scope["headers"])
    return str(values.get(name, b"").decode("latin-1"))


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
