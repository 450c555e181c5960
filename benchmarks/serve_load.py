"""Load on a running server over HTTP: latency by number of clients, or an hour of everything.

    python benchmarks/serve_load.py --json FILE [--clients 1 2 4 8 16 32] [--requests 32] [--plot F]
    python benchmarks/serve_load.py --json FILE --soak 3600 [--pace 4]

A server of `crome-tiny` is started for it. Latency is that of bfloat16; every request asks a
question of easy-VQA about a picture that the server has not seen, of one of several adapters, and
its answer goes on for the same number of tokens (`ignore_eos`). A table is printed, ready to paste.

The soak runs in float32, so that every answer must be exactly the one that the same request gets
alone. It mixes questions to all adapters with text-only ones, streams that are broken off,
malformed requests, and an adapter whose weights are exchanged under the same name; it counts wrong
and missing answers, and watches the server's memory. A pace, in requests a second of all clients
together, leaves the rest of a shared machine to others.
"""

import argparse
import base64
import http.client
import io
import json
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crome.checkpoints.loading import load
from crome.plot import line_plot
from serving import perturbed, questions

QUESTIONS = [
    "What is the colour of the large square?", "Is there a circle in the picture?",
    "Describe the picture in one sentence.", "How many triangles are there?",
]  # fmt: skip
MALFORMED = [
    b"", b"{", b"[]", b"null", b'{"model": "base"}', b"[" * 50_000, b"\xff\xfe",
    b'{"model": "nobody", "messages": [{"role": "user", "content": "x"}]}',
    b'{"model": "base", "messages": [{"role": "user", "content": "x"}], "max_tokens": -1}',
    b'{"model": "base", "messages": [{"role": "user", "content": [{"type": "image_url", '
    b'"image_url": {"url": "data:image/png;base64,AAAA"}}, {"type": "text", "text": "x"}]}]}',
]  # fmt: skip
ADMIN = "admin-key-of-this-run"
PERCENTILES = (50, 95, 99)


@dataclass
class Server:
    """A running server."""

    port: int
    pid: int

    def request(
        self, method: str, path: str, body: Any = None, timeout: float = 120
    ) -> tuple[int, Any]:
        """Status and JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {ADMIN}"}
        try:
            connection.request(method, path, data, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"null")
        finally:
            connection.close()

    def stream(self, body: dict[str, Any], events: int | None = None) -> tuple[float, str]:
        """Seconds to the first text, and the text; leaves after so many events if told to."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {ADMIN}"}
        start, first, text = time.perf_counter(), float("nan"), ""
        try:
            connection.request(
                "POST", "/v1/chat/completions", json.dumps(body | {"stream": True}), headers
            )
            response = connection.getresponse()
            if response.status != 200:
                raise ConnectionError(response.status)
            for line in response:
                if not line.startswith(b"data: {"):
                    continue
                delta = json.loads(line[6:])["choices"][0]["delta"].get("content")
                if delta and not text:
                    first = time.perf_counter() - start
                text += delta or ""
                events = None if events is None else events - 1
                if events == 0:
                    break
        finally:
            connection.close()
        return first, text

    def memory(self) -> float:
        """Resident megabytes."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        return float("nan")


def data_url(seed: int) -> str:
    """A small picture of noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def file_url(file: Path) -> str:
    """A picture of a data set."""
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()


def chat(model: str, question: str, picture: str | None, tokens: int) -> dict[str, Any]:
    """The body of a request."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": question}]
    if picture is not None:
        parts.insert(0, {"type": "image_url", "image_url": {"url": picture}})
    return {"model": model, "max_tokens": tokens, "messages": [{"role": "user", "content": parts}]}


@contextmanager
def served(checkpoint: str, dtype: str, adapters: int) -> Iterator[Server]:
    """Starts a server with adapters a0, a1, … and folders `one` and `two` to swap."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        names = [f"a{i}" for i in range(adapters)]
        write_adapters(checkpoint, [*names, "one", "two"], root)
        (root / "admin").write_text(ADMIN)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pairs = [f"{name}={root / name}" for name in names]
        command = [
            sys.executable, "-m", "crome", "serve", "--checkpoint", checkpoint, "--name", "base",
            "--port", str(port), "--dtype", dtype, "--admin_key", str(root / "admin"),
            "--adapter_root", str(root), *(word for pair in pairs for word in ("--adapter", pair)),
        ]  # fmt: skip
        with (root / "log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        server = Server(port, process.pid)
        try:
            wait_until_ready(server, process, root / "log")
            yield server
        finally:
            process.terminate()
            process.wait(60)


def write_adapters(checkpoint: str, names: list[str], root: Path) -> None:
    """Writes a folder for each."""
    model, _ = load(checkpoint)
    for name, adapter in zip(names, perturbed(model, len(names)), strict=True):
        model.task_adapters[name] = adapter
        model.set_adapter(name)
        model.save_adapter(root / name)


def wait_until_ready(server: Server, process: Any, log: Path) -> None:
    """Returns once the server takes requests."""
    for _ in range(6000):
        if process.poll() is not None:
            raise RuntimeError(log.read_text()[-2000:])
        try:
            if server.request("GET", "/ready", timeout=5)[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise RuntimeError("the server did not become ready.")


# ---------------------------------------------------------------------- latency


def latency(
    server: Server, clients: int, requests: list[dict[str, Any]]
) -> tuple[dict[str, list[float]], float]:
    """Sends requests, so many at once.

    Returns:
        Seconds of each to the first text and to the end, and seconds of all together.
    """
    waiting, lock = list(requests), threading.Lock()
    times: dict[str, list[float]] = {"first token": [], "whole answer": []}

    def client() -> None:
        while True:
            with lock:
                if not waiting:
                    return
                body = waiting.pop()
            start = time.perf_counter()
            first, _ = server.stream(body)
            times["first token"].append(first)
            times["whole answer"].append(time.perf_counter() - start)

    start = time.perf_counter()
    run_all([client] * clients)
    wall = time.perf_counter() - start
    if len(times["first token"]) < len(requests):
        raise RuntimeError("some requests failed.")
    return times, wall


def latencies(
    server: Server, clients: list[int], requests: int, tokens: int, adapters: int
) -> list[dict[str, Any]]:
    """Rows for each number of clients, at least two requests a client."""
    numbers = [max(requests, 2 * number) for number in clients]
    names = ["base", *(f"a{i}" for i in range(adapters))]
    fresh = (
        chat(names[i % len(names)], row.question, file_url(row.images[0]), tokens)
        | {"ignore_eos": True}
        for i, row in enumerate(questions(4 + sum(numbers)))
    )
    latency(server, 2, list(islice(fresh, 4)))  # warm-up
    rows: list[dict[str, Any]] = []
    alone = None
    for count, number in zip(clients, numbers, strict=True):
        times, wall = latency(server, count, list(islice(fresh, number)))
        rate = number * tokens / wall
        alone = alone or rate
        rows += [
            row_of(f"clients-{count}", f"{name} p{p}", float(np.percentile(seconds, p)), "s")
            for name, seconds in times.items()
            for p in PERCENTILES
        ]
        rows.append(row_of(f"clients-{count}", "throughput", rate, "tokens/s", alone))
        print(f"{count} clients: {rate:.1f} tokens/s", file=sys.stderr, flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for each number of clients."""
    names = [f"{name} p{p}" for name in ("first token", "whole answer") for p in PERCENTILES]
    lines = [f"| clients | {', s | '.join(names)}, s | tokens/s | to {rows[0]['case'][8:]} |"]
    lines.append("|---" + "|---:" * (len(names) + 2) + "|")
    for case in dict.fromkeys(row["case"] for row in rows):
        found = {row["what"]: row for row in rows if row["case"] == case}
        rate = found["throughput"]
        seconds = " | ".join(f"{found[name]['ours']:.2f}" for name in names)
        lines.append(f"| {case[8:]} | {seconds} | {rate['ours']:.1f} | {rate['ratio']:.2f}× |")
    return "\n".join(lines)


def row_of(
    case: str, what: str, ours: float, unit: str, baseline: float | None = None
) -> dict[str, Any]:
    """A row of results."""
    ratio = None if baseline is None else ours / baseline
    return {"case": case, "what": what, "ours": ours, "baseline": baseline, "ratio": ratio,
            "unit": unit}  # fmt: skip


def run_all(functions: list[Any]) -> None:
    """Runs functions in threads until all end."""
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# ---------------------------------------------------------------------- soak


@dataclass(frozen=True)
class Said:
    """An answer, and how likely each token was: adapters differ in it where their words do not."""

    text: str
    logprobs: tuple[float, ...]

    @classmethod
    def by(cls, told: dict[str, Any]) -> "Said":
        """Reads a response."""
        choice = told["choices"][0]
        tokens = choice["logprobs"]["content"]
        return cls(choice["message"]["content"], tuple(token["logprob"] for token in tokens))

    def same_as(self, other: "Said") -> bool:
        """Whether it is the same but for float32's rounding."""
        if self.text != other.text or len(self.logprobs) != len(other.logprobs):
            return False
        return np.allclose(self.logprobs, other.logprobs, atol=1e-3)


@dataclass
class Soak:
    """What the clients of a soak do and find.

    Attributes:
        server: Under load.
        expected: The answer to each request, found before the load, and its log-probabilities.
        until: When to stop.
        pace: Requests a second of all clients together.
        found: Counts of outcomes.
        examples: Of what went wrong.
    """

    server: Server
    expected: dict[tuple[str, str, int | None], Said]
    until: float
    pace: float = float("inf")
    found: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    turn: float = 0
    turns: threading.Lock = field(default_factory=threading.Lock)

    def client(self, seed: int) -> None:
        """One client's requests, until the time is over."""
        rng = random.Random(seed)
        kinds = [self.ask, self.leave, self.stumble]
        while self.goes_on():
            self.attempt(rng.choices(kinds, (8, 1, 1))[0], rng)

    def swapper(self) -> None:
        """Exchanges the weights behind one name again and again, and asks after each change."""
        rng = random.Random(0)
        while self.goes_on():
            self.attempt(self.swap, rng)

    def goes_on(self) -> bool:
        """Waits for its turn; False once the time is over."""
        with self.turns:
            turn = self.turn = max(self.turn + 1 / self.pace, time.monotonic())
        time.sleep(max(0, min(turn, self.until) - time.monotonic()))
        return time.monotonic() < self.until

    def attempt(self, function: Any, rng: random.Random) -> None:
        """Counts how it ended."""
        try:
            outcome = function(rng)
        except (OSError, http.client.HTTPException, ValueError) as error:
            outcome = "unanswered"
            self.examples.append(f"{function.__name__}: {error!r}")
        self.found[outcome] += 1

    def ask(self, rng: random.Random) -> str:
        """A question whose answer is known."""
        return self.check(rng.choice(list(self.expected)))

    def check(self, key: tuple[str, str, int | None], model: str | None = None) -> str:
        """Asks and compares; a full queue is an answer, too."""
        name, question, seed = key
        picture = None if seed is None else data_url(seed)
        body = chat(model or name, question, picture, 12) | {"logprobs": True}
        status, told = self.server.request("POST", "/v1/chat/completions", body)
        if status == 429:
            time.sleep(0.2)
            return "told to wait"
        if status != 200:
            self.examples.append(f"{status}: {told}")
            return "error"
        said = Said.by(told)
        if not said.same_as(self.expected[key]):
            self.examples.append(f"{key}: {said!r}, expected {self.expected[key]!r}")
            return "wrong"
        return "right"

    def leave(self, rng: random.Random) -> str:
        """A stream that is broken off."""
        name, question, seed = rng.choice(list(self.expected))
        picture = None if seed is None else data_url(seed)
        self.server.stream(chat(name, question, picture, 200), events=rng.randint(1, 4))
        return "left"

    def stumble(self, rng: random.Random) -> str:
        """A malformed request."""
        status, _ = self.server.request("POST", "/v1/chat/completions", rng.choice(MALFORMED))
        return "refused" if 400 <= status < 500 else "error"

    def swap(self, rng: random.Random) -> str:
        """Loads one of two adapters as `swapped`, asks it, and removes it."""
        path = rng.choice(["one", "two"])
        status, told = self.server.request(
            "POST", "/v1/adapters", {"name": "swapped", "path": path}
        )
        if status != 200:
            self.examples.append(f"{status}: {told}")
            return "error"
        outcome = self.check((path, QUESTIONS[0], 0), "swapped")
        self.server.request("DELETE", "/v1/adapters/swapped")
        return f"swapped, {outcome}"


def soak(
    server: Server, seconds: float, clients: int, adapters: int, pace: float
) -> list[dict[str, Any]]:
    """Mixed load for so long."""
    for path in ("one", "two"):
        server.request("POST", "/v1/adapters", {"name": path, "path": path})
    names = ["base", *(f"a{i}" for i in range(adapters)), "one", "two"]
    keys: list[tuple[str, str, int | None]] = [
        (name, QUESTIONS[i % 4], i % 5) for i, name in enumerate(names)
    ]
    keys += [(name, QUESTIONS[0], 0) for name in ("one", "two")]
    keys += [(name, QUESTIONS[3], None) for name in names[:2]]  # text-only
    expected = {}
    for name, question, seed in keys:
        picture = None if seed is None else data_url(seed)
        body = chat(name, question, picture, 12) | {"logprobs": True}
        told = server.request("POST", "/v1/chat/completions", body)[1]
        expected[name, question, seed] = Said.by(told)
    if expected["one", QUESTIONS[0], 0].same_as(expected["two", QUESTIONS[0], 0]):
        raise RuntimeError("the adapters to exchange answer alike; a wrong one would not be seen.")
    run = Soak(server, expected, time.monotonic() + seconds, pace)
    levels: list[float] = []

    def watch() -> None:
        while time.monotonic() < run.until:
            time.sleep(min(5, seconds / 50))
            levels.append(server.memory())

    run_all([*(lambda i=i: run.client(i) for i in range(clients)), run.swapper, watch])
    fifth = max(1, len(levels) // 5)
    # The first fifth fills caches and the allocator's pools.
    early = float(np.median(levels[fifth : 2 * fifth]))
    late = float(np.median(levels[-fifth:]))
    for example in run.examples[:20]:
        print(example, file=sys.stderr)
    about = f"{seconds:.0f} s, {clients} clients, {adapters + 3} models"
    rows = [
        row_of("soak", f"{name} ({about})", count, "requests")
        for name, count in sorted(run.found.items())
    ]
    return [*rows, row_of("soak-memory", "last fifth to the second", late, "MB", early)]


def main() -> None:
    """Measures and writes rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", required=True)
    parser.add_argument("--checkpoint", default="crome-tiny")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--requests", type=int, default=40, help="per number of clients")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--adapters", type=int, default=6)
    parser.add_argument("--plot", help="PNG of the percentiles")
    parser.add_argument("--soak", type=float, help="seconds of mixed load instead")
    parser.add_argument(
        "--pace", type=float, default=float("inf"), help="requests a second of the whole soak"
    )
    args = parser.parse_args()
    if args.soak:
        with served(args.checkpoint, "float32", args.adapters) as server:
            rows = soak(server, args.soak, args.clients[-1] if len(args.clients) == 1 else 8,
                        args.adapters, args.pace)  # fmt: skip
        for row in rows:
            print(f"{row['case']:14s} {row['what']:42s} {row['ours']:.3f} {row['unit']}")
    else:
        with served(args.checkpoint, "bfloat16", args.adapters) as server:
            rows = latencies(server, args.clients, args.requests, args.tokens, args.adapters)
        print(table(rows))
    Path(args.json).write_text(json.dumps(rows, indent=1))
    if args.plot and not args.soak:
        kinds = [f"{name} p{p}" for name in ("first token", "whole answer") for p in (50, 95)]
        lines = {kind: [row["ours"] for row in rows if row["what"] == kind] for kind in kinds}
        line_plot(
            lines, args.clients, Path(args.plot), title="Seconds by number of clients",
            log_y=True, x_label="clients",
        )  # fmt: skip


if __name__ == "__main__":
    main()
