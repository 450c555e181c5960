"""The cases of `gpu.py`: each makes what it needs, measures it, and gives rows."""

import copy
import subprocess
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gpu_serving
import sizes
import torch
from gpu_models import SEVEN, VLMS, DeviceBench, VlmBench
from measure import Step, row

import fewshot
from crome.model import slots

ROOT = Path(__file__).parents[1]
PRESET = "crome-vicuna-7b"
BF16_RATE = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40": 181e12, "L4": 121e12}
"""Dense bf16 operations a second that the makers name, by a part of the card's name."""
Rows = list[dict[str, Any]]
Contender = Callable[[], AbstractContextManager[Step]]
"""Makes a step, which is there as long as the block lasts."""


@dataclass
class Cost:
    """Of a step.

    Attributes:
        seconds: The least that it was seen to take.
        gigabytes: What it holds at most beside weights and what else was there; None on a CPU.
    """

    seconds: float
    gigabytes: float | None


class Workbench:
    """The device, and the model that was made last.

    Args:
        device: Where everything is.
        tiny: Toy sizes, one repetition.
        repetitions: Timed runs of each step.
    """

    def __init__(self, device: torch.device, tiny: bool, repetitions: int) -> None:
        self.device, self.tiny = device, tiny
        self.repetitions = 1 if tiny else repetitions
        self.cuda = device.type == "cuda"
        self._made: dict[str, DeviceBench] = {}

    def rows(self, case: str) -> Rows:
        """A case's rows; one that runs out of memory says so, and the next can be run."""
        name, _, size = case.partition("-")
        work = CASES.get(case) or partial(CASES[name], size)
        try:
            return work(self, case)
        except torch.OutOfMemoryError as error:
            return [row(case, "out-of-memory", 0.0, None, str(error).split(". ")[0])]
        finally:
            if self.cuda:
                torch.cuda.empty_cache()

    def seven(self, dtype: str) -> DeviceBench:
        """crome-vicuna-7b with its batch; the model of another type is given up."""
        if dtype not in self._made:
            self.clear()
            size, preset = (sizes.SMALL, None) if self.tiny else (SEVEN, PRESET)
            self._made[dtype] = DeviceBench(size, dtype, self.device, preset)
        return self._made[dtype]

    def clear(self) -> None:
        """Gives the model up."""
        self._made.clear()
        if self.cuda:
            torch.cuda.empty_cache()

    # ------------------------------------------------------------------ measuring

    def cost(self, step: Step) -> Cost:
        """Seconds and memory of a step, after two for warming up."""
        step()
        held = None
        if self.cuda:
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            step()
            torch.cuda.synchronize()
            held = round((torch.cuda.max_memory_allocated() - before) / 1e9, 2)
        found = Cost(min(self._once(step) for _ in range(self.repetitions)), held)
        print(f"  {found}", file=sys.stderr, flush=True)  # also of a case that is cut
        return found

    def attempt(self, contender: Contender) -> Cost | str:
        """What a step costs, or why it failed: one contender's failure costs no other's time."""
        try:
            with contender() as step:
                return self.cost(step)
        except Exception as error:  # of any kind: it is printed, and the others are measured
            traceback.print_exc()
            return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        finally:
            if self.cuda:
                torch.cuda.empty_cache()

    def seconds(self, step: Step) -> float:
        """The least that a step was seen to take, after one for warming up."""
        step()
        return min(self._once(step) for _ in range(self.repetitions))

    def _once(self, step: Step) -> float:
        if not self.cuda:
            started = time.perf_counter()
            step()
            return time.perf_counter() - started
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        step()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1000

    def utilisation(self, operations: float, seconds: float) -> float | None:
        """The share of the card's bf16 rate that operations come to; None where it is unknown."""
        name = torch.cuda.get_device_name() if self.cuda else ""
        rate = next((rate for part, rate in BF16_RATE.items() if part in name), None)
        return None if rate is None else round(operations / seconds / rate, 3)


@contextmanager
def exact() -> Iterator[None]:
    """float32 products in float32, where results are compared."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = before


# ---------------------------------------------------------------------- correctness


def correct_fp32(work: Workbench, case: str) -> Rows:
    """The loss and the adapter's gradient with what rows share computed once, and for each row."""
    bench = work.seven("fp32")
    found = []
    with exact():
        for shared in (True, False):
            bench.model.config.share_prefix = shared
            bench.optimizer.zero_grad()
            loss = bench.model(**bench.batch).loss
            loss.backward()
            adapter = bench.model.adapter.parameters()
            found.append((loss.item(), torch.cat([p.grad.flatten() for p in adapter])))
    bench.model.config.share_prefix = True
    bench.optimizer.zero_grad()
    (ours, gradient), (alone, expected) = found
    apart = float((gradient - expected).norm() / expected.norm())
    return [
        difference(case, "loss-difference", abs(ours - alone) / alone, 1e-5),
        difference(case, "gradient-difference", apart, 1e-4),
    ]


def correct_bf16(work: Workbench, case: str) -> Rows:
    """The loss with towers in bf16 against the same weights in fp32."""
    bench = work.seven("bf16")
    towers = bench.model.vision_model, bench.model.language_model
    with torch.no_grad(), exact():
        half = bench.model(**bench.batch).loss.item()
        for tower in towers:
            tower.float()
        whole = bench.model(**bench.batch).loss.item()
        for tower in towers:
            tower.bfloat16()
    return [difference(case, "loss-difference", abs(half - whole) / whole, 0.02)]


def difference(case: str, what: str, value: float, limit: float) -> dict[str, Any]:
    """A relative difference beside the largest that is right."""
    return row(case, what, value, None, "relative", exact=value, limit=limit, right=value <= limit)


def marked_tests(work: Workbench, case: str) -> Rows:
    """The tests that are marked `gpu`; at toy size those of one file."""
    if find_spec("pytest") is None or not (ROOT / "tests").is_dir():
        return [row(case, "passed", 0, None, "pytest or tests/ is absent")]
    work.clear()
    marked = [file for file in sorted((ROOT / "tests").rglob("test_*.py"))
              if "mark.gpu" in file.read_text()]  # fmt: skip
    chosen = ["tests/model/test_prefix.py"] if work.tiny else map(str, marked)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        subprocess.run(
            [sys.executable, "-m", "pytest", *chosen, "-m", "gpu", "--device", work.device.type,
             "-v", "-p", "no:cacheprovider", "-W", "ignore", f"--junitxml={report}"],
            cwd=ROOT, stdout=sys.stderr, check=False,
        )  # fmt: skip
        suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    wrong = counts["failures"] + counts["errors"]
    passed = counts["tests"] - wrong - counts["skipped"]
    failed = [f"{one.get('classname')}::{one.get('name')}" for one in suite
              if one.find("failure") is not None or one.find("error") is not None]  # fmt: skip
    return [row(case, "passed", passed, counts["tests"], "tests", skipped=counts["skipped"],
                failed=failed or None)]  # fmt: skip


# ---------------------------------------------------------------------- training


def step_case(work: Workbench, case: str) -> Rows:
    """The fine-tuning step of crome-vicuna-7b against all contenders."""
    bench = work.seven("bf16")
    bench.model.train()
    return step_rows(work, case, bench, {"stock": made(bench, bench.stock)})


def attach_case(size: str, work: Workbench, case: str) -> Rows:
    """The fine-tuning step of an adapter on a vision-language model."""
    work.clear()
    bench = VlmBench(VLMS["tiny" if work.tiny else size], torch.bfloat16, work.device)
    return step_rows(work, case, bench, {})


def made(bench: DeviceBench | VlmBench, make: Callable[[], Step]) -> Contender:
    """A contender whose step a function makes on the device."""

    @contextmanager
    def contender() -> Iterator[Step]:
        with bench.device:
            step = make()
        yield step

    return contender


def step_rows(
    work: Workbench, case: str, bench: DeviceBench | VlmBench, others: dict[str, Contender]
) -> Rows:
    """Our step from pixels and from kept features against the others, the floor and LoRA's."""
    mine = {"": bench.ours, "cached-": bench.cached}
    ours = {prefix: work.attempt(partial(nullcontext, step)) for prefix, step in mine.items()}
    others = {**others, "floor": made(bench, bench.floor)}
    if find_spec("peft"):
        others["lora"] = bench.lora
    costs = {name: work.attempt(contender) for name, contender in others.items()}
    rows: Rows = []
    if "lora" not in costs:
        rows.append(row(case, "vs-lora", 0.0, None, "PEFT is not installed"))
    for prefix, cost in ours.items():
        if isinstance(cost, str):
            rows.append(row(case, f"{prefix}step", 0.0, None, "s", failed=cost))
            continue
        more = {
            "step_gb": cost.gigabytes,
            "mfu": work.utilisation(bench.operations(bool(prefix)), cost.seconds),
            "tokens_per_second": round(bench.tokens / cost.seconds),
        }
        rows += [
            row(case, f"{prefix}vs-{name}", cost.seconds, None, "s", failed=other, **more)
            if isinstance(other, str)
            else row(case, f"{prefix}vs-{name}", cost.seconds, other.seconds, "s",
                     step_gb_baseline=other.gigabytes, **more)
            for name, other in costs.items()
        ]  # fmt: skip
    return rows


# ---------------------------------------------------------------------- serving


def engine_case(count: str, work: Workbench, case: str) -> Rows:
    """Clients that come together, against `generate` on all their rows in one batch."""
    served = served_by_engine(work, int(count))
    theirs = work.seconds(gpu_serving.generate(work.seven("bf16"), int(count)))
    tokens = int(count) * gpu_serving.NEW
    return [row(case, "vs-stock-generate", served.seconds, theirs, "s",
                **served.numbers(tokens))]  # fmt: skip


def compiled_case(count: str, work: Workbench, case: str) -> Rows:
    """One client, against `generate` with a static cache, which transformers compiles on CUDA."""
    served = served_by_engine(work, int(count))
    step = gpu_serving.generate(work.seven("bf16"), int(count), cache_implementation="static")
    tokens = int(count) * gpu_serving.NEW
    return [row(case, "vs-compiled-generate", served.seconds, work.seconds(step), "s",
                **served.numbers(tokens))]  # fmt: skip


def recorded_case(count: str, work: Workbench, case: str) -> Rows:
    """Answers of a batch as `crome evaluate` makes them: steps recorded, run, and by `generate`."""
    bench = work.seven("bf16")
    model = bench.model.eval()
    _, given = gpu_serving.rows_of(bench, int(count))
    batch = {name: value.to(bench.device) for name, value in given.items()}
    greedy = {"do_sample": False, "max_new_tokens": gpu_serving.NEW, "eos_token_id": [-1]}

    def answers() -> torch.Tensor:
        return model.generate(**batch, **greedy, pad_token_id=0)

    recorded, ids = work.seconds(answers), answers()
    used = slots.records(model.language_model)
    slots._FITS[model.language_model] = False
    plain, same = work.seconds(answers), float((ids == answers()).float().mean())
    del slots._FITS[model.language_model]
    theirs = gpu_serving.generate(bench, int(count), cache_implementation="static")
    more = {"recorded": used, "same_tokens": round(same, 4)}
    return [
        row(case, "vs-run-steps", recorded, plain, "s", **more),
        row(case, "vs-compiled-generate", recorded, work.seconds(theirs), "s", **more),
    ]


def adapters_case(count: str, work: Workbench, case: str) -> Rows:
    """Clients with an adapter each, against as many with one."""
    model = work.seven("bf16").model
    names = [f"task-{number}" for number in range(int(count))]
    for name in names:
        adapter = copy.deepcopy(model.adapter).requires_grad_(False)
        for parameter in adapter.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        model.task_adapters[name] = adapter
    each = served_by_engine(work, len(names), names)
    one = served_by_engine(work, len(names), names[:1] * len(names))
    for name in names:
        model.task_adapters.pop(name)
    tokens = len(names) * gpu_serving.NEW
    return [row(case, "vs-one-adapter", each.seconds, one.seconds, "s", **each.numbers(tokens))]


def served_by_engine(
    work: Workbench, count: int, names: list[str] | None = None
) -> gpu_serving.Served:
    """The fastest of some rounds, after two for warming up; each has pictures of its own."""
    bench = work.seven("bf16")
    bench.model.eval()
    prompts = partial(gpu_serving.prompts, bench, count, names or [None] * count)
    with gpu_serving.engine_for(bench.model, count) as engine:
        rounds = [gpu_serving.serve(engine, prompts(n)) for n in range(2 + work.repetitions)]
    return min(rounds[2:], key=lambda one: one.seconds)


# ---------------------------------------------------------------------- few pictures


def search_case(work: Workbench, case: str) -> Rows:
    """Tip-Adapter's search over α and β at ImageNet's size, against its published loop."""
    made = fewshot.make(*((400, 80, 20, 64) if work.tiny else (50_000, 16_000, 1_000, 1_024)))
    moved = {
        name: value.to(work.device)
        for name, value in vars(made).items()
        if isinstance(value, torch.Tensor)
    }
    betas = fewshot.BETAS[:3] if work.tiny else fewshot.BETAS
    alphas = fewshot.ALPHAS[:5] if work.tiny else fewshot.ALPHAS
    pairs = [(beta, 0.0) for beta in betas]

    def search() -> None:
        problem = type(made)(**moved)  # a new one each time: it keeps what it has computed
        fewshot.search([problem], pairs, alphas, "accuracy")

    def published() -> None:
        counts = moved["counts"]
        labels = torch.arange(len(counts), device=work.device).repeat_interleave(int(counts[0]))
        values = torch.nn.functional.one_hot(labels).float()
        affinity = moved["features"] @ moved["keys"].T
        cache = torch.exp(-5.5 + 5.5 * affinity) @ values
        (moved["zero_shot"] + 1.17 * cache).argmax(1)

    whole = work.seconds(published) * len(betas) * len(alphas)
    return [row(case, "vs-published-search", work.seconds(search), whole, "s")]


def fit_case(work: Workbench, case: str) -> Rows:
    """A fit of XMAdapter from features, on the device and on the CPU."""
    from crome.fewshot.methods.xmadapter import XMAdapterClassifier

    classes, shots, width = (8, 2, 16) if work.tiny else (1_000, 16, 512)
    features = fewshot.make(1, classes * shots, classes, width).keys.numpy()
    text = torch.randn(classes, width, generator=torch.Generator().manual_seed(1)).numpy()
    labels = torch.arange(classes).repeat_interleave(shots).numpy()

    def fit(device: str) -> Callable[[], Any]:
        return lambda: XMAdapterClassifier(text, device=device).fit(features, labels)

    started = time.perf_counter()
    fit("cpu")()
    whole = time.perf_counter() - started
    return [row(case, "vs-cpu-fit", work.seconds(fit(work.device.type)), whole, "s")]


CASES: dict[str, Callable[..., Rows]] = {
    "correct-fp32": correct_fp32,
    "correct-bf16": correct_bf16,
    "step": step_case,
    "engine": engine_case,
    "adapters": adapters_case,
    "compiled": compiled_case,
    "recorded": recorded_case,
    "attach": attach_case,
    "fewshot-search": search_case,
    "fewshot-fit": fit_case,
    "tests": marked_tests,
}
