"""What stands before the app: keys, sizes and times, checked before a body is even read."""

import asyncio
import hashlib
import hmac
import json
import re
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crome.serving.errors import ApiError

HEADER_BYTES = 32_768
DRAINED, DRAIN_SECONDS, SILENT_SECONDS = 8, 10, 0.5
"""Of a body that is too large, so many times what is allowed is read on, for so long, and until
nothing more comes."""
ALONGSIDE = 1 << 20
"""Bytes of a body from which on its parts are joined beside the event loop; so large a join lets
other threads run meanwhile."""
REQUEST_ID = re.compile(r"[!-~]{1,128}")


class Keys:
    """Who may ask, and who may change things.

    Args:
        keys: Of callers; none lets everybody ask.
        admin: Lets its holder add and remove adapters and classifiers; None lets nobody.
    """

    def __init__(self, keys: Iterable[str] = (), admin: str | None = None) -> None:
        self._digests = [_digest(key) for key in keys]
        self._admin = None if admin is None else _digest(admin)

    @property
    def needed(self) -> bool:
        """Whether there are keys at all."""
        return bool(self._digests) or self._admin is not None

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

        given = _header(scope, b"x-request-id")
        name = given if REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"

        async def sending(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", name.encode())]
            await send(message)

        def hold(number: int) -> None:
            nonlocal held
            held += number
            self.held += number

        try:
            async with asyncio.timeout(self.total_seconds):
                _check_head(scope)
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
        parts: list[bytes] = []
        size = 0
        declared = _header(scope, b"content-length")
        large = declared.isdigit() and int(declared) > self.max_body
        if large and _header(scope, b"expect"):
            raise self._too_large()  # the client asks before it sends
        try:
            async with asyncio.timeout(self.body_seconds):
                while not large:
                    message = await _part(receive)
                    part = message.get("body", b"")
                    parts.append(part)
                    size += len(part)
                    hold(len(part))
                    large = size > self.max_body
                    if self.held > self.max_bodies:
                        raise ApiError(
                            503, "too many large requests at once.", "overloaded",
                            headers={"retry-after": "1"},
                        )  # fmt: skip
                    if not message.get("more_body"):
                        break
        except TimeoutError as error:
            raise ApiError(
                408, f"the request did not arrive within {self.body_seconds:g} s.", "timeout"
            ) from error
        if large:
            parts.clear()
            await self._drain(receive)
            raise self._too_large()
        if size < ALONGSIDE:
            return b"".join(parts)
        return await asyncio.to_thread(b"".join, parts)

    async def _drain(self, receive: Receive) -> None:
        """Reads on for a while and keeps nothing.

        A client that is still sending reads no answer, and one whose connection is closed then
        never sees why.
        """
        left, until = DRAINED * self.max_body, time.monotonic() + DRAIN_SECONDS
        with suppress(TimeoutError):
            while left > 0 and time.monotonic() < until:
                async with asyncio.timeout(SILENT_SECONDS):
                    message = await _part(receive)
                left -= len(message.get("body", b""))
                if not message.get("more_body"):
                    return

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


async def _part(receive: Receive) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ConnectionResetError
    return message


def _check_head(scope: Scope) -> None:
    """Refuses headers that are too large together.

    Raises:
        ApiError: They are.
    """
    size = len(scope.get("raw_path", b"")) + len(scope.get("query_string", b""))
    size += sum(len(name) + len(value) for name, value in scope["headers"])
    if size > HEADER_BYTES:
        raise headers_too_large()


def headers_too_large() -> ApiError:
    """What is told of headers that are too large together."""
    return ApiError(431, f"the headers have more than {HEADER_BYTES:,} bytes.", "headers_too_large")


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
