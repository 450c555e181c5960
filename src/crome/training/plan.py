"""`crome plan`: memory, time and disk of a run before it starts, and what makes it fit."""

import json as json_format
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import AutoConfig

from crome.checkpoints.loading import PLAINLY, QFORMER, Holding, tower_kwargs
from crome.checkpoints.presets import preset_config
from crome.data.mixture.prepare import open_stream
from crome.errors import InputError, positive
from crome.model.configuration import CromeConfig
from crome.model.families import context_length
from crome.model.hub import locate, named, reach_hub, tower_path
from crome.model.language import gguf_split
from crome.model.lengths import REMEDY, Room, too_long
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.pretrained import read_config
from crome.model.processing import CromeProcessor
from crome.model.stages import Stage, count, parts, stage_count
from crome.rows import Row
from crome.training.plan_attached import TOO_LONG, Shape, attached_plan, vlm_of
from crome.training.probe import Cost, Rows, Sizes, depth, step_cost
from crome.training.settings import Optimization
from crome.training.train import train

GIB = 2**30
CONTEXT = 0.8 * GIB  # what a process with torch and its kernels holds on a device by itself
ROOM = 0.9  # of a device's memory may be planned: allocators leave gaps
CHARACTERS = 4  # of a token, about, in English and a vocabulary of 32,000 or more
TEMPLATE = 12  # tokens that a prompt's template adds, about
TOKENS = 350  # of a row with its visual block, about; only activation checkpointing asks
LOOKED_AT = 2000  # rows, for their lengths and pictures
MEMINFO = Path("/proc/meminfo")
BYTES = {"8bit": 1.03, "4bit": 0.57}  # of a quantised weight with its scales


@dataclass(frozen=True)
class Job:
    """A run, as far as its cost depends on it.

    Attributes:
        config: Of the model.
        sizes: Of the model and its stage.
        optimization: Its batch.
        holding: How the language model is held.
        dtype: Of the towers.
        processes: How many.
        cost: Of a step on `measured` rows, plainly held.
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
        """Of the frozen language model, or of this device's share of it."""
        matrices, size = self.sizes.matrices, self.dtype.itemsize
        rest = (self.sizes.language - matrices) * size
        if self.holding.quantization:
            return matrices * BYTES[self.holding.quantization] + rest
        return matrices * size / (self.processes if self.holding.shard else 1) + rest

    def step_seconds(self) -> float:
        """Of one step on every device at once."""
        rows = self.optimization.batch_size * self.optimization.gradient_accumulation_steps
        again = 4 / 3 if self.holding.activation_checkpointing else 1.0
        return self.cost.seconds * rows / self.measured * again


def plan(
    memory: float | None = None,
    processes: int = 1,
    preset: str | None = None,
    json: bool = False,
    start: bool = False,
    **training: Any,
) -> None:
    """Tell what a run of `crome train` will need: memory, time, disk; and start it if it fits.

    Takes the options of `crome train` and its config files. Nothing is loaded but the data: a step
    is measured on this machine with towers of one and two layers at full width, and reckoned up.

    Args:
        memory: GiB of the device to plan for; by default this machine's GPU, or its memory.
        processes: How many processes will run, a device each.
        preset: Sizes to plan for while the checkpoint does not exist yet, such as crome-vicuna-7b.
        json: Print JSON instead of tables.
        start: Start the run if it fits.
        training: Options of `crome train`.
    """
    positive(memory=memory, processes=processes)
    if start and processes > 1:
        raise InputError("--start starts one process; use torchrun or accelerate for several.")
    capacity = device_memory() if memory is None else memory * GIB
    job, data, lengthy = job_of(preset, processes, training)
    needed, told = job.memory(), figures(job, data)
    fits = sum(needed.values()) <= ROOM * capacity
    advice = [] if fits else list(changes(job, ROOM * capacity))
    if lengthy and training.get("on_bad_row") != "skip":
        fits, advice = False, [*advice, f"other rows. {REMEDY}"]
    if json:
        print(json_format.dumps(
            {"memory": needed, "total": sum(needed.values()), "capacity": capacity, "fits": fits,
             "advice": advice, "too_long": lengthy, **told}
        ))  # fmt: skip
    else:
        report(needed, capacity, told, lengthy, fits, advice)
    if start and fits:
        train(**training)


def job_of(
    preset: str | None, processes: int, training: dict[str, Any]
) -> tuple[Job, dict[str, float], list[str]]:
    """A run as its options describe it, with a step measured.

    Returns:
        The run, what its data are like, and what is to be said of rows that are too long.
    """
    optimization: Optimization = training.get("optimization") or Optimization()
    stream = stream_of(training)
    data, looked = data_figures(stream)
    known = stream.rows if isinstance(stream.rows, Sequence) else looked  # not those of shards
    grouped = max(1, min(int(training.get("questions_per_image", 4)), optimization.batch_size))
    rows = Rows(grouped, 1, int(data["question_tokens"]), int(data["answer_tokens"]))
    dtype = torch.float32 if training.get("dtype") == "float32" else torch.bfloat16
    stage: Stage = training.get("stage", "finetune")
    attention = tower_kwargs(str(dtype).removeprefix("torch."), training.get("attention", "auto"))
    implementation = attention["language_kwargs"].get("attn_implementation")
    holding = training.get("holding") or PLAINLY
    config: CromeConfig | Shape
    if name := attached_name(preset, training):
        config, sizes, cost, lengthy = attached_plan(
            name, rows, known, dtype, implementation, training.get("settings")
        )
    else:
        config = config_of(preset, training)
        sizes, cost = sizes_of(config, stage), step_cost(config, stage, rows, dtype, implementation)
        lengthy = lengthy_rows(config, cost, known, preset, training)
    job = Job(config, sizes, optimization, holding, dtype, processes, cost, grouped)
    return job, data, lengthy


def lengthy_rows(
    config: CromeConfig,
    cost: Cost,
    rows: Sequence[Row],
    preset: str | None,
    training: dict[str, Any],
) -> list[str]:
    """What is to be said of rows that are longer than a model reads.

    They are counted with the tokenizer of the checkpoint; of a model that is still to be made there
    is none, and `crome train` counts them.
    """
    if preset is not None or training.get("fresh") or training.get("vision_model"):
        return []
    processor = CromeProcessor.from_pretrained(
        training.get("checkpoint", "crome-tiny"), **(training.get("settings") or {})
    )
    room = Room(context_length(config.text_config), cost.picture_tokens)
    return list(islice(too_long(room, processor, rows), TOO_LONG))


def attached_name(preset: str | None, training: dict[str, Any]) -> str | None:
    """The vision-language model of transformers that a run would attach the adapter to, if any."""
    if preset is not None or training.get("fresh") or training.get("vision_model"):
        return None
    return vlm_of(training.get("checkpoint", "crome-tiny"))


def config_of(preset: str | None, training: dict[str, Any]) -> CromeConfig:
    """The configuration of the model a run would train."""
    if preset is not None:
        return preset_config(preset)
    if training.get("fresh"):
        return preset_config("crome-tiny")
    names = training.get("vision_model"), training.get("language_model")
    if names[0] and names[1]:
        reach_hub()
        with named("vision encoder", names[0]):
            vision = AutoConfig.from_pretrained(tower_path(names[0]))
        with named("language model", names[1]):
            folder, gguf = gguf_split(tower_path(names[1]))
            text = AutoConfig.from_pretrained(folder, **gguf)
        return CromeConfig(
            vision_config=getattr(vision, "vision_config", vision).to_dict(),
            text_config=text.to_dict(),
            **{"qformer_config": QFORMER, "normalize_features": True,
               **(training.get("settings") or {})},
        )  # fmt: skip
    checkpoint = training.get("checkpoint", "crome-tiny")
    try:
        return read_config(locate(checkpoint), {})
    except InputError as error:
        raise InputError(
            f"{str(error).removesuffix('.')}. While it is still to be made, plan with --preset."
        ) from error


def stream_of(training: dict[str, Any]) -> Any:
    """The rows of a run.

    Raises:
        InputError: No data are named, or they cannot be read.
    """
    if training.get("data") is None:
        raise InputError("give --data FILE, as `crome train` takes.")
    return open_stream(
        Path(training["data"]), training.get("image_root"), on_bad_row="skip", check_images=False,
        questions_per_image=training.get("questions_per_image", 4),
    )  # fmt: skip


def data_figures(stream: Any) -> tuple[dict[str, float], list[Row]]:
    """Rows an epoch, pictures, and lengths in tokens, from some of the rows; and those rows."""
    looked = [stream[i] for i in range(min(len(stream), LOOKED_AT))]
    pictures = len({str(row.images) for row in looked if row.images})

    def tokens(texts: Iterator[str]) -> int:
        return max(1, round(sum(map(len, texts)) / len(looked) / CHARACTERS))

    found: dict[str, float] = {
        "rows": len(stream),
        "images": round(pictures / len(looked) * len(stream)),
        "question_tokens": tokens(row.question for row in looked) + TEMPLATE,
        "answer_tokens": tokens(row.answer for row in looked) + 1,
    }
    return found, looked


def figures(job: Job, data: dict[str, float]) -> dict[str, float]:
    """Time and disk of a run."""
    steps = ceil(data["rows"] / job.optimization.batch(job.processes))
    epochs = job.optimization.epochs
    total = job.optimization.max_steps if job.optimization.max_steps > 0 else round(steps * epochs)
    return {
        **data,
        "steps_per_epoch": steps,
        "steps": total,
        "step_seconds": job.step_seconds(),
        "epoch_seconds": job.step_seconds() * steps,
        "run_seconds": job.step_seconds() * total,
        "cache_bytes": data["images"] * job.cost.features,
        "checkpoint_bytes": 4.0 * job.sizes.bridge + 8.0 * job.sizes.trained,
        "adapter_bytes": 4.0 * job.sizes.adapter,
    }


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
    told: set[str] = set()
    for other in tried:
        needed = sum(other.memory().values())
        kind = str((other.holding.shard, other.holding.quantization, other.dtype))
        if needed <= room and kind not in told:  # the first of each kind is the mildest
            told.add(kind)
            yield f"{difference(job, other)}: {needed / GIB:.1f} GiB"
    if not told:
        yield "nothing that this command can set; a device with more memory, or a smaller model"


def fewer_rows(job: Job) -> Iterator[Job]:
    """The same step in smaller batches, one after the other."""
    batch, accumulated = (
        job.optimization.batch_size,
        job.optimization.gradient_accumulation_steps,
    )
    while batch % 2 == 0:
        batch, accumulated = batch // 2, accumulated * 2
        yield replace(
            job,
            optimization=replace(
                job.optimization, batch_size=batch, gradient_accumulation_steps=accumulated
            ),
        )


def difference(job: Job, other: Job) -> str:
    """The options that make one run of another."""
    options = []
    if other.dtype != job.dtype:
        options.append("--dtype bfloat16")
    if other.optimization != job.optimization:
        changed = other.optimization
        options.append(
            f"--optimization.batch_size {changed.batch_size} "
            f"--optimization.gradient_accumulation_steps {changed.gradient_accumulation_steps}"
        )
    if other.holding.shard:
        options.append(f"--holding.shard in {other.processes} processes")
    if other.holding.quantization:
        options.append(f"--holding.quantization {other.holding.quantization}")
    if other.holding.activation_checkpointing:
        options.append("--holding.activation_checkpointing")
    return " ".join(options)


def sizes_of(config: CromeConfig, stage: Stage) -> Sizes:
    """Numbers of parameters, from the model without weights."""
    with torch.device("meta"):
        model = CromeForConditionalGeneration(config)
    known = {name: count(part) for name, part in parts(model).items()}
    head = model.get_output_embeddings()
    matrices = [m for m in model.language_model.modules() if isinstance(m, nn.Linear)]
    language, vision = known.pop("language_model"), known.pop("vision_model")
    return Sizes(
        language=language,
        matrices=sum(m.weight.numel() for m in matrices if m is not head),
        vision=vision,
        bridge=sum(known.values()),
        trained=stage_count(model, stage),
        adapter=known.get("adapter", 0),
    )


def device_memory() -> float:
    """Bytes of this machine's GPU, or of its memory."""
    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory)
    try:
        lines = MEMINFO.read_text().splitlines()
        return next(1024.0 * int(x.split()[1]) for x in lines if x.startswith("MemTotal"))
    except (OSError, ValueError, IndexError, StopIteration) as error:  # no Linux, or a jail
        raise InputError(
            "this machine does not say how much memory it has; give --memory GIB."
        ) from error


def report(
    needed: dict[str, float],
    capacity: float,
    told: dict[str, float],
    lengthy: list[str],
    fits: bool,
    advice: list[str],
) -> None:
    """Prints a plan."""
    console = Console(soft_wrap=True)
    table = Table(title="Memory on each device", title_justify="left", show_header=False)
    for what, size in needed.items():
        table.add_row(what, f"{size / GIB:.2f} GiB")
    table.add_section()
    table.add_row("together", f"[bold]{sum(needed.values()) / GIB:.2f} GiB[/]")
    table.add_row("the device", f"{capacity / GIB:.2f} GiB")
    console.print(table)
    table = Table(title="Time and disk", title_justify="left", show_header=False)
    table.add_row("rows, pictures", f"{told['rows']:,.0f}, at most {told['images']:,.0f}")
    table.add_row("steps, of an epoch", f"{told['steps']:,.0f}, {told['steps_per_epoch']:,.0f}")
    table.add_row("a step, if this machine does it", f"{told['step_seconds']:.2f} s")
    table.add_row("an epoch", duration(told["epoch_seconds"]))
    table.add_row("the run", duration(told["run_seconds"]))
    table.add_row("cache of its pictures", f"at most {told['cache_bytes'] / 1e9:.2f} GB")
    table.add_row("a checkpoint, of which two stay", f"{told['checkpoint_bytes'] / 1e6:.1f} MB")
    table.add_row("the adapter", f"{told['adapter_bytes'] / 1e6:.1f} MB")
    console.print(table)
    for line in lengthy:
        console.print(line, markup=False)
    if fits:
        console.print("It fits.")
        return
    console.print("[bold]It does not fit.[/] It would with:")
    for line in advice:
        console.print(f"  {line}", markup=False)


def duration(seconds: float) -> str:
    """A time for people."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
