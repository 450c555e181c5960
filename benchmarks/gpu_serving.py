"""Requests to the serving engine, and the same rows through transformers' `generate`."""

import itertools
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import sizes
import torch
from gpu_models import DeviceBench
from measure import Step
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import training
from crome.serving.engine.local import LocalEngine
from crome.serving.engine.protocol import Piece, Prompt, Request

NEW = 64
"""Tokens of each answer."""


@dataclass
class Served:
    """What clients saw that came together.

    Attributes:
        seconds: Until the last answer was whole.
        first: Seconds to the first token, of each client.
        gaps: Seconds between two tokens, of all clients.
    """

    seconds: float
    first: list[float]
    gaps: list[float]

    def numbers(self, tokens: int) -> dict[str, float]:
        """For a table."""
        return {
            "tokens_per_second": round(tokens / self.seconds),
            "ms_to_first_token": round(1000 * statistics.median(self.first), 1),
            "ms_between_tokens": round(1000 * statistics.median(self.gaps), 2),
            "ms_between_tokens_p99": round(1000 * sorted(self.gaps)[int(0.99 * len(self.gaps))], 2),
        }


@cache
def tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Words without a meaning, as many as the language model has."""
    words = {f"w{number}": number for number in range(vocabulary)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), unk_token="w0"
    )


def rows_of(bench: DeviceBench, count: int) -> tuple[sizes.Size, dict[str, torch.Tensor]]:
    """So many questions, without their answers."""
    size = replace(bench.size, rows=count)
    given = sizes.batch(size)
    del given["labels"]
    for name in ("input_ids", "attention_mask"):
        given[name] = given[name][:, : size.prompt]
    return size, given


def prompts(
    bench: DeviceBench, count: int, names: Sequence[str | None], round_: int
) -> list[Prompt]:
    """The questions as the engine takes them, each with its adapter, on pictures of a round."""
    _, given = rows_of(bench, count)
    found = []
    for number, name in enumerate(names):
        shown = int(given["image_index"][number, 0])
        own = {key: value[number : number + 1] for key, value in given.items()}
        found.append(
            Prompt(
                own["input_ids"], own["visual_position"], (f"picture-{round_}-{shown}",),
                given["pixel_values"][shown : shown + 1], torch.zeros(1, 1, dtype=torch.long),
                {key: value for key, value in own.items() if key.startswith("qformer_")}, name,
            )
        )  # fmt: skip
    return found


@contextmanager
def engine_for(model: Any, count: int) -> Iterator[LocalEngine]:
    """An engine that runs as long as the block lasts, for so many answers together."""
    vocabulary = model.get_output_embeddings().weight.shape[0]
    processor = SimpleNamespace(tokenizer=tokenizer(vocabulary), end_ids=())
    engine = LocalEngine(model, processor, max_batch=count)
    engine.start()
    try:
        yield engine
    finally:
        engine.close(60)


def serve(engine: LocalEngine, asked: Sequence[Prompt]) -> Served:
    """Answers prompts that come together."""
    times: list[list[float]] = [[] for _ in asked]
    left = threading.Semaphore(0)
    failed: list[BaseException] = []

    def deliver(number: int, piece: Piece) -> None:
        times[number].append(time.perf_counter())
        if piece.error is not None:
            failed.append(piece.error)
        if piece.finish:
            left.release()

    started = time.perf_counter()
    for number, prompt in enumerate(asked):
        engine.submit(Request(prompt, partial(deliver, number), NEW))
    for _ in asked:
        left.acquire()
    seconds = time.perf_counter() - started
    if failed:
        raise failed[0]
    gaps = [b - a for own in times for a, b in itertools.pairwise(own)]
    return Served(seconds, [own[0] - started for own in times], gaps)


def generate(bench: DeviceBench, count: int, **settings: Any) -> Step:
    """The stock InstructBLIP on the same rows in one batch, greedy, to the same length."""
    kind = training.DTYPES[bench.dtype]
    size, given = rows_of(bench, count)
    labelled = {**given, "labels": torch.full_like(given["input_ids"], -100)}
    theirs = sizes.stock_batch(labelled, size, kind)
    del theirs["labels"]
    theirs = {name: value.to(bench.device) for name, value in theirs.items()}
    bench.attention("sdpa")
    with bench.device:
        other = sizes.stock(bench.model, kind)
    greedy = {"do_sample": False, "max_new_tokens": NEW, "min_new_tokens": NEW, "pad_token_id": 0}
    return lambda: other.generate(**theirs, **greedy, **settings)
