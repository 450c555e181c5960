"""What batching gives, what many adapters cost, and how fast one is loaded: in one process.

    python benchmarks/serving.py --json FILE [--checkpoint crome-tiny] [--only CASE …]

Questions and pictures are those of easy-VQA's test split, each picture once; adapters differ a
little from the base's own, or from trained ones that are named. Times are CPU-seconds of this
process, medians over rounds that alternate between both sides, so that a shared machine matters
little; run with OMP_NUM_THREADS=1. Answers go on for the same number of tokens whatever they say.
Latency over HTTP is measured by `serve_load.py`.
"""

import argparse
import copy
import itertools
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch

from crome.adapter import CrossModalAdapter
from crome.checkpoints.loading import load
from crome.data.packaged import TASKS
from crome.model.adapter_files import load_adapter
from crome.model.answering import answer
from crome.model.decoding import decode_fast
from crome.model.large_pages import use_large_pages
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor
from crome.rows import Row
from crome.serving.adapters import Adapters
from crome.serving.engine import local
from crome.serving.engine.local import LocalEngine
from crome.serving.engine.protocol import Piece, Request
from crome.serving.engine.sampling import Sampling, Token
from crome.serving.prompts import prompt_of
from crome.storage import cache_folder

PLAIN = Sampling()


def questions(number: int) -> list[Row]:
    """A question on each of so many pictures."""
    by_picture = {row.images: row for row in TASKS["easy-vqa"]("test")}
    return list(by_picture.values())[:number]


def perturbed(
    model: CromeForConditionalGeneration, number: int, folders: Sequence[Path] = ()
) -> list[CrossModalAdapter]:
    """Adapters that differ a little from the base's own, or from those in folders, in turn."""
    torch.manual_seed(0)
    sources = [load_adapter(model, folder) for folder in folders] or [model.adapter]
    adapters = []
    for i in range(number):
        adapter = copy.deepcopy(sources[i % len(sources)]).requires_grad_(False).eval()
        for weight in adapter.parameters():
            weight += max(0.3 * float(weight.std()), 0.005) * torch.randn_like(weight)
        adapters.append(adapter)
    return adapters


def engine_run(
    model: CromeForConditionalGeneration,
    processor: CromeProcessor,
    rows: Sequence[Row],
    names: Sequence[str | None],
    tokens: int,
    sampling: Sampling = PLAIN,
) -> tuple[float, list[list[Token]]]:
    """CPU-seconds and answers of requests that arrive together, with cold caches."""
    engine = LocalEngine(model, processor, max_batch=len(rows))
    answers: list[list[Token]] = [[] for _ in rows]
    left = threading.Semaphore(0)

    def deliver(index: int, piece: Piece) -> None:
        answers[index] += piece.tokens
        if piece.finish:
            assert piece.error is None, piece.error
            left.release()

    start = time.process_time()
    for index, (row, name) in enumerate(zip(rows, names, strict=True)):
        prompt = prompt_of(processor, row, name)
        take = partial(deliver, index)
        engine.submit(Request(prompt, take, tokens, sampling))
    engine.start()
    for _ in rows:
        left.acquire()
    seconds = time.process_time() - start
    engine.close()
    return seconds, answers


def alternate(rounds: int, *sides: Callable[[], float]) -> list[float]:
    """Median CPU-seconds of each side; who begins alternates, for the first pays for warm-up."""
    times: list[list[float]] = [[] for _ in sides]
    for number in range(rounds):
        for i in range(len(sides))[:: -1 if number % 2 else 1]:
            times[i].append(sides[i]())
    return [statistics.median(found) for found in times]


def eight_clients(
    model: CromeForConditionalGeneration, processor: CromeProcessor, tokens: int, rounds: int
) -> dict[str, object]:
    """Eight requests together against one at a time through transformers' generate."""
    rows = questions(8)

    def sequential() -> float:
        start = time.process_time()
        for row in rows:
            answer(
                model, processor, [row], max_new_tokens=tokens, min_new_tokens=tokens,
                adapter_names=[None],
            )  # fmt: skip
        return time.process_time() - start

    def together() -> float:
        return engine_run(model, processor, rows, [None] * 8, tokens)[0]

    ours, baseline = alternate(rounds, together, sequential)
    return {
        "case": "8-clients", "what": f"8 requests x {tokens} tokens, 8 pictures, to one by one",
        "ours": 8 * tokens / ours, "baseline": 8 * tokens / baseline, "ratio": baseline / ours,
        "unit": "tokens/CPU-second",
    }  # fmt: skip


def many_adapters(
    model: CromeForConditionalGeneration,
    processor: CromeProcessor,
    tokens: int,
    rounds: int,
    names: Sequence[str],
) -> dict[str, object]:
    """As many requests as adapters, each with its own, against all with the same."""
    number = len(names)
    rows = questions(number)

    def mixed() -> float:
        return engine_run(model, processor, rows, names, tokens)[0]

    def same() -> float:
        return engine_run(model, processor, rows, [names[0]] * number, tokens)[0]

    ours, baseline = alternate(rounds, mixed, same)
    return {
        "case": f"{number}-adapters", "what": f"{number} requests x {tokens} tokens, to 1 adapter",
        "ours": number * tokens / ours, "baseline": number * tokens / baseline,
        "ratio": baseline / ours, "unit": "tokens/CPU-second",
    }  # fmt: skip


def same_answers(
    model: CromeForConditionalGeneration,
    processor: CromeProcessor,
    tokens: int,
    names: Sequence[str],
) -> dict[str, object]:
    """Mixed adapters, greedy: how many answers are those of the request served alone.

    All ask the same about the same picture, so that adapters alone make the difference. An answer
    is its tokens and their log-probabilities: those of two adapters differ where their words do
    not, and by far more than float32's rounding.
    """
    number = len(names)
    rows = [replace(questions(1)[0], question="Describe the picture.")] * number
    report = Sampling(logprobs=0)
    together = engine_run(model, processor, rows, names, tokens, report)[1]
    alone = [engine_run(model, processor, rows[:1], [n], tokens, report)[1][0] for n in names]
    equal = sum(off(a, b) < 1e-3 for a, b in zip(together, alone, strict=True))
    least = min(off(a, b) for a, b in itertools.combinations(alone, 2))
    return {
        "case": "same-answers", "ours": equal, "baseline": number, "ratio": equal / number,
        "what": f"float32, greedy; log-probabilities of two adapters are {least:.2g} apart or more",
        "unit": "answers",
    }  # fmt: skip


def off(answer: Sequence[Token], other: Sequence[Token]) -> float:
    """Largest difference of log-probabilities; infinite if a token differs."""
    if [token.id for token in answer] != [token.id for token in other]:
        return float("inf")
    return max(abs((a.logprob or 0) - (b.logprob or 0)) for a, b in zip(answer, other, strict=True))


def decoding(
    model: CromeForConditionalGeneration,
    processor: CromeProcessor,
    clients: int,
    tokens: int,
    rounds: int,
) -> dict[str, object]:
    """Text alone, greedy: the engine against transformers' `generate` on the same rows together.

    `model` is prepared as `crome serve` prepares it, and both sides run it.
    """
    rows = [replace(row, images=()) for row in questions(clients)]
    inputs = processor.encode(rows)

    def engine() -> float:
        return engine_run(model, processor, rows, [None] * clients, tokens)[0]

    def generate() -> float:
        start = time.process_time()
        language_model = model.language_model
        with torch.inference_mode():
            language_model.generate(
                inputs["input_ids"], attention_mask=inputs["attention_mask"], do_sample=False,
                max_new_tokens=tokens, min_new_tokens=tokens,
                **processor.generation_kwargs,
            )  # fmt: skip
        return time.process_time() - start

    ours, baseline = alternate(rounds, engine, generate)
    return {
        "case": f"decoding-{clients}", "what": f"{clients} texts x {tokens} tokens, to `generate`",
        "ours": clients * tokens / ours, "baseline": clients * tokens / baseline,
        "ratio": baseline / ours, "unit": "tokens/CPU-second",
    }  # fmt: skip


def prepared(rounds: int, tokens: int, checkpoint: str) -> list[dict[str, object]]:
    """Decoding before and after what `crome serve` does to a language model on a CPU.

    The models are loaded beside each other, the prepared one first: what is loaded after it lies in
    pages of the usual size. Their answers alternate.
    """
    after, processor = load(checkpoint, "bfloat16")
    packed = decode_fast(after, free_attention=True)
    moved = use_large_pages()
    usual, _ = load(checkpoint, "bfloat16")
    decode_fast(usual, free_attention=True)
    before, _ = load(checkpoint, "bfloat16")
    notes = {
        "prepared": f"to unprepared; {'packed' if packed else 'packed is slower here'}",
        "pages": f"to pages of the usual size; {moved / 2**20:.0f} MiB in large ones",
    }
    rows: list[dict[str, object]] = []
    for clients in (1, 2, 8):
        asked = [replace(row, images=()) for row in questions(clients)]

        def run(model: CromeForConditionalGeneration, asked: list[Row] = asked) -> float:
            return engine_run(model, processor, asked, [None] * len(asked), tokens)[0]

        ours, *baselines = alternate(rounds, *(partial(run, m) for m in (after, before, usual)))
        for (case, note), baseline in zip(notes.items(), baselines, strict=True):
            rows.append({
                "case": f"{case}-{clients}", "what": f"{clients} texts x {tokens} tokens, {note}",
                "ours": clients * tokens / ours, "baseline": clients * tokens / baseline,
                "ratio": baseline / ours, "unit": "tokens/CPU-second",
            })  # fmt: skip
    return rows


def beside_llama_cpp(
    model: CromeForConditionalGeneration,
    processor: CromeProcessor,
    clients: int,
    tokens: int,
    rounds: int,
) -> dict[str, object]:
    """Text alone, greedy: the engine against llama.cpp on the same weights in bfloat16."""
    from llama import Llama, bf16_gguf

    rows = [replace(row, images=()) for row in questions(clients)]
    prompts = [prompt_of(processor, row).ids[0].tolist() for row in rows]
    other = Llama(bf16_gguf(cache_folder()), clients, torch.get_num_threads())
    words = other.run(prompts, tokens)[1]
    found = engine_run(model, processor, rows, [None] * clients, tokens)[1]
    same = [
        sum(
            1
            for _ in itertools.takewhile(
                lambda pair: pair[0].id == pair[1], zip(a, b, strict=False)
            )
        )
        for a, b in zip(found, words, strict=True)
    ]
    ours, baseline = alternate(
        rounds,
        lambda: engine_run(model, processor, rows, [None] * clients, tokens)[0],
        lambda: other.run(prompts, tokens)[0],
    )
    return {
        "case": f"llama.cpp-{clients}", "what": f"{clients} texts x {tokens} tokens, to llama.cpp; "
        f"{statistics.mean(same):.0f} tokens alike before bfloat16's rounding tells",
        "ours": clients * tokens / ours, "baseline": clients * tokens / baseline,
        "ratio": baseline / ours, "unit": "tokens/CPU-second",
    }  # fmt: skip


def longest_gap(
    model: CromeForConditionalGeneration, processor: CromeProcessor, length: int, gap: float
) -> tuple[float, float, float]:
    """What a running answer waits for at most while a long prompt is read.

    The engine measures itself in CPU time of its thread here, so that it reads as much at once as
    on a machine that does nothing else.

    Returns:
        The longest CPU time between two of the answer's tokens, the median of its other steps, and
        the longest wall time between two tokens; in seconds.
    """
    with patch.object(local, "time", SimpleNamespace(monotonic=time.thread_time)):
        engine = LocalEngine(model, processor, gap=gap)
        words = prompt_of(processor, replace(questions(1)[0], images=()))
        engine.warm_up(prompt_of(processor, questions(1)[0]))
        long = replace(words, ids=words.ids[:, torch.arange(length) % words.ids.shape[1]])
        times: list[tuple[float, float]] = []
        read = threading.Event()
        take = lambda piece: times.append((time.thread_time(), time.perf_counter()))  # noqa: E731
        running = Request(words, take, 2000)  # more would not fit beside the other in some memories
        engine.submit(running)
        engine.start()
        while len(times) < 10:
            time.sleep(0.01)
        begun = len(times)
        engine.submit(Request(long, lambda piece: read.set(), 1))
        read.wait(3600)
        ended = len(times)
        running.cancel()
        engine.close(10)
    cpu, wall = zip(*times, strict=True)
    steps = [b - a for a, b in itertools.pairwise(cpu)]
    waits = [b - a for a, b in itertools.pairwise(wall)]
    meanwhile = slice(begun - 1, ended)
    return max(steps[meanwhile]), statistics.median(steps[: begun - 1]), max(waits[meanwhile])


def gaps(
    model: CromeForConditionalGeneration, processor: CromeProcessor, length: int
) -> dict[str, object]:
    """What a long prompt does to a running answer, in chunks and in one go."""
    ours, step, wall = longest_gap(model, processor, length, 0.1)
    baseline, _, _ = longest_gap(model, processor, length, float("inf"))
    return {
        "case": "gap", "what": f"longest gap in a stream while {length} tokens are read, a step of "
        f"{1000 * step:.0f} ms included; {1000 * wall:.0f} ms of wall time; to chunks of 512",
        "ours": 1000 * ours, "baseline": 1000 * baseline, "ratio": baseline / ours,
        "unit": "CPU-ms",
    }  # fmt: skip


def hot_load(
    model: CromeForConditionalGeneration, processor: CromeProcessor, rounds: int
) -> dict[str, object]:
    """From a folder to an adapter that requests may name."""
    adapters, times = Adapters(LocalEngine(model, processor), "base"), []
    with tempfile.TemporaryDirectory() as folder:
        model.save_adapter(folder)
        for number in range(rounds + 1):
            start = time.process_time()
            adapters.add(f"loaded-{number}", Path(folder))
            times.append(time.process_time() - start)
    return {
        "case": "hot-load", "what": "after the first load; baseline: the target",
        "ours": 1000 * statistics.median(times[1:]), "baseline": 50.0,
        "ratio": 0.05 / statistics.median(times[1:]), "unit": "CPU-ms",
    }  # fmt: skip


def loaded(
    checkpoint: str, dtype: str, number: int, folders: Sequence[Path]
) -> tuple[CromeForConditionalGeneration, CromeProcessor, list[str]]:
    """A model with so many adapters, and their names."""
    model, processor = load(checkpoint, dtype)
    for i, adapter in enumerate(perturbed(model, number, folders)):
        model.task_adapters[f"a{i}"] = adapter
    return model, processor, list(model.task_adapters)


def main() -> None:
    """Measures and writes rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", required=True)
    parser.add_argument("--checkpoint", default="crome-tiny")
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--adapters", type=int, default=64)
    parser.add_argument("--only", nargs="*", help="cases to run; all by default")
    parser.add_argument("--trained", type=Path, nargs="*", default=[], help="adapters to start at")
    args = parser.parse_args()
    rows: list[dict[str, object]] = []

    def report(row: dict[str, object]) -> None:
        print(row, flush=True)
        rows.append(row)
        Path(args.json).write_text(json.dumps(rows, indent=1))

    def wanted(*cases: str) -> bool:
        return not args.only or any(case in args.only for case in cases)

    if wanted("prepared"):
        for row in prepared(args.rounds, 4 * args.tokens, args.checkpoint):
            report(row)
    if wanted("hot-load", "adapters", "clients", "decoding", "llama.cpp", "gap"):
        in_bfloat16(args, wanted, report)
    if wanted("same-answers"):
        model, processor, names = loaded(args.checkpoint, "float32", args.adapters, args.trained)
        report(same_answers(model, processor, args.tokens, names))


def in_bfloat16(
    args: argparse.Namespace,
    wanted: Callable[..., bool],
    report: Callable[[dict[str, object]], None],
) -> None:
    """The cases that one model in bfloat16, prepared as `crome serve` prepares it, answers."""
    model, processor, names = loaded(args.checkpoint, "bfloat16", args.adapters, args.trained)
    decode_fast(model, free_attention=True)
    use_large_pages()
    if wanted("hot-load"):
        report(hot_load(model, processor, 10))
    if wanted("adapters"):
        report(many_adapters(model, processor, args.tokens, args.rounds, names))
    for tokens in (args.tokens, 4 * args.tokens) if wanted("clients") else ():
        report(eight_clients(model, processor, tokens, args.rounds))
    for clients in (1, 8) if wanted("decoding") else ():
        report(decoding(model, processor, clients, 4 * args.tokens, args.rounds))
    if wanted("llama.cpp"):
        if find_spec("llama_cpp") is None:
            print("llama.cpp: skipped, llama-cpp-python is not installed", flush=True)
        else:
            for clients in (1, 8):
                report(beside_llama_cpp(model, processor, clients, 4 * args.tokens, args.rounds))
    if wanted("gap"):
        report(gaps(model, processor, 4000))


if __name__ == "__main__":
    main()
