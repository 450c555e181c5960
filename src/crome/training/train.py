"""`crome train`: one stage of CROME on rows of images, questions and answers."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import is_dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import IterableDataset
from transformers import set_seed

from crome.checkpoints.loading import PLAINLY, Holding
from crome.data.opening import open_stream
from crome.data.pictures import files
from crome.data.reader import read_rows
from crome.data.views import Views
from crome.errors import InputError, not_negative, positive
from crome.features.verbs import CACHING, Caching, enable
from crome.model.stages import Stage
from crome.rows import Row
from crome.training.arguments import start_processes
from crome.training.checks import warn
from crome.training.fit import fit, plain, plain_value
from crome.training.progress import console
from crome.training.run_folder import check_folder, first_rows, owned
from crome.training.settings import TRACKING, Optimization, RunSettings, Tracking
from crome.training.start import TINY, Start

FIRST_ROWS = 200
"""So many are looked at for what would be cut, and for pictures."""


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
        holding: How a language model that is too large for the plain way is kept in memory.
        compile_layers: Compile the language model's layers: needs a C++ compiler and some minutes,
            then each step is faster; worth it for runs of more than half an hour.
        cache: Features of what is frozen, computed once before the run and read from disk in it.
        views: Show each picture in so many random crops, mirrored half of the time, another each
            epoch, instead of whole; not for questions about left and right. 0 shows it whole.
        save_steps: Steps between checkpoints; 0 for none on the way.
        save_total_limit: Checkpoints that are kept, the newest.
        log_steps: Steps between logged losses.
        sample_steps: Steps between sample answers; 0 for none.
        tracking: Where curves go, and validation during the run.
        workers: Loader processes; by default none on a CPU and up to four beside a GPU.
        trainer: Further `TrainingArguments` of transformers by name, as {adam_beta2: 0.98}.
        seed: Seed of the order of rows and of everything random.
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
    begin = Start(checkpoint, adapter, fresh, vision_model, language_model, settings or {})
    check_folder(out)
    holding.check(start_processes(device))
    set_seed(seed)
    validation = validation_rows(tracking, image_root, check_images)
    stream = rows_in_order(
        data, image_root, on_bad_row, check_images, questions_per_image, optimization, seed
    )
    rows = list(islice(iter(stream), FIRST_ROWS))
    epoch = max(1, round(len(stream) / stream.epochs))
    viewed = Views(stream, views, epoch, seed) if views else stream
    with owned(out):
        model, processor = begin.load(
            dtype=dtype, attention=attention, holding=holding, device=device
        )
        warn(processor, rows, run, stream, views, begin.new)
        fit(
            model, enable(model, processor, cache), viewed, out, run,
            samples=rows[:4], validation=validation, base=None if begin.new else checkpoint,
            record=recorded(options, stream, rows),
        )  # fmt: skip
    if int(os.environ.get("RANK", 0)) == 0:
        console.print(
            f"Done: {out}. Ask it:\n\n  {example(out, rows)}\n",
            highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip


def rows_in_order(
    data: Path,
    image_root: Path | None,
    on_bad_row: Literal["raise", "skip"],
    check_images: bool,
    questions_per_image: int,
    optimization: Optimization,
    seed: int,
) -> Any:
    """The rows of a run in order, as many as its epochs or steps take."""
    epochs = optimization.epochs
    stream: Any = open_stream(
        data, image_root, on_bad_row, check_images, epochs, questions_per_image, seed
    )
    if optimization.max_steps > 0:
        processes = int(os.environ.get("WORLD_SIZE", 1))
        stream.epochs = optimization.passes(len(stream) / epochs, processes)
    return stream


def recorded(options: dict[str, Any], stream: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """What a run's `run.yaml` says: the options it was given, and what it saw of its rows."""
    kept = getattr(stream, "rows", None)
    return {
        **{
            key: plain(value) if is_dataclass(value) else plain_value(value)
            for key, value in options.items()
        },
        "data_fingerprint": getattr(stream, "fingerprint", None),
        "rows": len(kept) if isinstance(kept, Sequence) else None,
        "first_rows": first_rows(rows) if not isinstance(stream, IterableDataset) else None,
    }


def validation_rows(tracking: Tracking, image_root: Path | None, check: bool) -> list[Row] | None:
    """The rows that are answered at intervals; None for none."""
    if tracking.validation is None:
        return None
    rows = read_rows(tracking.validation, image_root, check_images=check)
    return rows[: tracking.validation_rows]


def example(out: Path, rows: Sequence[Row]) -> str:
    """A command that asks the trained model something, ready to run."""
    row = next((row for row in rows if files(row) and not row.videos), rows[0])
    words = ["--checkpoint", str(out)]
    for option, named in (("--image", row.images), ("--audio", row.audios)):
        words += [word for file in named if isinstance(file, Path) for word in (option, str(file))]
    question = marked(row)
    dashed = question.startswith("-")  # an option, if it were not the last word
    words = [*words, "--", question] if dashed else [question, *words]
    return shlex.join(["crome", "ask", *words])


def marked(row: Row) -> str:
    """The question with marks where its media stand, as `crome ask` reads them."""
    question = row.question
    if not row.history and len(row.places) == sum(map(len, row.media.values())):
        for place in reversed(row.places):
            question = f"{question[: place.offset]}<{place.medium}>{question[place.offset :]}"
    return question
