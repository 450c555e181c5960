"""uvicorn around the app: connections that dawdle are closed, and a stop lets answers finish."""

import asyncio
import json
import socket
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http import h11_impl
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from crome.serving.gate import ApiError, refuse
from crome.serving.service import Service

HEADER_SECONDS = 20
HEADER_BYTES = 32_768


class PatientH11(H11Protocol):
    """Closes a connection on which the head of a request, the first or another, takes too long."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the clock for the first request."""
        super().connection_made(transport)
        self.loop.call_later(HEADER_SECONDS, self._close_if_still, self.cycle)

    def on_response_complete(self) -> None:
        """Starts the clock for the next one; uvicorn's own stops at its first byte."""
        self.loop.call_later(HEADER_SECONDS, self._close_if_still, self.cycle)
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Says what is no HTTP in the shape of all other errors; uvicorn's own is plain text."""
        body = json.dumps(ApiError(400, msg, "invalid_http").body).encode()
        headers = [("content-type", "application/json"), ("connection", "close")]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(body),
                      h11.EndOfMessage()):  # fmt: skip
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _close_if_still(self, cycle: RequestResponseCycle | None) -> None:
        if self.cycle is cycle and not self.transport.is_closing():
            self.transport.close()


async def crowded(_: Scope, receive: Receive, send: Send) -> None:
    """Answers in the app's place when there are too many connections."""
    busy = "too many connections; try again later."
    headers = {"retry-after": "1", "connection": "close"}
    await refuse(send, ApiError(503, busy, "overloaded", headers=headers))


# uvicorn's own answer is plain text, and no setting replaces it.
h11_impl.service_unavailable = crowded  # type: ignore[attr-defined,assignment]


class Server(uvicorn.Server):
    """Refuses new requests as soon as it is told to stop, and then waits for the others."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stops."""
        self.service.draining = True
        await super().shutdown(sockets)


def settings(drain: float) -> dict[str, Any]:
    """Keywords for uvicorn."""
    return {
        "http": PatientH11,
        "ws": "none",
        "h11_max_incomplete_event_size": HEADER_BYTES,
        "limit_concurrency": 1024,
        "timeout_keep_alive": 10,
        "timeout_graceful_shutdown": int(drain),
        "server_header": False,
    }


def run(app: ASGIApp, service: Service, host: str, port: int, drain: float) -> None:
    """Serves until the process is told to stop."""
    Server(uvicorn.Config(app, host=host, port=port, **settings(drain)), service).run()
