"""The fine-tuning step against transformers' own, against LoRA, and against its floor.

    python benchmarks/training.py --json FILE [--cases NAME …] [--repetitions 5] [--ingredients]
                                  [--memory] [--series DIR] [--compile] [--size small]

Cases are named `midsize-4q-bf16`: 4 questions per image, towers in bfloat16. `queries` in place of
`midsize` leaves the patch tokens out, which makes the stock model InstructBLIP to the letter;
`tiny` has the shape of the embedded default and of its rows; `text1024-4q-bf16` are 4 rows with so
many tokens of text, half of them the answer.

- `vs-stock`: `InstructBlipForConditionalGeneration` trained as published (its projections), shown
  the same tokens (`benchmarks/sizes.py`).
- `vs-lora`: the same model with PEFT's LoRA, r = 16 on q and v of the language model, instead.
- `vs-floor`: what cannot be avoided, `baseline / ours` below 1: the frozen language model's forward
  and input-backward on each token once, and its head and loss where an answer is predicted.
- `cached-…`: the same with features of encoder and Q-Former given, as a cache gives them.
- `attach-4q-fp32`: an adapter attached to a LLaVA instead (`benchmarks/attached.py`).
- `without-…`: the step with one ingredient taken away; its ratio is that ingredient's factor.

All contenders share towers and run in turn in one process; least CPU-seconds count.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import Cost, Step, alternate, cost_row, machine, peak_memory, row, write
from sizes import MIDSIZE, SMALL, TINY, Size, batch, build, stock, stock_batch
from torch import Tensor

from crome.model import kernels, losses, prefix, scoring
from crome.model.kernels import NAME
from crome.model.modeling import CromeForConditionalGeneration

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CASES = [f"midsize-{q}q-{dtype}" for q in (4, 1) for dtype in DTYPES] + [
    "queries-4q-bf16",
    "tiny-4q-bf16",
]


@dataclass
class Bench:
    """One case: the model, its batch, and every contender as a step."""

    size: Size
    dtype: str
    compiled: bool = False

    def __post_init__(self) -> None:
        self.model = build(self.size, DTYPES[self.dtype])
        if self.compiled:
            torch._dynamo.config.recompile_limit = 64
            for layer in self.model.language_model.get_decoder().layers:
                layer.compile(dynamic=True)
        self.batch = batch(self.size)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6)
        self.kept = self.features()

    def attention(self, kind: str) -> None:
        """Chooses the language model's attention."""
        self.model.language_model.set_attn_implementation(kind)

    @torch.no_grad()
    def features(self) -> list[Tensor | None]:
        """As the cache hands them over."""
        seen = self.model.visual_features(self.batch["pixel_values"])
        index = self.batch["image_index"]
        instructions = (self.batch["qformer_input_ids"], self.batch["qformer_attention_mask"])
        return [None, seen.patches, self.model.qformer_outputs(seen, index, *instructions)]

    # ------------------------------------------------------------------ contenders

    def ours(self) -> None:
        """The step from pixels."""
        self._step(self.model(**self.batch).loss)

    def cached(self) -> None:
        """The step from kept features."""
        given = {k: v for k, v in self.batch.items() if k != "pixel_values"}
        self._step(self.model(**given, features=self.kept).loss)

    def _step(self, loss: Tensor) -> None:
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def stock(self) -> Step:
        """Transformers' step; made once, so that frozen parts are shared."""
        other = stock(self.model, DTYPES[self.dtype])
        return self._stock_step(other, [p for p in other.parameters() if p.requires_grad])

    def lora(self) -> Step:
        """The same with LoRA adapters in the language model instead of trained projections."""
        from peft import LoraConfig, get_peft_model

        own = Bench(self.size, self.dtype)  # PEFT changes the language model it is given
        own.attention("sdpa")
        other = stock(own.model, DTYPES[self.dtype]).requires_grad_(False)
        settings = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"])
        other.language_model = get_peft_model(other.language_model, settings)
        return self._stock_step(other, [p for p in other.parameters() if p.requires_grad])

    def _stock_step(self, other: Any, trained: list[Tensor]) -> Step:
        given = stock_batch(self.batch, self.size, DTYPES[self.dtype])
        optimizer = torch.optim.AdamW(trained, lr=1e-6)

        layers = self.model.language_model.get_decoder().layers

        def step() -> None:
            self.attention("sdpa")  # transformers' default
            compiled = [layer._compiled_call_impl for layer in layers]
            for layer in layers:
                layer._compiled_call_impl = None
            other(**given).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            for layer, call in zip(layers, compiled, strict=True):
                layer._compiled_call_impl = call
            self.attention(NAME)

        return step

    def floor(self) -> Step:
        """The language model alone on as many tokens as there are different ones."""
        size, llm = self.size, self.model.language_model
        # The last token of an answer predicts nothing, and the opening of all prompts is one.
        behind = size.queries * ("query" in size.branches) + size.prompt - size.head
        behind += size.answer - 1
        shared = size.patches if "patch" in size.branches else 0
        each = shared + behind * size.rows // size.images if shared else behind + size.head
        sequences = size.images if shared else size.rows
        dtype = DTYPES[self.dtype]
        embeds = torch.randn(sequences, each, size.language[1], dtype=dtype, requires_grad=True)
        rows = torch.arange(size.rows * size.answer) % (sequences * each)
        targets = torch.randint(5, size.vocabulary - 1, (len(rows),))

        def step() -> None:
            inputs = {"inputs_embeds": embeds, "use_cache": False}
            losses.answer_losses(llm, rows, targets, **inputs)[1].mean().backward()
            embeds.grad = None

        return step

    # ------------------------------------------------------------------ ingredients

    def ingredients(self) -> dict[str, Step]:
        """The step with one ingredient taken away each."""
        steps = {
            "without-shared-prefix": self._changed(share_prefix(self.model, False)),
            "without-one-vision-pass": self._without_one_pass,
            "without-cache": self.ours,
            "without-answer-only-logits": self._changed(all_logits),
            "without-frozen-weights": self._changed(weight_gradients(self.model)),
            "without-chosen-attention": self._changed(self._other_attention),
        }
        if "patch" not in self.size.branches:
            del steps["without-shared-prefix"]
        return steps

    def _changed(self, change: Callable[[], Any]) -> Step:
        def step() -> None:
            with change():
                self.cached()

        return step

    @contextmanager
    def _other_attention(self) -> Iterator[None]:
        chosen = kernels.best_kernel
        kernels.best_kernel = lambda *_: kernels.fused
        yield
        kernels.best_kernel = chosen

    def _without_one_pass(self) -> None:
        """An image for every row; the language model's prefix is then not shared either."""
        index = self.batch["image_index"]
        given = self.batch | {
            "pixel_values": self.batch["pixel_values"][index[:, 0]],
            "image_index": torch.arange(len(index))[:, None],
        }
        self._step(self.model(**given).loss)


def share_prefix(model: CromeForConditionalGeneration, value: bool) -> Callable[[], Any]:
    """Switches the shared prefix for a while."""

    @contextmanager
    def change() -> Iterator[None]:
        before, model.config.share_prefix = model.config.share_prefix, value
        yield
        model.config.share_prefix = before

    return change


def weight_gradients(model: CromeForConditionalGeneration) -> Callable[[], Any]:
    """Lets the language model's weights have gradients for a while."""

    @contextmanager
    def change() -> Iterator[None]:
        model.language_model.requires_grad_(True)
        yield
        model.language_model.requires_grad_(False)
        for parameter in model.language_model.parameters():
            parameter.grad = None

    return change


@contextmanager
def all_logits() -> Iterator[None]:
    """Logits at every position, then those that count, for a while."""

    def everywhere(
        language_model: Any, rows: Tensor, targets: Tensor, **inputs: Any
    ) -> tuple[Tensor, Tensor]:
        logits = language_model(**inputs).logits
        logits = logits.float().flatten(0, 1)
        labels = targets.new_full((len(logits),), -100)
        labels[rows] = targets
        every = F.cross_entropy(logits, labels, ignore_index=-100, reduction="none")
        return logits[rows], every[rows]

    before = scoring.answer_losses
    scoring.answer_losses = prefix.answer_losses = everywhere
    yield
    scoring.answer_losses = prefix.answer_losses = before


# ---------------------------------------------------------------------- runs


def size_of(case: str, base: Size) -> tuple[Size, str]:
    """`midsize-4q-bf16` → the size and its type."""
    kind, questions, dtype = case.split("-")
    if kind == "tiny" and base is MIDSIZE:
        base = TINY
    size = replace(base, questions=int(questions.removesuffix("q")))
    if kind.startswith("text"):
        half = int(kind.removeprefix("text")) // 2
        size = replace(size, prompt=half, answer=half, rows=4)
    return (replace(size, branches=("query",)) if kind == "queries" else size), dtype


def run_case(case: str, arguments: argparse.Namespace) -> list[dict]:
    """All rows of a case."""
    size, dtype = size_of(case, arguments.base)
    if case.startswith("attach-"):
        return run_attached(case, size, dtype, arguments)
    bench = Bench(size, dtype, arguments.compile)
    steps = {"ours": bench.ours, "cached": bench.cached, "stock": bench.stock()}
    steps |= {"lora": bench.lora(), "floor": bench.floor()}
    if arguments.ingredients:
        steps |= bench.ingredients()
    costs = alternate(steps, arguments.repetitions)
    rows = results(case, costs)
    if arguments.memory:
        peaks = {n: peak_memory(one_step, size, dtype, n) for n in ("ours", "cached", "stock")}
        rows += [
            row(case, f"{name}-peak-memory", peaks[name], peaks["stock"], "GB")
            for name in ("ours", "cached")
        ]
    return rows


def run_attached(case: str, size: Size, dtype: str, arguments: argparse.Namespace) -> list[dict]:
    """All rows of a case of an adapter that is attached to a vision-language model."""
    from attached import AttachedBench

    bench = AttachedBench(size, DTYPES[dtype], NAME)
    steps = {"ours": bench.ours, "cached": bench.cached}
    costs = alternate(steps | {"lora": bench.lora(), "floor": bench.floor()}, arguments.repetitions)
    rows = [
        cost_row(case, f"{prefix}vs-{other}", costs[mine], costs[other])
        for prefix, mine in (("", "ours"), ("cached-", "cached"))
        for other in ("lora", "floor")
    ]
    if arguments.memory:
        peaks = {
            name: peak_memory(one_attached_step, size, dtype, name)
            for name in ("ours", "cached", "lora")
        }
        rows += [
            row(case, f"{name}-peak-memory", peaks[name], peaks["lora"], "GB")
            for name in ("ours", "cached")
        ]
    return rows


def one_attached_step(size: Size, dtype: str, name: str) -> None:
    """Two steps of one contender, for its memory."""
    from attached import AttachedBench

    bench = AttachedBench(size, DTYPES[dtype], NAME)
    step: Step = bench.lora() if name == "lora" else getattr(bench, name)
    step()
    step()


def results(case: str, costs: dict[str, Cost]) -> list[dict]:
    """Ratios of a case."""
    rows = [
        cost_row(case, f"{prefix}vs-{other}", costs[mine], costs[other])
        for prefix, mine in (("", "ours"), ("cached-", "cached"))
        for other in ("stock", "lora", "floor")
    ]
    return rows + [
        cost_row(case, name, costs["cached"], cost)
        for name, cost in costs.items()
        if name.startswith("without-")
    ]


def one_step(size: Size, dtype: str, name: str) -> None:
    """Two steps of one contender: for its memory, without what the others need."""
    bench = Bench(size, dtype)
    step: Step = bench.stock() if name == "stock" else getattr(bench, name)
    step()
    step()


def series(folder: Path, arguments: argparse.Namespace) -> list[dict]:
    """How the step grows with questions per image, with text, and with the language model."""
    from crome.plot import line_plot

    base, dtype = arguments.base, arguments.series_dtype
    shapes = {
        "questions per image": [(q, replace(base, questions=q, rows=8)) for q in (1, 2, 4, 8)],
        "text tokens": [
            (n, replace(base, answer=n // 2, prompt=n // 2, rows=4)) for n in (64, 256, 1024)
        ],
        "width of the language model": [
            (base.language[1] * k, replace(base, rows=4).wider(k)) for k in (1, 2, 4)
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, points in shapes.items():
        curves: dict[str, list[float]] = {"stock": [], "ours": [], "cached": [], "floor": []}
        for value, size in points:
            bench = Bench(size, dtype)
            steps = {"stock": bench.stock(), "ours": bench.ours, "cached": bench.cached}
            costs = alternate(steps | {"floor": bench.floor()}, arguments.repetitions)
            for curve, values in curves.items():
                values.append(costs[curve].cpu / size.rows)
            case = f"{name.split()[0]}-{value}-{dtype}"
            rows.append(cost_row(case, "vs-stock", costs["ours"], costs["stock"]))
            rows.append(cost_row(case, "cached-vs-floor", costs["cached"], costs["floor"]))
        line_plot(
            curves, [value for value, _ in points], folder / f"training-{name.split()[0]}.png",
            title=f"CPU-seconds a row, {dtype}", log_y=True, x_label=name,
        )  # fmt: skip
    return rows


def main() -> None:
    """Measure and write rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", required=True)
    parser.add_argument("--cases", nargs="*", default=CASES, help=f"of {', '.join(CASES)}, …")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--ingredients", action="store_true", help="each ingredient's own factor")
    parser.add_argument("--memory", action="store_true", help="peaks, in processes of their own")
    parser.add_argument("--compile", action="store_true", help="compile ours and the floor")
    parser.add_argument("--series", type=Path, help="folder for the plots of the scaling series")
    parser.add_argument("--series_dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--size", choices=["midsize", "small"], default="midsize")
    arguments = parser.parse_args()
    arguments.base = {"midsize": MIDSIZE, "small": SMALL}[arguments.size]
    rows = [found for case in arguments.cases for found in run_case(case, arguments)]
    if arguments.series:
        rows += series(arguments.series, arguments)
    about = machine() | {"size": arguments.size, "compiled": arguments.compile}
    write(arguments.json, [found | {"machine": about} for found in rows])


if __name__ == "__main__":
    main()
