"""`crome train`: one stage of CROME on rows of images, questions and answers."""

import os
import shlex
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import Dataset, IterableDataset
from transformers import set_seed

from crome.checkpoints.loading import PLAINLY, Holding, load, new_bridge, new_tiny
from crome.data.mixture.prepare import open_stream
from crome.data.reader import read_rows
from crome.data.views import Views
from crome.errors import InputError, not_negative, positive
from crome.features.verbs import CACHING, Caching, enable
from crome.model.configuration import CromeConfig
from crome.model.stages import Stage
from crome.options import meant
from crome.rows import Row
from crome.training.arguments import start_processes
from crome.training.fit import fit, plain
from crome.training.progress import console
from crome.training.run_folder import check_folder, first_rows, owned
from crome.training.settings import TRACKING, Optimization, RunSettings, Tracking

TINY = "crome-tiny"
FIRST_ROWS = 200
"""So many are looked at for what would be cut, and for pictures."""
SAMPLED_ROWS = 100_000
"""So many more are looked at where those show no picture."""


def train(
    out: Path,
    data: Path | None = None,
    checkpoint: str = TINY,
    adapter: Path | None = None,
    stage: Stage = "finetune",
    optimization: Optimization = Optimization(),
    fresh: bool = False,
    vision_model: str | None = None,
    language_model: str | None = None,
    settings: dict[str, Any] | None = None,
    image_root: Path | None = None,
    on_bad_row: Literal["raise", "skip"] = "raise",
    check_images: bool = True,
    questions_per_image: int = 4,
    dtype: Literal["bfloat16", "float16", "float32", "auto"] = "bfloat16",
    tf32: bool = False,
    attention: Literal["eager", "sdpa", "flash_attention_2", "auto"] = "auto",
    device: str = "auto",
    holding: Holding = PLAINLY,
    compile_layers: bool = False,
    cache: Caching = CACHING,
    views: int = 0,
    save_steps: int = 200,
    save_total_limit: int = 2,
    log_steps: int = 10,
    sample_steps: int = 100,
    tracking: Tracking = TRACKING,
    workers: int | None = None,
    trainer: dict[str, Any] | None = None,
    seed: int = 0,
) -> None:
    """Train one stage: the adapter alone (`finetune`), or more of the bridge.

    The frozen towers are never changed and never saved. A run that was stopped goes on from its
    last checkpoint when the same command is given again, and one that gets SIGTERM saves first.

    Args:
        out: Folder for checkpoints, logs, `run.yaml`, and the result. It belongs to one run; its
            `run.yaml` can be given as `--config`.
        data: Rows, as JSONL, LLaVA JSON, chat messages, LAVIS triples or Parquet, or a mixture of
            data sets (.yaml); `crome validate` checks them.
        checkpoint: What to start from: a folder, a hub id, a preset that has weights, or a
            vision-language model of transformers.
        adapter: Start from the weights of this task adapter, which was trained on `checkpoint`.
        stage: `finetune` trains the adapter, `pretrain` also both projections, `instruct` also the
            Q-Former and its queries.
        optimization: Rates, batch and length.
        fresh: Start crome-tiny from an untrained bridge.
        vision_model: With `language_model`: start from an untrained bridge between these two
            towers, hub ids, folders, or packaged ones such as asset:efficientnet-lite2.
        language_model: See `vision_model`; files that end in .gguf are read too.
        settings: Fields of the configuration of such a new model, such as num_query_tokens; or of
            the adapter that is attached to a vision-language model, such as bottleneck.
        image_root: Folder that image paths in `data` start from, and the files of a mixture; by
            default the file's own.
        on_bad_row: Whether a bad row stops the run before it starts, or is left out and counted;
            with `skip` also rows whose picture goes away while training, or that are longer than
            the language model reads (skipped.jsonl in `out`).
        check_images: Whether to decode every picture once before the run starts, so that none stops
            it later; about 200 a second and core.
        questions_per_image: Rows of one image kept together, whose shared tokens are computed once.
        dtype: Type of the frozen towers; what trains is always float32. The gradients that pass a
            float16 language model are scaled on their way.
        tf32: Compute float32 products in TF32 on GPUs that have it: faster, ten bits of mantissa.
        attention: Implementation inside the language model; `auto` takes what was measured to be
            fastest for the device, the type and the length. With `eager` and `flash_attention_2`
            an image's tokens are read once per question.
        device: cpu, cuda or mps; by default a GPU of CUDA if there is one. Of several
            processes each takes its own.
        holding: How a language model is held that is too large to be held plainly.
        compile_layers: Compile the language model's layers: needs a C++ compiler and some minutes,
            then each step is faster; worth it for runs of more than half an hour.
        cache: Features of what is frozen, computed once before the run and read from disk in it.
        views: Show each picture in so many random crops, mirrored half of the time, another each
            epoch, instead of whole; not for questions about left and right. 0 shows it whole.
        save_steps: Steps between checkpoints; 0 for none on the way.
        save_total_limit: Checkpoints that are kept, the newest.
        log_steps: Steps between logged losses.
        sample_steps: Steps between sample answers; 0 for none.
        tracking: Where the curves go, and validation on the way.
        workers: Loader processes; by default none on a CPU and up to four beside a GPU.
        trainer: Further `TrainingArguments` of transformers by name, as {adam_beta2: 0.98}.
        seed: Of the order of rows and of everything random.
    """
    options = dict(locals())
    run = RunSettings(
        stage=stage, optimization=optimization, holding=holding, device=device,
        compile_layers=compile_layers, save_steps=save_steps, save_total_limit=save_total_limit,
        log_steps=log_steps, sample_steps=sample_steps, tracking=tracking, workers=workers,
        tf32=tf32, trainer=trainer or {}, seed=seed, skip_unreadable=on_bad_row == "skip",
    )  # fmt: skip
    if data is None:
        raise InputError("give --data FILE, the rows to train on.")
    positive(questions_per_image=questions_per_image)
    not_negative(views=views)
    check_start(checkpoint, adapter, fresh, vision_model, language_model, settings)
    check_folder(out)
    holding.check(start_processes(device))
    set_seed(seed)
    validation = validation_rows(tracking, image_root, check_images)
    stream = rows_in_order(
        data, image_root, on_bad_row, check_images, questions_per_image, optimization, seed
    )
    rows = list(islice(iter(stream), FIRST_ROWS))
    shown = stream if not views else in_views(stream, views, seed)
    with owned(out):
        model, processor = start(
            checkpoint,
            fresh,
            vision_model,
            language_model,
            settings,
            dtype,
            attention,
            holding,
            device,
        )
        if adapter is not None:
            take_over(model, adapter)
        warn(processor, rows, run, stream, views, new=fresh or bool(vision_model))
        on_disk = not (fresh or vision_model)
        fit(
            model, enable(model, processor, cache), shown, out, run,
            samples=rows[:4], validation=validation, base=checkpoint if on_disk else None,
            record=recorded(options, stream, rows),
        )  # fmt: skip
    if int(os.environ.get("RANK", 0)) == 0:
        console.print(f"Done: {out}. Ask it:\n\n  {example(out, rows)}\n", soft_wrap=True)


def check_start(
    checkpoint: str,
    adapter: Path | None,
    fresh: bool,
    vision_model: str | None,
    language_model: str | None,
    settings: dict[str, Any] | None,
) -> None:
    """Refuses settings of where to start that contradict each other, or would be left out.

    Raises:
        InputError: With the first of them.
    """
    towers = bool(vision_model) + bool(language_model)
    if towers == 1:
        raise InputError("--vision_model and --language_model go together; give both or neither.")
    new = [name for name, wanted in {"--fresh": fresh, "two towers": towers}.items() if wanted]
    if len(new) == 2:
        raise InputError("--fresh starts crome-tiny; leave it out where two towers are named.")
    if new and checkpoint != TINY:
        raise InputError(f"{new[0]} starts anew, and --checkpoint does not; give one of them.")
    if new and adapter is not None:
        raise InputError(f"{new[0]} starts anew; an adapter belongs to a checkpoint.")
    if fresh and settings:
        raise InputError("--settings belongs to a new model of two towers, and --fresh names none.")
    if towers:
        known = CromeConfig.__dataclass_fields__.keys()
        for name in settings or {}:
            if name not in known:
                raise InputError(
                    f"settings: the model's configuration has no {name}{meant(name, list(known))}."
                )


def start(
    checkpoint: str,
    fresh: bool,
    vision_model: str | None,
    language_model: str | None,
    settings: dict[str, Any] | None,
    dtype: str,
    attention: str,
    holding: Holding,
    device: str = "auto",
) -> tuple[Any, Any]:
    """The model a run starts from, and its processor."""
    if vision_model and language_model:
        towers = here(vision_model), here(language_model)
        return new_bridge(*towers, dtype, attention, holding, device, **(settings or {}))
    begin = new_tiny if fresh else partial(load, checkpoint, **(settings or {}))
    return begin(dtype=dtype, attention=attention, holding=holding, device=device)


def here(name: str) -> str:
    """A tower's name as it holds wherever the model is loaded: a folder's whole path."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def take_over(model: Any, folder: Path) -> None:
    """Gives the adapter that trains the weights of a task adapter.

    Raises:
        InputError: It belongs to another base, or has another shape.
    """
    model.load_adapter(folder, name="start")
    weights = model.get_adapter("start").state_dict()
    model.delete_adapter("start")
    model.set_adapter(None)
    own = model.get_adapter(None)
    shapes = [{k: tuple(v.shape) for k, v in one.items()} for one in (weights, own.state_dict())]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"the adapter in {folder} has other sizes than the one that would train; start from a "
            "checkpoint of its bottleneck and branches."
        )
    own.load_state_dict(weights)


def rows_in_order(
    data: Path,
    image_root: Path | None,
    on_bad_row: Literal["raise", "skip"],
    check_images: bool,
    questions_per_image: int,
    optimization: Optimization,
    seed: int,
) -> Dataset[Any]:
    """The rows of a run in order, as many as its epochs or steps take."""

    def opened(epochs: float) -> Any:
        return open_stream(
            data, image_root, on_bad_row, check_images, epochs, questions_per_image, seed
        )

    stream = opened(optimization.epochs)
    if optimization.max_steps > 0:
        processes = int(os.environ.get("WORLD_SIZE", 1))
        stream.epochs = optimization.passes(len(stream) / optimization.epochs, processes)
    return stream


def in_views(stream: Any, views: int, seed: int) -> Dataset[Any]:
    """Rows whose pictures are shown in another view each epoch."""
    return Views(stream, views, max(1, round(len(stream) / stream.epochs)), seed)


def recorded(options: dict[str, Any], stream: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """What a run's `run.yaml` says: the options it was given, and what it saw of its rows."""
    told = {key: plain(value) if hasattr(value, "__dataclass_fields__") else value
            for key, value in options.items()}  # fmt: skip
    told = {key: str(value) if isinstance(value, Path) else value for key, value in told.items()}
    kept = getattr(stream, "rows", None)
    return {
        **told,
        "data_fingerprint": getattr(stream, "fingerprint", None),
        "rows": len(kept) if isinstance(kept, Sequence) else None,
        "first_rows": first_rows(rows) if not isinstance(stream, IterableDataset) else None,
    }


def warn(
    processor: Any, rows: Sequence[Row], run: RunSettings, stream: Any, views: int, new: bool
) -> None:
    """Tells what a run would do in vain, and refuses one that would learn nothing.

    Raises:
        InputError: No row shows anything, and all that trains stands behind pictures.
    """
    if not any(row.media for row in rows) and not any(row.media for row in sample(stream)):
        raise InputError(
            "no row shows a picture, and what trains sees nothing else: it would learn nothing. "
            "Name the pictures of the rows (`image`); `crome validate` shows how rows are read."
        )
    for line in vain(processor, rows, run, stream, views, new):
        console.print(line, style="yellow", markup=False, soft_wrap=True)


def sample(stream: Any) -> Iterator[Row]:
    """All rows of a file, or some from everywhere in a mixture; none of shards."""
    rows = getattr(stream, "rows", ())
    if isinstance(rows, Sequence):
        step = max(1, len(rows) // SAMPLED_ROWS)
        yield from (rows[place] for place in range(0, len(rows), step))


def vain(
    processor: Any, rows: Sequence[Row], run: RunSettings, stream: Any, views: int, new: bool
) -> list[str]:
    """What a run would do in vain, a line each."""
    optimization, lines = run.optimization, []
    if not processor.end_ids:
        lines.append(
            "The tokenizer has no end token, so the model learns answers that never stop; name one "
            "as eos_token in the tokenizer_config.json of the language model."
        )
    steps = max(1, len(stream) // optimization.batch(int(os.environ.get("WORLD_SIZE", 1))))
    if 1 <= optimization.warmup_steps and optimization.warmup_steps >= steps:
        lines.append(
            f"The warm-up takes {optimization.warmup_steps:g} steps and the run {steps}, so the "
            "learning rate never comes to its peak; lower --optimization.warmup_steps."
        )
    if new and run.stage == "finetune":
        lines.append(
            "The bridge is new and stage finetune trains its adapter alone, behind projections "
            "that know nothing; --stage instruct or pretrain trains them first."
        )
    epochs = getattr(stream, "epochs", optimization.epochs)
    if views > max(1, epochs):
        come = max(1, ceil(epochs))
        lines.append(
            f"Each epoch shows one view of a picture, so {epochs:g} epochs show {come} of its "
            f"{views}; give --views {come}, or --optimization.epochs {views}."
        )
    return lines


def validation_rows(tracking: Tracking, image_root: Path | None, check: bool) -> list[Row] | None:
    """The rows that are answered at intervals; None for none."""
    if tracking.validation is None:
        return None
    rows = read_rows(tracking.validation, image_root, check_images=check)
    return rows[: tracking.validation_rows]


def example(out: Path, rows: Sequence[Row]) -> str:
    """A command that asks the trained model something, ready to run."""
    shown = next((row for row in rows if row.images and isinstance(row.images[0], Path)), None)
    row = shown or rows[0]
    words = ["crome", "ask", row.question, "--checkpoint", str(out)]
    if shown is not None:
        words += ["--image", str(shown.images[0])]
    return shlex.join(words)
