"""What an operator's monitoring reads: counts, times and fill levels, in Prometheus' format."""

import resource
from contextlib import suppress
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from crome.serving.engine.protocol import Engine

SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


class Metrics:
    """Counters of one server, and the engine's state when it is asked for.

    Args:
        engine: The engine.
    """

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        common: dict[str, Any] = {"registry": self.registry, "namespace": "crome"}
        self.requests = Counter(
            "requests", "Requests by route and status.", ("route", "status"), **common
        )
        self.seconds = Histogram(
            "request_seconds", "From arrival to the end of the response.", ("route",),
            buckets=SECONDS, **common,
        )  # fmt: skip
        self.first_token = Histogram(
            "first_token_seconds", "From the prompt's queueing to its first token.",
            buckets=SECONDS, **common,
        )  # fmt: skip
        self.prompt_tokens = Counter("prompt_tokens", "Tokens of prompts, pictures' too.", **common)
        self.new_tokens = Counter("generated_tokens", "Tokens of answers.", **common)
        self.next_token = Histogram(
            "inter_token_seconds", "From one piece of an answer to the next.",
            buckets=(0.01, 0.02, 0.05, *SECONDS[1:]), **common,
        )  # fmt: skip
        levels = {
            "waiting": ("Prompts that were not begun yet.", lambda: engine.waiting),
            "running": ("Prompts and answers that are worked on.", lambda: engine.running),
            "resident_memory_bytes": ("Memory of the process.", resident_memory),
            **engine.gauges(),
        }
        for name, (text, read) in levels.items():
            Gauge(name, text, **common).set_function(read)

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Counts a response; status 0 for none."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self, everything: bool = True) -> bytes:
        """All of them in the text format.

        Args:
            everything: Whether levels of the caches are among them, from which a tenant could
                tell what others have asked.
        """
        found = generate_latest(self.registry)
        if everything:
            return found
        lines = found.splitlines(keepends=True)
        return b"".join(line for line in lines if b"_cache_" not in line)


def resident_memory() -> float:
    """Bytes of memory that the process has; 0 where the system does not say."""
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return float(pages * resource.getpagesize())
    return 0.0
