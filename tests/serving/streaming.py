"""A web server that answers as vLLM streams, from a stand-in of its model."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class RefusedError(Exception):
    """With a status and a message."""


@contextmanager
def streaming(stand_in: Any, models: Sequence[dict[str, Any]] = ()) -> Iterator[str]:
    """The address of the server, as long as the block lasts.

    Args:
        stand_in: Its `events(body)` gives what is streamed; path and body of each request are
            added to its `bodies`.
        models: What the server says it has.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, json.dumps({"object": "list", "data": models}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            stand_in.bodies.append((self.path, body))
            try:
                events = list(stand_in.events(body))
            except RefusedError as refused:
                status, text = refused.args
                self.reply(status, json.dumps({"error": {"message": text}}).encode())
                return
            lines = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
            self.reply(200, (lines + "data: [DONE]\n\n").encode(), "text/event-stream")

        def reply(self, status: int, data: bytes, kind: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
