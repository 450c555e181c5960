"""The memory and time of a run, and the settings with which it would fit a device."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from crome.checkpoints.loading import Holding
from crome.model.configuration import CromeConfig
from crome.training.plan_attached import Shape
from crome.training.probe import Cost, Sizes, depth
from crome.training.settings import Optimization

GIB = 2**30
CONTEXT = 0.8 * GIB  # what a process with torch and its kernels holds on a device by itself
TOKENS = 350  # of a row with its visual block, about; only activation checkpointing asks
BYTES = {"8bit": 1.03, "4bit": 0.57}  # of a quantised weight with its scales


@dataclass(frozen=True)
class Job:
    """A run, as far as its cost depends on it.

    Attributes:
        config: Configuration of the model.
        sizes: Sizes of the model and its stage.
        optimization: Its batch.
        holding: How the language model is kept in memory.
        dtype: Type of the towers.
        processes: How many.
        cost: Cost of a step on `measured` rows, with nothing of the model held in a special way.
        measured: How many rows that were.
    """

    config: CromeConfig | Shape
    sizes: Sizes
    optimization: Optimization
    holding: Holding
    dtype: torch.dtype
    processes: int
    cost: Cost
    measured: int

    def memory(self) -> dict[str, float]:
        """Bytes on each device, by what they are for."""
        rows = self.optimization.batch_size
        activations = self.cost.activations * rows / self.measured
        if self.holding.activation_checkpointing:  # inputs of all layers, the inside of one
            layers = depth(self.config.text_config)
            tokens = TOKENS * self.config.hidden_size * self.dtype.itemsize
            activations = activations / layers + rows * layers * tokens
        return {
            "language model": self.language_bytes(),
            "vision encoder": float(self.sizes.vision * self.dtype.itemsize),
            "bridge": 4.0 * self.sizes.bridge,
            "gradients and Adam": 12.0 * self.sizes.trained,
            "activations": activations,
            "context": CONTEXT,
        }

    def language_bytes(self) -> float:
        """Memory of the frozen language model, or of this device's shard of it."""
        matrices, size = self.sizes.matrices, self.dtype.itemsize
        rest = (self.sizes.language - matrices) * size
        if self.holding.quantization:
            return matrices * BYTES[self.holding.quantization] + rest
        return matrices * size / (self.processes if self.holding.shard else 1) + rest

    def step_seconds(self) -> float:
        """Duration of one step, which all devices compute at the same time."""
        rows = self.optimization.batch_size * self.optimization.gradient_accumulation_steps
        again = 4 / 3 if self.holding.activation_checkpointing else 1.0
        return self.cost.seconds * rows / self.measured * again


def changes(job: Job, room: float) -> Iterator[str]:
    """Settings with which a run would fit, from those that cost least; all at once if need be."""
    tried = [
        *fewer_rows(job),
        replace(job, holding=Holding(activation_checkpointing=True)),
        replace(job, holding=Holding(quantization="8bit")),
        replace(job, holding=Holding(quantization="4bit")),
        *(replace(job, processes=n, holding=Holding(shard=True)) for n in (2, 4, 8, 16)),
        *fewer_rows(replace(
            job, holding=Holding(quantization="4bit", activation_checkpointing=True)
        )),
    ]  # fmt: skip
    if job.dtype is torch.float32:
        tried.insert(0, replace(job, dtype=torch.bfloat16))
    kinds: set[str] = set()
    for other in tried:
        needed = sum(other.memory().values())
        kind = str((other.holding.shard, other.holding.quantization, other.dtype))
        if needed <= room and kind not in kinds:  # the first of each kind is the mildest
            kinds.add(kind)
            yield f"{difference(job, other)}: {needed / GIB:.1f} GiB"
    if not kinds:
        yield "nothing that this command can set; a device with more memory, or a smaller model"


def fewer_rows(job: Job) -> Iterator[Job]:
    """The same step divided into smaller batches."""
    smaller = job.optimization
    while smaller.batch_size % 2 == 0:
        smaller = replace(
            smaller,
            batch_size=smaller.batch_size // 2,
            gradient_accumulation_steps=smaller.gradient_accumulation_steps * 2,
        )
        yield replace(job, optimization=smaller)


def difference(job: Job, other: Job) -> str:
    """The options that make one run of another."""
    options = []
    if other.dtype != job.dtype:
        options.append("--dtype bfloat16")
    if other.optimization != job.optimization:
        options += [
            f"--optimization.{name} {getattr(other.optimization, name)}"
            for name in ("batch_size", "gradient_accumulation_steps")
        ]
    if other.holding.shard:
        options.append(f"--holding.shard in {other.processes} processes")
    if other.holding.quantization:
        options.append(f"--holding.quantization {other.holding.quantization}")
    if other.holding.activation_checkpointing:
        options.append("--holding.activation_checkpointing")
    return " ".join(options)
