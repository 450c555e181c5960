"""Hostile requests against a running server: from the schema of its API, and by hand.

    python benchmarks/hostile.py --json FILE [--requests 100000] [--checkpoint C] [--seed 0]

Request number i is a function of the seed and i alone, and FILE says how far a run has come, so a
run that was broken off goes on where it ended. Beside it, `/health` is asked ten times a second.
Wanted: no status from 500 on (503 of a full server aside), no answer that takes longer than a
minute, memory that grows by at most 5 % after the first tenth, `/health` within 100 ms, and
answers to the known questions in between that are those of a quiet server, for each key its own.
"""

import argparse
import base64
import http.client
import io
import json
import multiprocessing
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

KEYS = ("alice-of-this-run", "bob-of-this-run")
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HANG_SECONDS = 60.0
EVERY = 500
WORDS = ["", " ", "x", "What is the colour?", "é🙂", "\u202e", "<|im_end|>", "</s>", "a" * 3000,
         "word " * 900, "\x00", "%n", "{}",
         "null", "../../etc/passwd", "data:,", "'; --"]  # fmt: skip
NUMBERS = [0, 1, -1, 2, 7, 0.5, 1e308, -1e308, 2**31, 2**63, 2**64, 10**30, 1e-320, 3.0, -0.0]


@dataclass
class Server:
    """A server that was started for the run."""

    port: int
    pid: int

    def ask(
        self, method: str, path: str, body: bytes | None = None, key: str | None = None, **more: str
    ) -> tuple[int, bytes]:
        """Status and body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2 * HANG_SECONDS)
        headers = {"Content-Type": "application/json"} | more
        if key:
            headers["Authorization"] = f"Bearer {key}"
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def send(self, data: bytes, half: bool = False, wait: bool = True) -> int:
        """Status of the answer to raw bytes; 0 for none, as to one who leaves."""
        with socket.create_connection(("127.0.0.1", self.port), HANG_SECONDS) as connection:
            with suppress(OSError):
                connection.sendall(data)
                if half:
                    connection.shutdown(socket.SHUT_WR)
                if wait:
                    connection.settimeout(2)
                    text = b""
                    while not (found := re.findall(rb"HTTP/1.1 ([2-5]\d\d)", text)):
                        if not (part := connection.recv(65536)):
                            return 0
                        text += part
                    return int(found[-1])
        return 0

    def memory(self) -> float:
        """Resident megabytes."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024


# ---------------------------------------------------------------------- from the schema


class FromSchema:
    """Values of the API's own schema, and now and then others.

    Args:
        schema: `/openapi.json`.
        models: Names that exist.
    """

    def __init__(self, schema: dict[str, Any], models: list[str]) -> None:
        self.schemas = schema["components"]["schemas"]
        self.models = models
        self.targets = {}
        for path, route in schema["paths"].items():
            content = route.get("post", {}).get("requestBody", {}).get("content", {})
            if "application/json" in content:
                self.targets[path] = content["application/json"]["schema"]

    def value(self, schema: dict[str, Any], draw: random.Random, depth: int = 0) -> Any:
        """A value that fits a schema, nearly always."""
        if draw.random() < 0.01:
            return junk(draw)
        if "$ref" in schema:
            return self.value(self.schemas[schema["$ref"].rsplit("/", 1)[1]], draw, depth)
        for several in ("anyOf", "oneOf"):
            if several in schema:
                return self.value(draw.choice(schema[several]), draw, depth)
        if "enum" in schema:
            return draw.choice(schema["enum"])
        if "const" in schema:
            return schema["const"]
        make = getattr(self, "_" + schema.get("type", "nothing"), None)
        return junk(draw) if make is None else make(schema, draw, depth)

    def _object(self, schema: dict[str, Any], draw: random.Random, depth: int) -> Any:
        required = set(schema.get("required", ()))
        found = {
            name: self.value(field, draw, depth + 1)
            for name, field in schema.get("properties", {}).items()
            if name in required or draw.random() < 0.06
        }
        if "model" in found and draw.random() < 0.9:
            found["model"] = draw.choice(self.models)
        if "messages" in schema.get("properties", {}) or "prompt" in found:
            found["max_tokens"] = draw.choice([1, 2, 3])
            found.pop("ignore_eos", None)
        if draw.random() < 0.03:
            found[draw.choice(WORDS)] = junk(draw)
        return found

    def _array(self, schema: dict[str, Any], draw: random.Random, depth: int) -> Any:
        number = draw.choice([1, 1, 1, 2, 3, 5, 70] if depth < 3 else [0, 1])
        return [self.value(schema.get("items", {}), draw, depth + 1) for _ in range(number)]

    def _string(self, _: dict[str, Any], draw: random.Random, __: int) -> Any:
        return draw.choice([*WORDS, *self.models, picture(draw), "Is it red?", "yes"])

    def _integer(self, _: dict[str, Any], draw: random.Random, __: int) -> Any:
        return draw.choice([1, 2, 3, *NUMBERS])

    _number = _integer

    def _boolean(self, _: dict[str, Any], draw: random.Random, __: int) -> Any:
        return draw.random() < 0.5


def junk(draw: random.Random, depth: int = 0) -> Any:
    """Any JSON."""
    kind = draw.randrange(8 if depth < 3 else 6)
    if kind < 6:
        return draw.choice([None, True, False, draw.choice(NUMBERS), draw.choice(WORDS), "x"])
    inner = [junk(draw, depth + 1) for _ in range(draw.randrange(5))]
    return inner if kind == 6 else {draw.choice(WORDS)[:9] + str(i): v for i, v in enumerate(inner)}


def picture(draw: random.Random) -> str:
    """A data URI of a picture, sound or broken."""
    file = io.BytesIO()
    size = (draw.choice([1, 2, 30, 300]), draw.choice([1, 2, 30, 300]))
    mode = draw.choice(["RGB", "RGB", "L", "RGBA", "P", "1", "I;16"])
    Image.new(mode, size, 1).save(file, "PNG")
    data = bytearray(file.getvalue())
    for _ in range(draw.choice([0, 0, 0, 1, 5])):
        data[draw.randrange(len(data))] = draw.randrange(256)
    data = data[: draw.choice([len(data)] * 4 + [len(data) // 2])]
    text = base64.b64encode(bytes(data)).decode()
    return draw.choice(["data:image/png;base64,"] * 6 + ["data:,", "http://127.0.0.1/", ""]) + text


# ---------------------------------------------------------------------- by hand


def _bytes(draw: random.Random) -> bytes:
    """A body that is no request."""
    number = draw.choice([10, 1000, 100_000, 1_000_000])
    return draw.choice([
        lambda: b"[" * number, lambda: b'{"a":' * number, lambda: b"\xff" * 50, lambda: b"",
        lambda: b'{"a":[' + b"1," * number + b"1]}", lambda: b'{"n":' + b"9" * number + b"}",
        lambda: b"{" + b",".join(b'"k%d":1' % i for i in range(number // 10)) + b"}",
        lambda: b'{"model":"base","messages":[{"role":"user","content":"\\ud800"}]}',
        lambda: b'{"model":"base","temperature":NaN,"messages":[]}',
        lambda: json.dumps({"model": "base", "messages": [
            {"role": "user", "content": [{"type": "text", "text": "x", "u": 1}] * 64}] * 200}
        ).encode(),
        lambda: draw.randbytes(200),
    ])()  # fmt: skip


def _raw(draw: random.Random) -> tuple[bytes, bool, bool]:
    """Bytes on a connection, whether one side is closed then, and whether the answer is awaited."""
    body = json.dumps({"model": "base", "max_tokens": 2, "stream": draw.random() < 0.5,
                       "messages": [{"role": "user", "content": "x"}]}).encode()  # fmt: skip
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEYS[0]}\r\n"
        "Content-Type: application/json\r\n"
    ).encode()
    sized = head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    text = draw.choice([
        sized, sized, sized * 3, sized[:-5], sized[: draw.randrange(len(sized))], head,
        head + b"Content-Length: -1\r\n\r\n",
        head + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"GET / HTTP/9.9\r\n\r\n",
        head + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        head + b"Expect: 100-continue\r\nContent-Length: 999999999\r\n\r\n", b"\x16\x03\x01\0\0",
        b"GET /health HTTP/1.1\r\n" + b"X: " + b"a" * 40_000 + b"\r\n\r\n", b"\r\n" * 50,
        b"GET /..%2f..%2fetc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", draw.randbytes(100),
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    ])  # fmt: skip
    return text, draw.random() < 0.4, draw.random() < 0.6


def _turns(draw: random.Random) -> bytes:
    """A conversation of any shape."""
    roles = ["system", "developer", "user", "assistant", "tool", "function", ""]
    extra = [{}, {"tool_calls": []}, {"parsed": None}, {"refusal": None}, {"name": "x"},
             {"reasoning_content": "y"}, {"annotations": []}, {"foo": 1}]  # fmt: skip
    messages = []
    for _ in range(draw.choice([0, 1, 2, 3, 6, 40])):
        parts = [draw.choice([{"type": "text", "text": draw.choice(WORDS)},
                              {"type": "image_url", "image_url": {"url": picture(draw)}},
                              {"type": "refusal", "refusal": "no"}, junk(draw)])
                 for _ in range(draw.randrange(4))]  # fmt: skip
        content = draw.choice([draw.choice(WORDS), parts, None])
        messages.append({"role": draw.choice(roles[:4] * 5 + roles), "content": content}
                        | draw.choice(extra))  # fmt: skip
    return json.dumps({"model": "base", "messages": messages, "max_tokens": 2}).encode()


PATHS = ["/", "/v1", "/v1/", "/v1/models/x", "/v1/models/%00", CHAT + "/", "/v1/embeddings", "//",
         "/v1/adapters/base", "/v1/classifiers/x", "/metrics", "/openapi.json", "/é", "/%ff%fe",
         "/v1/responses", "/page.js", "/../x", "/v1/classifiers"]  # fmt: skip
TYPES = ["application/json", "text/plain", "", "multipart/form-data", "application/json; a=b",
         "multipart/form-data; boundary=x", "\x7f"]  # fmt: skip


def hostile(server: Server, schema: FromSchema, number: int, seed: int) -> tuple[str, int]:
    """Sends request number so-and-so; returns what it was and the status of the answer."""
    draw = random.Random(f"{seed}-{number}")
    key = draw.choice([*KEYS * 7, None, "wrong"])
    kind = draw.choices(["schema", "turns", "bytes", "raw", "path"], [50, 20, 10, 12, 8])[0]
    if kind == "raw":
        text, half, wait = _raw(draw)
        return kind, server.send(text, half, wait)
    if kind == "path":
        method = draw.choice(["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS"])
        path, body = draw.choice(PATHS), draw.choice([None, b"{}", b"--x\r\n\r\n--x--"])
        more = {"Content-Type": draw.choice(TYPES)}
        return kind, server.ask(method, re.sub("é", "%C3%A9", path), body, key, **more)[0]
    path = draw.choice(list(schema.targets))
    if kind == "bytes":
        return kind, server.ask("POST", path, _bytes(draw), KEYS[0])[0]
    if kind == "turns":
        return kind, server.ask("POST", CHAT, _turns(draw), key)[0]
    body = json.dumps(schema.value(schema.targets[path], draw)).encode()
    return kind, server.ask("POST", path, body, key)[0]


# ---------------------------------------------------------------------- the run


def probing(server: Server, found: Any) -> None:
    """Asks whether the server is well, ten times a second, in a process of its own."""
    while True:
        time.sleep(0.1)
        began, status = time.perf_counter(), 0
        with suppress(OSError, http.client.HTTPException):
            status, _ = server.ask("GET", "/health")
        found.put((status, 1000 * (time.perf_counter() - began)))


class Run:
    """A run and what it has found so far.

    Args:
        server: Under test.
        file: Where the findings are kept.
        seed: Of the requests.
    """

    def __init__(self, server: Server, file: Path, seed: int) -> None:
        self.server, self.file, self.seed = server, file, seed
        kept = json.loads(file.read_text()) if file.exists() else {}
        if kept and kept["seed"] != seed:
            sys.exit(f"{file} is of seed {kept['seed']}; give another file or that seed.")
        self.done = kept.get("requests", 0)
        self.statuses = Counter(kept.get("statuses", {}))
        self.kinds = Counter(kept.get("kinds", {}))
        self.bad = kept.get("bad", [])
        self.health = kept.get("health_ms", [0.0])
        self.known = kept.get("known_answers", 0)
        self.restarts = kept.get("runs", 0) + 1
        self.growth = kept.get("growth", [])
        self.first_memory = 0.0
        self.began = self.done
        models = [
            m["id"] for m in json.loads(server.ask("GET", "/v1/models", key=KEYS[0])[1])["data"]
        ]
        self.schema = FromSchema(json.loads(server.ask("GET", "/openapi.json")[1]), models)
        self.expected = {key: self.answer(key) for key in KEYS}
        self.probes: Any = multiprocessing.Queue()
        probe = multiprocessing.Process(target=probing, args=(server, self.probes), daemon=True)
        probe.start()

    def answer(self, key: str) -> str:
        """The answer to a question of which each key has its own."""
        text = f"The number of {key} is"
        body = {"model": "base", "messages": [{"role": "user", "content": text}], "max_tokens": 8}
        status, reply = self.server.ask("POST", CHAT, json.dumps(body).encode(), key)
        return json.loads(reply)["choices"][0]["message"]["content"] if status == 200 else ""

    def one(self, number: int) -> None:
        """Sends one request and takes note of what is wrong."""
        began = time.perf_counter()
        try:
            kind, status = hostile(self.server, self.schema, number, self.seed)
        except (OSError, http.client.HTTPException, UnicodeError, ValueError) as error:
            kind, status = type(error).__name__, 0
        seconds = time.perf_counter() - began
        self.kinds[kind] += 1
        self.statuses[str(status)] += 1
        if (status >= 500 and status != 503) or seconds > HANG_SECONDS:
            found = {"number": number, "kind": kind, "status": status, "seconds": round(seconds, 1)}
            self.bad.append(found)
            print(found, flush=True)

    def go(self, until: int, workers: int) -> None:
        """Sends all requests up to a number."""
        with ThreadPoolExecutor(workers) as pool:
            while self.done < until:
                number = min(EVERY, until - self.done)
                list(pool.map(self.one, range(self.done, self.done + number)))
                self.done += number
                for key, expected in self.expected.items():
                    self.known += 1
                    if self.answer(key) != expected:
                        self.bad.append({"number": self.done, "kind": "answer", "key": key})
                self.take_probes()
                self.write(until)

    def take_probes(self) -> None:
        """Takes over what the probing process has found."""
        while not self.probes.empty():
            status, milliseconds = self.probes.get()
            self.health.append(milliseconds)
            if status != 200:
                self.bad.append({"number": self.done, "kind": "health", "status": status})

    def write(self, until: int) -> None:
        """Keeps the findings."""
        memory = self.server.memory()
        if not self.first_memory and self.done - self.began >= (until - self.began) / 10:
            self.first_memory = memory
        if self.first_memory:
            self.growth = [*self.growth[-200:], round(memory / self.first_memory - 1, 3)]
        ordered = sorted(self.health)
        found = {
            "seed": self.seed, "requests": self.done, "runs": self.restarts,
            "statuses": dict(self.statuses), "kinds": dict(self.kinds), "bad": self.bad[-100:],
            "known_answers": self.known, "memory_mb": round(memory), "growth": self.growth,
            "health": {"n": len(ordered), "median": ordered[len(ordered) // 2],
                       "p99": ordered[int(0.99 * (len(ordered) - 1))], "max": ordered[-1]},
            "health_ms": [round(ms, 1) for ms in ordered[:: max(len(ordered) // 5000, 1)]]
            + [round(ordered[-1], 1)],
        }  # fmt: skip
        self.file.write_text(json.dumps(found))
        growth = self.growth[-1] if self.growth else 0
        print(self.done, dict(self.statuses), f"{memory:.0f} MB ({growth:+.1%})",
              f"health max {ordered[-1]:.0f} ms", flush=True)  # fmt: skip


def started(checkpoint: str, folder: Path) -> tuple[subprocess.Popen, Server]:
    """A server with two keys."""
    (folder / "keys").write_text("\n".join(KEYS))
    command = [
        sys.executable, "-m", "crome", "serve", "--checkpoint", checkpoint, "--name", "base",
        "--port", "0", "--dtype", "float32", "--api_keys", str(folder / "keys"),
    ]  # fmt: skip
    log = (folder / "log").open("w+")
    process = subprocess.Popen(command, stderr=log, stdout=log)
    until = time.monotonic() + 300
    while time.monotonic() < until and process.poll() is None:
        if found := re.search(
            r"serving on http://127\.0\.0\.1:(\d+)", (folder / "log").read_text()
        ):
            return process, Server(int(found[1]), process.pid)
        time.sleep(0.2)
    sys.exit(f"the server did not start:\n{(folder / 'log').read_text()[-2000:]}")


def main() -> None:
    """Runs, and says what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--checkpoint", default="crome-tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--nice", type=int, default=0, help="of the requests, not of the server")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        process, server = started(args.checkpoint, Path(folder))
        try:
            run = Run(server, args.json, args.seed)
            os.nice(args.nice)
            run.go(args.requests, args.workers)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
        log = (Path(folder) / "log").read_text()
    traces = log.count("Traceback")
    print(f"{len(run.bad)} bad, {traces} tracebacks in the log of the server")
    if traces:
        args.json.with_suffix(".log").write_text(log[-200_000:])
    if run.bad or traces:
        sys.exit(1)


if __name__ == "__main__":
    main()
