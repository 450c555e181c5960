"""What one GPU says: correctness, the fine-tuning step, decoding, adapters, few-shot search.

    python benchmarks/gpu.py --json FILE [--markdown FILE] [--cases NAME …] [--repetitions 5]
    python benchmarks/gpu.py --json FILE --tiny      # the same code on any machine, in a minute

One command for a card of 80 GB, without a network: random weights at the sizes of crome-vicuna-7b.
Each case is written when it is done, and one that stands in the file is not run again, so a run
that is cut goes on where it was. `--fresh` starts over. Rows are those of the other benchmarks, in
seconds of the device (CUDA events), with peak memory, tokens a second and the share of the card's
bf16 rate (MFU) beside.

| case | what |
|---|---|
| `correct-fp32` | losses and gradients of the shared step against each row alone, TF32 off |
| `correct-bf16` | the loss in bf16 against fp32 |
| `step` | from pixels and cached, against the stock step, LoRA r = 16, and the floor |
| `decode-1`, `-8`, `-64` | greedy answers of 64 tokens against transformers' `generate` |
| `adapters-64` | a batch of 64 rows with an adapter each, against one adapter |
| `fewshot` | the ImageNet-sized search of Tip-Adapter's α and β on the device |

It needs torch, transformers, safetensors, huggingface_hub, filelock, pillow, rich and pyyaml; PEFT
for LoRA, else that row is left out and said so. Datasets and pyarrow are not imported.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import measure
import sizes
import torch
from measure import Step, row
from torch.utils.flop_counter import FlopCounterMode

import training
from crome.checkpoints.presets import preset_config
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.stages import apply_stage
from crome.storage import write_json, write_text

SEVEN = sizes.Size(
    vision=(39, 1408), qformer=(12, 768), language=(32, 4096), heads=(32, 32), vocabulary=32_000
)
"""The batch of a step at the sizes of crome-vicuna-7b, whose weights are made by its preset."""
BF16_RATE = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40": 181e12, "L4": 121e12}
"""Dense bf16 operations a second that the makers name, by a part of the card's name."""
NEW = 64


class DeviceBench(training.Bench):
    """A case of `benchmarks/training.py` on a device.

    Args:
        size: Of model and batch.
        dtype: Of the frozen towers: fp32 or bf16.
        device: Where everything is.
        preset: Whose sizes the model has; None for those of `size`.
    """

    def __init__(self, size: Any, dtype: str, device: torch.device, preset: str | None) -> None:
        self.device, self.preset = device, preset
        super().__init__(size, dtype)

    def __post_init__(self) -> None:
        kind = training.DTYPES[self.dtype]
        with self.device:
            self.model = seven(self.preset, kind) if self.preset else sizes.build(self.size, kind)
        self.attention(training.FASTEST[self.dtype])
        self.batch = {name: t.to(self.device) for name, t in sizes.batch(self.size).items()}
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6)
        self.kept = self.features()

    def lora(self) -> Step:
        """The stock model with LoRA in its own language model, r = 16 on q and v."""
        from peft import LoraConfig, get_peft_model

        own = DeviceBench(self.size, self.dtype, self.device, self.preset)
        own.attention("sdpa")
        with self.device:
            other = sizes.stock(own.model, training.DTYPES[self.dtype]).requires_grad_(False)
            settings = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"])
            other.language_model = get_peft_model(other.language_model, settings)
        return self._stock_step(other, [p for p in other.parameters() if p.requires_grad])


def seven(preset: str, dtype: torch.dtype) -> CromeForConditionalGeneration:
    """A preset with random weights, its towers frozen in a type, its adapter not at zero."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)  # else the language model is held twice while it is made
    try:
        config = preset_config(preset, vision_model_id=None, language_model_id=None)
        config.vision_config.initializer_range = 0.02  # transformers' own is a blank picture
        model = CromeForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(torch.float32)
    for name, part in model.parts().items():
        if name not in ("vision_model", "language_model"):
            part.data = part.data.float() if isinstance(part, torch.nn.Parameter) else part.data
            part.float() if isinstance(part, torch.nn.Module) else None
    for parameter in model.adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    apply_stage(model, "finetune")
    return model.train()


# ---------------------------------------------------------------------- measuring


class Meter:
    """Seconds, peak memory and operations of steps on a device."""

    def __init__(self, device: torch.device, repetitions: int) -> None:
        self.device, self.repetitions = device, repetitions
        self.cuda = device.type == "cuda"

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

    def peak(self, step: Step) -> float | None:
        """GB that the device holds at most; None on a CPU."""
        if not self.cuda:
            return None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / 1e9

    def mfu(self, step: Step, seconds: float) -> float | None:
        """The share of the card's bf16 rate that a step's operations come to; None if unknown."""
        if not self.cuda:
            return None
        name = torch.cuda.get_device_name()
        rate = next((rate for part, rate in BF16_RATE.items() if part in name), None)
        with FlopCounterMode(display=False) as counter:
            step()
        return counter.get_total_flops() / seconds / rate if rate else None


@contextmanager
def exact() -> Iterator[None]:
    """float32 products in float32, where results are compared."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = before


# ---------------------------------------------------------------------- cases

Rows = list[dict[str, Any]]


def correct_fp32(case: str, make: Callable[[str], DeviceBench], meter: Meter) -> Rows:
    """The loss and the adapter's gradient with what rows share computed once, and for each row."""
    bench = make("fp32")
    found = []
    with exact():
        for shared in (True, False):
            bench.model.config.share_prefix = shared
            bench.optimizer.zero_grad()
            loss = bench.model(**bench.batch).loss
            loss.backward()
            adapter = bench.model.adapter.parameters()
            found.append((loss.item(), torch.cat([p.grad.flatten() for p in adapter])))
    (ours, gradient), (alone, expected) = found
    apart = float((gradient - expected).norm() / expected.norm())
    return [
        difference(case, "loss-difference", abs(ours - alone) / alone, 1e-5),
        difference(case, "gradient-difference", apart, 1e-4),
    ]


def correct_bf16(case: str, make: Callable[[str], DeviceBench], meter: Meter) -> Rows:
    """The loss with towers in bf16 against the same weights in fp32."""
    bench = make("bf16")
    with torch.no_grad(), exact():
        half = bench.model(**bench.batch).loss.item()
        bench.model.vision_model.float()
        bench.model.language_model.float()
        whole = bench.model(**bench.batch).loss.item()
    return [difference(case, "loss-difference", abs(half - whole) / whole, 0.02)]


def difference(case: str, what: str, value: float, limit: float) -> dict[str, Any]:
    """A relative difference beside the largest that is right."""
    return row(case, what, value, None, "relative", exact=value, limit=limit, right=value <= limit)


def step_case(case: str, make: Callable[[str], DeviceBench], meter: Meter) -> Rows:
    """The fine-tuning step against all contenders."""
    bench = make("bf16")
    with bench.device:
        steps: dict[str, Step] = {
            "ours": bench.ours, "cached": bench.cached, "stock": bench.stock(),
            "floor": bench.floor(),
        }  # fmt: skip
        rows: Rows = []
        if find_spec("peft"):
            steps["lora"] = bench.lora()
        else:
            rows.append(row(case, "vs-lora", 0.0, None, "PEFT is not installed"))
        costs = {name: meter.seconds(step) for name, step in steps.items()}
        peaks = {name: meter.peak(step) for name, step in steps.items()}
        tokens = bench.size.rows * (bench.size.prompt + bench.size.answer + bench.size.queries)
        tokens += bench.size.images * bench.size.patches
        for mine in ("ours", "cached"):
            more = {
                "peak_gb": peaks[mine],
                "mfu": meter.mfu(steps[mine], costs[mine]),
                "tokens_per_second": round(tokens / costs[mine]),
            }
            prefix = "cached-" if mine == "cached" else ""
            for other in costs.keys() - {"ours", "cached"}:
                name = f"{prefix}vs-{other}"
                rows.append(row(case, name, costs[mine], costs[other], "s",
                                peak_gb_baseline=peaks[other], **more))  # fmt: skip
    return rows


def decode_case(case: str, make: Callable[[str], DeviceBench], meter: Meter) -> Rows:
    """Greedy answers of so many questions at once, ours against transformers' own."""
    bench, count = make("bf16"), int(case.rpartition("-")[2])
    model, size = bench.model.eval(), replace(bench.size, rows=count)
    kind = training.DTYPES[bench.dtype]
    given = {k: v.to(bench.device) for k, v in sizes.batch(size).items()}
    theirs = sizes.stock_batch(given, size, kind)
    for prompt in (given, theirs):
        del prompt["labels"]
        for name in ("input_ids", "attention_mask"):
            prompt[name] = prompt[name][:, : prompt[name].shape[1] - size.answer]
    end = {"eos_token_id": [size.vocabulary], "pad_token_id": 0}  # none: all go to the end
    greedy: dict[str, Any] = {"do_sample": False, "max_new_tokens": NEW, **end}
    bench.attention("sdpa")
    with bench.device:
        other = sizes.stock(model, kind)
    steps = {"ours": lambda: model.generate(**given, **greedy),
             "stock": lambda: other.generate(**theirs, **greedy)}  # fmt: skip
    costs = {name: meter.seconds(step) for name, step in steps.items()}
    more = {
        "tokens_per_second": round(count * NEW / costs["ours"]),
        "ms_between_tokens": round(1000 * costs["ours"] / NEW, 2),
        "peak_gb": meter.peak(steps["ours"]),
    }
    return [row(case, "vs-stock-generate", costs["ours"], costs["stock"], "s", **more)]


def adapters_case(case: str, make: Callable[[str], DeviceBench], meter: Meter) -> Rows:
    """A batch whose rows have an adapter each, against the same batch with one."""
    bench, count = make("bf16"), int(case.rpartition("-")[2])
    model, size = bench.model.eval(), replace(bench.size, rows=count)
    given = {k: v.to(bench.device) for k, v in sizes.batch(size).items() if k != "labels"}
    names = [f"task-{number}" for number in range(count)]
    for name in names:
        model.task_adapters[name] = type_of(model)
    end = {"eos_token_id": [size.vocabulary], "pad_token_id": 0}
    greedy: dict[str, Any] = {"do_sample": False, "max_new_tokens": NEW, **end}
    bench.attention("sdpa")
    each = meter.seconds(lambda: model.generate(**given, adapter_names=names, **greedy))
    one = meter.seconds(lambda: model.generate(**given, adapter_names=[names[0]] * count, **greedy))
    return [row(case, "vs-one-adapter", each, one, "s")]


def type_of(model: Any) -> torch.nn.Module:
    """Another adapter of the model's own kind."""
    from copy import deepcopy

    adapter = deepcopy(model.adapter).requires_grad_(False)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return adapter


def fewshot_case(case: str, make: Callable[[str], DeviceBench], meter: Meter) -> Rows:
    """Tip-Adapter's search over α and β at ImageNet's size, against its published loop."""
    import fewshot

    tiny = meter.device.type == "cpu"
    sizes_of = (400, 80, 20, 64) if tiny else (50_000, 16_000, 1_000, 1_024)
    made = fewshot.make(*sizes_of)
    moved = {
        name: value.to(meter.device)
        for name, value in vars(made).items()
        if isinstance(value, torch.Tensor)
    }
    betas = fewshot.BETAS[:3] if tiny else fewshot.BETAS
    alphas = fewshot.ALPHAS[:5] if tiny else fewshot.ALPHAS
    pairs = [(beta, 0.0) for beta in betas]

    def search() -> None:
        problem = type(made)(**moved)  # a new one each time: it keeps what it has computed
        fewshot.search([problem], pairs, alphas, "accuracy")

    ours = meter.seconds(search)

    def published() -> None:
        counts = moved["counts"]
        labels = torch.arange(len(counts), device=meter.device).repeat_interleave(int(counts[0]))
        values = torch.nn.functional.one_hot(labels).float()
        affinity = moved["features"] @ moved["keys"].T
        cache = torch.exp(-5.5 + 5.5 * affinity) @ values
        (moved["zero_shot"] + 1.17 * cache).argmax(1)

    whole = meter.seconds(published) * len(betas) * len(alphas)
    return [row(case, "vs-published-search", ours, whole, "s")]


CASES: dict[str, Callable[[str, Callable[[str], DeviceBench], Meter], Rows]] = {
    "correct-fp32": correct_fp32,
    "correct-bf16": correct_bf16,
    "step": step_case,
    "decode-1": decode_case,
    "decode-8": decode_case,
    "decode-64": decode_case,
    "adapters-64": adapters_case,
    "fewshot": fewshot_case,
}


# ---------------------------------------------------------------------- the run


def main(words: list[str] | None = None) -> None:
    """Runs the cases that the file lacks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--fresh", action="store_true")
    arguments = parser.parse_args(words)
    device = torch.device("cuda" if torch.cuda.is_available() and not arguments.tiny else "cpu")
    if device.type == "cpu" and not arguments.tiny:
        sys.exit("no CUDA device here; --tiny runs the same code on a CPU.")
    training.FASTEST = dict.fromkeys(training.FASTEST, "sdpa")
    size, preset = (sizes.SMALL, None) if arguments.tiny else (SEVEN, "crome-vicuna-7b")
    where = about(device, arguments.tiny)
    results = {} if arguments.fresh else earlier(arguments.json, where)
    for case in arguments.cases:
        if case in results:
            print(f"{case}: in {arguments.json} already", file=sys.stderr)
            continue
        meter = Meter(device, 1 if arguments.tiny else arguments.repetitions)
        started = time.perf_counter()
        results[case] = attempt(case, lambda dtype: DeviceBench(size, dtype, device, preset), meter)
        print(f"{case}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
        write_json(arguments.json, {"machine": where, "cases": results})
        if device.type == "cuda":
            torch.cuda.empty_cache()
    text = markdown(where, results)
    print(text)
    if arguments.markdown:
        write_text(arguments.markdown, text)


def attempt(case: str, make: Callable[[str], DeviceBench], meter: Meter) -> Rows:
    """A case's rows; one that runs out of memory says so, and the next is run."""
    try:
        return CASES[case](case, make, meter)
    except torch.OutOfMemoryError as error:
        return [row(case, "out-of-memory", 0.0, None, str(error).split(". ")[0])]


def about(device: torch.device, tiny: bool) -> dict[str, Any]:
    """What the numbers are of: card, driver, versions, size."""
    found = {k: v for k, v in measure.machine().items() if k != "load"}
    if device.type == "cuda":
        found |= {"card": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return found | {"size": "tiny" if tiny else "crome-vicuna-7b"}


def earlier(path: Path, where: dict[str, Any]) -> dict[str, Rows]:
    """Finished cases of a run that was cut, if it was on such a machine at such a size."""
    try:
        kept = json.loads(path.read_text())
        same = all(kept["machine"].get(k) == where.get(k) for k in ("card", "size", "torch"))
        return dict(kept["cases"]) if same else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def markdown(where: dict[str, Any], results: dict[str, Rows]) -> str:
    """The rows as a table for `docs/results`, with what they were run on."""
    lines = [", ".join(f"{name} {value}" for name, value in where.items()), ""]
    lines += [
        "| case | what | ours | baseline | ratio | unit | more |",
        "|---|---|---|---|---|---|---|",
    ]
    usual = ("case", "what", "ours", "baseline", "ratio", "unit")
    for rows in results.values():
        for one in rows:
            cells = ["" if one[key] is None else str(one[key]) for key in usual]
            more = ", ".join(f"{k} {v}" for k, v in one.items() if k not in usual and v is not None)
            lines.append(f"| {' | '.join(cells)} | {more} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
