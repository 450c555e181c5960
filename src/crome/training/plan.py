"""`crome plan`: memory, time and disk of a run before it starts, and what makes it fit."""

import json as json_format
from collections.abc import Iterator, Sequence
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import AutoConfig

from crome.checkpoints.devices import device_named
from crome.checkpoints.loading import PLAINLY, QFORMER, tower_kwargs
from crome.checkpoints.presets import preset_config
from crome.data.opening import open_stream
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
from crome.training.job import GIB, Job, changes
from crome.training.plan_attached import TOO_LONG, Shape, attached_plan, vlm_of
from crome.training.probe import Cost, Rows, Sizes, step_cost
from crome.training.settings import Optimization
from crome.training.train import train

ROOM = 0.9  # of a device's memory may be planned: allocators leave gaps
CHARACTERS = 4  # of a token, about, in English and a vocabulary of 32,000 or more
TEMPLATE = 12  # tokens that a prompt's template adds, about
LOOKED_AT = 2000  # rows, for their lengths and pictures
MEMINFO = Path("/proc/meminfo")


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
        memory: GiB of the device to plan for; by default those of `--device`.
        processes: How many processes will run, a device each.
        preset: Sizes to plan for while the checkpoint does not exist yet, such as crome-vicuna-7b.
        json: Print JSON instead of tables.
        start: Start the run if it fits.
        training: Options of `crome train`.
    """
    positive(memory=memory, processes=processes)
    if start and processes > 1:
        raise InputError("--start starts one process; use torchrun or accelerate for several.")
    device = device_named(training.get("device", "auto"))
    capacity = device_memory(device) if memory is None else memory * GIB
    job, data, lengthy = job_of(preset, processes, training, device)
    needed, numbers = job.memory(), figures(job, data)
    fits = sum(needed.values()) <= ROOM * capacity
    advice = [] if fits else list(changes(job, ROOM * capacity))
    if lengthy and training.get("on_bad_row") != "skip":
        fits, advice = False, [*advice, f"other rows. {REMEDY}"]
    if json:
        print(json_format.dumps(
            {"memory": needed, "total": sum(needed.values()), "capacity": capacity, "fits": fits,
             "advice": advice, "too_long": lengthy, **numbers}
        ))  # fmt: skip
    else:
        report(needed, capacity, numbers, lengthy, fits, advice)
    if start and fits:
        train(**training)


def job_of(
    preset: str | None, processes: int, training: dict[str, Any], device: torch.device
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
    attention = tower_kwargs(
        str(dtype).removeprefix("torch."), training.get("attention", "auto"), device=device
    )
    implementation = attention["language_kwargs"].get("attn_implementation")
    holding = training.get("holding") or PLAINLY
    config: CromeConfig | Shape
    if name := attached_name(preset, training):
        config, sizes, cost, lengthy = attached_plan(
            name, rows, known, dtype, implementation, training.get("settings"), device
        )
    else:
        config = config_of(preset, training)
        read = min(rows.question_tokens, config.max_question_tokens)
        rows = rows._replace(question_tokens=read)  # a longer one is refused, and named
        sizes = sizes_of(config, stage)
        cost = step_cost(config, stage, rows, dtype, implementation, device)
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
    """Messages about rows that are longer than a model reads.

    They are counted with the tokenizer of the checkpoint. A model that is still to be made has
    none; `crome train` then counts them.
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
            vision = AutoConfig.from_pretrained(tower_path(names[0]), trust_remote_code=False)
        with named("language model", names[1]):
            folder, gguf = gguf_split(tower_path(names[1]))
            text = AutoConfig.from_pretrained(folder, trust_remote_code=False, **gguf)
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


def device_memory(device: torch.device) -> float:
    """Bytes of a GPU, or of the machine's memory."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "mps":
        return float(torch.mps.recommended_max_memory())
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
    numbers: dict[str, float],
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
    n = numbers
    for what, amount in {
        "rows, pictures": f"{n['rows']:,.0f}, at most {n['images']:,.0f}",
        "steps, of an epoch": f"{n['steps']:,.0f}, {n['steps_per_epoch']:,.0f}",
        "a step, if this machine does it": f"{n['step_seconds']:.2f} s",
        "an epoch": duration(n["epoch_seconds"]),
        "the run": duration(n["run_seconds"]),
        "cache of its pictures": f"at most {n['cache_bytes'] / 1e9:.2f} GB",
        "a checkpoint, of which two stay": f"{n['checkpoint_bytes'] / 1e6:.1f} MB",
        "the adapter": f"{n['adapter_bytes'] / 1e6:.1f} MB",
    }.items():
        table.add_row(what, amount)
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
