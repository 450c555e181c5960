"""uvicorn around the app: connections that dawdle are closed, and a stop lets answers finish."""

import asyncio
import gc
import json
import logging
import resource
import socket
import sys
import uuid
from contextlib import suppress
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http import h11_impl
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from crome.errors import InputError
from crome.serving.errors import ApiError
from crome.serving.http.gate import HEADER_BYTES, headers_too_large, refuse
from crome.serving.service import Service

logger = logging.getLogger(__name__)
HEADER_SECONDS = 20
MAX_CONNECTIONS = 1024
STATE = ("/health", "/ready", "/metrics")
PROBE_SECONDS = 0.25
LINGER_SECONDS = 0.5  # in which a client may read why it was refused
READ_BYTES = 4096
"""Read from a connection at once. A body may come in chunks of one byte, each of which costs h11 as
much as one of thousands; more of them in one go would hold up everybody else."""
SWITCH_SECONDS = 0.001
"""A thread that computes in Python passes the interpreter on after so long: with Python's own 5 ms,
the event loop would wait that long for each of them, many times in a request."""
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class PatientH11(H11Protocol):
    """Closes a connection on which the head of a request, the first or another, takes too long."""

    refused = False
    """Whether what came was no HTTP; the rest is not read then."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the clock for the first request."""
        super().connection_made(transport)
        transport.max_size = READ_BYTES  # type: ignore[attr-defined]
        self.loop.call_later(HEADER_SECONDS, self._close_if_still, self.cycle)

    def data_received(self, data: bytes) -> None:
        """Takes what has arrived."""
        if not self.refused:
            super().data_received(data)

    def on_response_complete(self) -> None:
        """Starts the clock for the next one; uvicorn's own stops at its first byte."""
        self.loop.call_later(HEADER_SECONDS, self._close_if_still, self.cycle)
        super().on_response_complete()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answers a client that has closed its side after it has sent a request.

        One that has left altogether looks the same until something is sent to it; so the interim
        response that every client passes over is sent, which fails for one that has left.
        """
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body:
            return False
        cycle.keep_alive = False
        self._probe(cycle)
        return True

    def _probe(self, cycle: RequestResponseCycle) -> None:
        gone = self.transport.is_closing() or cycle.disconnected
        if gone or cycle.response_started or cycle.response_complete:
            return
        self.transport.write(CONTINUE)
        self.loop.call_later(PROBE_SECONDS, self._probe, cycle)

    def send_400_response(self, msg: str) -> None:
        """Says what is no HTTP in the shape of all other errors; uvicorn's own is plain text.

        A client that is still sending would lose the answer if the connection were closed at once.
        """
        error = ApiError(400, msg, "invalid_http")
        if len(self.conn.trailing_data[0]) > HEADER_BYTES:
            error = headers_too_large()
        body = json.dumps(error.body).encode()
        name = f"req_{uuid.uuid4().hex}"
        headers = [("content-type", "application/json"), ("connection", "close"),
                   ("x-request-id", name)]  # fmt: skip
        with suppress(h11.LocalProtocolError):  # an answer has begun already
            for event in (h11.Response(status_code=error.status, headers=headers),
                          h11.Data(body), h11.EndOfMessage()):  # fmt: skip
                self.transport.write(self.conn.send(event) or b"")
        self.refused = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _close_if_still(self, cycle: RequestResponseCycle | None) -> None:
        if self.cycle is cycle and not self.transport.is_closing():
            self.transport.close()


class Crowded:
    """Answers in the app's place when there are too many connections.

    Args:
        app: Still says how the server is: a probe must not take a full server for a dead one.
    """

    app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if self.app is not None and scope["path"] in STATE:
            await self.app(scope, receive, send)
            return
        busy = "too many connections; try again later."
        headers = {
            "retry-after": "1", "connection": "close", "x-request-id": f"req_{uuid.uuid4().hex}",
        }  # fmt: skip
        await refuse(send, ApiError(503, busy, "overloaded", headers=headers))


crowded = Crowded()
# uvicorn's own answer is plain text, and no setting replaces it.
h11_impl.service_unavailable = crowded  # type: ignore[attr-defined,assignment]


class Server(uvicorn.Server):
    """Refuses new requests as soon as it is told to stop, and then waits for the others."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        crowded.app = config.app  # type: ignore[assignment]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts, and says where."""
        await super().startup(sockets)
        if sockets:  # the process is this server's alone
            # What has been loaded stays: looking through it for garbage would take a second.
            gc.collect()
            gc.freeze()
        for sock in sockets or []:
            host, port = sock.getsockname()[:2]
            address = f"[{host}]" if ":" in host else host
            logger.info("serving on http://%s:%d", address, port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stops."""
        self.service.draining = True
        await super().shutdown(sockets)


def settings(drain: float) -> dict[str, Any]:
    """Keywords for uvicorn."""
    return {
        "http": PatientH11,
        "loop": "asyncio",  # uvloop reads as much as there is
        "ws": "none",
        "h11_max_incomplete_event_size": HEADER_BYTES,
        "limit_concurrency": MAX_CONNECTIONS,
        "timeout_keep_alive": 10,
        "timeout_graceful_shutdown": int(drain),
        "server_header": False,
    }


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; taken before a model is loaded, which takes its time.

    Raises:
        InputError: The address does not exist here, or the port is taken.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"port is {port}; expected 0 (any free one) to 65535.")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, number, _, address = found[0]
        sock = socket.socket(family, kind, number)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(2048)
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"cannot listen on {host}, port {port}: {getattr(error, 'strerror', None) or error}. "
            "Choose others with --host and --port."
        ) from error
    sock.setblocking(False)
    return sock


def run(app: ASGIApp, service: Service, sock: socket.socket, drain: float) -> None:
    """Serves on a socket until the process is told to stop."""
    allow_connections()
    sys.setswitchinterval(SWITCH_SECONDS)
    host, port = sock.getsockname()[:2]
    config = uvicorn.Config(app, host=host, port=port, **settings(drain))
    Server(config, service).run(sockets=[sock])


def allow_connections() -> None:
    """Lets the process have as many open files as there may be connections, and some more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * MAX_CONNECTIONS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
