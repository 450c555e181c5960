"""What an operator's monitoring reads: counts, times and fill levels, in Prometheus' format."""

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from crome.serving.engine import Engine

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
        visual, prefixes = engine.prefill.features, engine.prefill.prefixes
        levels: dict[str, tuple[str, Callable[[], float]]] = {
            "waiting": ("Prompts that were not read yet.", lambda: engine.waiting),
            "running": ("Answers that are being decoded.", lambda: engine.running),
            "decoding_steps": ("Steps since the start.", lambda: engine.steps),
            "adapters": ("Adapters loaded.", lambda: len(engine.model.task_adapters)),
            "feature_cache_bytes": ("Visual features kept.", lambda: visual.bytes),
            "feature_cache_hits": ("Pictures that were known.", lambda: visual.hits),
            "feature_cache_misses": ("Pictures that were not.", lambda: visual.misses),
            "prefix_cache_bytes": ("Image prefixes kept.", lambda: prefixes.bytes),
            "prefix_cache_hits": ("Prefixes that were known.", lambda: prefixes.hits),
            "prefix_cache_misses": ("Prefixes that were not.", lambda: prefixes.misses),
        }
        for name, (text, read) in levels.items():
            Gauge(name, text, **common).set_function(read)

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Counts a response; status 0 for none."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All of them in the text format."""
        return generate_latest(self.registry)
