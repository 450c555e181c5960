"""`crome cache`: features of frozen parts, computed before they are needed and kept on disk."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch.utils.data import DataLoader

from crome.attached import AttachedProcessor
from crome.checkpoints.devices import device_named
from crome.checkpoints.loading import load
from crome.data.failures import in_one_line
from crome.data.pictures import failure, files
from crome.data.problems import count
from crome.data.reader import read_rows
from crome.data.views import with_views
from crome.errors import InputError, JobError, not_negative, positive
from crome.features.cache import VisualCache
from crome.features.media import CachedMediaProcessor, MediaCache, Prepared
from crome.features.names import default_folder
from crome.features.processor import CachedProcessor, Uncached
from crome.features.pruning import prune as prune
from crome.features.store import FeatureStore, gigabytes
from crome.images import View
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor
from crome.rows import Row
from crome.storage import folder_bytes

console = Console(stderr=True, markup=False)

Processor = CromeProcessor | CachedProcessor


@dataclass(frozen=True)
class Caching:
    """Whether and where features of frozen parts are kept.

    Attributes:
        use: Whether they are kept; results are the same without.
        folder: Folder of all caches; by default crome/features in the user's cache folder.
        limit_gb: GB that all caches in the folder may take together; beyond it a run goes without.
    """

    use: bool = True
    folder: Path | None = None
    limit_gb: float = 20.0

    def __post_init__(self) -> None:
        positive(limit_gb=self.limit_gb)


CACHING = Caching()


def enable(
    model: CromeForConditionalGeneration, processor: Processor, caching: Caching = CACHING
) -> Any:
    """Gives a processor that uses a cache, which `prepare` fills, or one that uses none.

    Args:
        model: With the Q-Former that it will be used with, or that will train.
        processor: The model's own.
        caching: Whether features are kept, and where.
    """
    plain = processor.processor if isinstance(processor, CachedProcessor) else processor
    if not caching.use:
        return plain
    cache = open_cache(model, plain, caching.folder, limit_gb=caching.limit_gb)
    kind = CachedMediaProcessor if isinstance(cache, MediaCache) else CachedProcessor
    return kind(plain, cache)


def open_cache(
    model: Any,
    processor: Any,
    folder: Path | None,
    questions: bool = True,
    limit_gb: float | None = None,
) -> Any:
    """The cache of a model: of pictures and questions, or of an attached model's media."""
    limit = None if limit_gb is None else round(limit_gb * 1e9)
    if isinstance(processor, AttachedProcessor):
        return MediaCache(model, processor, folder, limit=limit)
    return VisualCache(model, processor, folder, questions=questions, limit=limit)


def caches(processor: Processor) -> bool:
    """Whether a processor keeps features."""
    return isinstance(processor, CachedProcessor) and processor.cache is not None


def prepare(
    model: CromeForConditionalGeneration,
    processor: Processor,
    rows: Iterable[Row],
    *,
    workers: int = 0,
    check: int = 4,
    skip_unreadable: bool = False,
) -> None:
    """Computes what the processor's cache lacks for rows, and compares some with a live pass.

    Does nothing for a processor without a cache. Where the disk or the limit does not allow one,
    says so and takes the cache away. Outputs of the Q-Former are kept only while it does not train
    and has the weights that they were computed with.

    Where several processes prepare the same rows, one computes and the others wait for it, without
    a collective that could run into the process group's timeout. They then use what it kept.

    Args:
        model: In the state in which it will be used.
        processor: The model's own.
        rows: The rows that will be read.
        workers: Loader processes.
        check: How many rows are compared.
        skip_unreadable: Whether rows whose picture cannot be read are passed over.

    Raises:
        InputError: What is kept is not what the model computes, or a picture cannot be read.
    """
    if not isinstance(processor, CachedProcessor) or processor.cache is None:
        return
    cache, cached, processor = processor.cache, processor, processor.processor
    cache.release_questions(model)
    distinct = list({once(row): row for row in rows if row.media}.values())
    try:
        with one_at_a_time(cache.images.folder.parent, distinct):
            fill(cache, model, processor, distinct, workers, skip_unreadable=skip_unreadable)
    except JobError as error:
        console.print(f"Without cached features: {error}")
        cached.cache = None
        return
    cache.verify(model, processor, distinct, check)


def agree(processor: Processor) -> None:
    """Takes the cache away from every process where one could not fill it.

    Call it on all processes of a run after `prepare`; alone it does nothing.
    """
    if isinstance(processor, CachedProcessor) and torch.distributed.is_initialized():
        filled: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(filled, processor.cache is not None)
        if not all(filled):
            processor.cache = None


@contextmanager
def one_at_a_time(folder: Path, rows: Sequence[Row]) -> Iterator[None]:
    """A block that one process at a time goes through for the same rows.

    Raises:
        JobError: The folder cannot be written to.
    """
    names = (i if isinstance(i, Path | View) else "picture" for row in rows for i in row.images)
    text = "\0".join([*map(str, names), *(row.question for row in rows)])
    name = blake2b(text.encode(errors="surrogatepass"), digest_size=10).hexdigest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".filling-{name}.lock")
        try:
            lock.acquire(timeout=1)
        except Timeout:
            console.print("waiting for another process that computes these features")
            lock.acquire()
    except OSError as error:
        raise JobError(f"{folder} cannot be written to: {error}.") from error
    try:
        yield
    finally:
        lock.release()


def once(row: Row) -> Hashable:
    """A cheap name for what a row shows and asks."""
    images = (id(i) if isinstance(i, Image.Image) else i for i in row.images)
    return (*images, *row.videos, *row.audios, row.question)


def fill(
    cache: Any,
    model: Any,
    processor: Any,
    rows: Iterable[Row],
    workers: int = 0,
    batch_size: int = 32,
    skip_unreadable: bool = False,
) -> int:
    """Computes what the cache lacks, with a progress bar; returns for how many rows."""
    # Rows of one picture side by side, so that it is computed once.
    missing = sorted(cache.missing(processor, rows), key=lambda row: str(row.images))
    if skip_unreadable:
        missing = [row for row in missing if not any(map(failure, files(row)))]
    loader: DataLoader[Any] = DataLoader(
        missing,  # type: ignore[arg-type]
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=(
            Prepared(processor) if isinstance(cache, MediaCache) else Uncached(cache, processor)
        ),
    )
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console, transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task("features", total=len(missing))
        for done in cache.fill(model, loader, len(missing)):
            bar.advance(task, done)
    return len(missing)


def build(
    data: Path,
    checkpoint: str = "crome-tiny",
    folder: Path | None = None,
    limit_gb: float = CACHING.limit_gb,
    image_root: Path | None = None,
    on_bad_row: Literal["raise", "skip"] = "raise",
    questions: bool = True,
    views: int = 0,
    batch_size: int = 32,
    workers: int = 0,
    dtype: Literal["bfloat16", "float16", "float32", "auto"] = "bfloat16",
    device: str = "auto",
) -> None:
    """Compute the frozen features of all pictures and questions of a file, and keep them.

    What is there is left alone, so an interrupted run goes on; several may fill one folder.

    Args:
        data: Rows, as for `crome train`.
        checkpoint: A folder, a hub id, or a preset that has weights.
        folder: Folder of all caches; by default crome/features in the user's cache folder.
        limit_gb: GB that all caches in the folder may take together.
        image_root: Folder that image paths in `data` start from; by default the file's own.
        on_bad_row: Whether a bad row stops the run, or is left out and counted.
        questions: Also keep what the Q-Former reads for each question; false for `--stage
            instruct`, which trains it.
        views: Augmented views of each picture instead of the picture itself, as for `crome train`.
        batch_size: Rows computed together.
        workers: Processes that decode pictures.
        dtype: Type of the frozen towers, as in the run that will use them.
        device: cpu, cuda, cuda:N or mps; by default a GPU of CUDA if there is one.
    """
    positive(limit_gb=limit_gb, batch_size=batch_size)
    not_negative(views=views, workers=workers)
    device_named(device)  # refuses a wrong device before the rows are read
    rows = read_rows(data, image_root, on_bad_row, check_images=True)
    model, processor = load(checkpoint, dtype, device=device)
    cache = open_cache(model, processor, folder, questions, limit_gb)
    wanted = [row for row in all_views(rows, views) if row.media]
    with in_one_line("lower --batch_size"):
        new = fill(cache, model, processor, wanted, workers, batch_size)
    root = cache.images.folder.parent
    if isinstance(cache, MediaCache):
        kept = f"{count(len(cache), 'set')} of media"
    else:
        questions_kept = 0 if cache.questions is None else len(cache.questions)
        kept = f"{count(len(cache), 'picture')} and {count(questions_kept, 'question')} on them"
    size = gigabytes(folder_bytes(root))
    print(f"{new:,} of {len(wanted):,} rows were new. {kept} in {root}, {size}.")


def verify(
    data: Path,
    checkpoint: str = "crome-tiny",
    folder: Path | None = None,
    image_root: Path | None = None,
    questions: bool = True,
    count: int = 64,
    dtype: Literal["bfloat16", "float16", "float32", "auto"] = "bfloat16",
    device: str = "auto",
) -> None:
    """Compare cached features with a live pass through the frozen parts.

    Args:
        data: Rows, as for `crome cache build`.
        checkpoint: See `crome cache build`.
        folder: See `crome cache build`.
        image_root: See `crome cache build`.
        questions: See `crome cache build`.
        count: How many rows, evenly spaced over the file.
        dtype: See `crome cache build`.
        device: See `crome cache build`.
    """
    positive(count=count)
    model, processor = load(checkpoint, dtype, device=device)
    cache = open_cache(model, processor, folder, questions)
    rows = read_rows(data, image_root)
    checked = cache.verify(model, processor, rows, count)
    if not checked:
        raise InputError(
            f"none of the rows looked at is in {cache.images.folder.parent}; run `crome cache "
            f"build {data}` with the same settings first."
        )
    print(f"{checked} of {min(count, len(rows))} rows looked at are kept, and as computed now.")


def info(folder: Path | None = None) -> None:
    """List what is kept: encoder, rows and size of each cache; remove its folder to be rid of it.

    Args:
        folder: Folder of all caches; by default crome/features in the user's cache folder.
    """
    root = folder or default_folder()
    if folder is not None and not folder.is_dir():
        raise InputError(f"no folder {folder}; expected one that `crome cache build` made.")
    table = Table(title=str(root), title_justify="left")
    for column in ("folder", "encoder", "type"):
        table.add_column(column)
    for column in ("rows", "size"):
        table.add_column(column, justify="right")
    for path in sorted({shard.parent for shard in root.glob("*/*.safetensors")}):
        store = FeatureStore(path)
        encoder, dtype = (str(store.identity.get(k, "?")) for k in ("encoder", "dtype"))
        size = gigabytes(folder_bytes(path))
        table.add_row(path.name, encoder, dtype, f"{len(store):,}", size)
    table.add_section()
    table.add_row("all", "", "", "", gigabytes(folder_bytes(root)))
    Console(markup=False).print(table)


def all_views(rows: Iterable[Row], count: int) -> Iterable[Row]:
    """Rows as they are, or one for each view of their pictures."""
    for row in rows:
        if not count:
            yield row
        for number in range(1, count + 1):
            yield with_views(row, repeat(number))
