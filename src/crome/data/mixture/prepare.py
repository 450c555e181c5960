"""Makes a mixture ready: every source read once, checked, and its rows selected.

What is made is kept in the user's cache folder under a name that stands for the settings and for
the files' sizes and times, so the next start opens it at once, and a changed file is read anew.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from crome.data.mixture.file import SUFFIXES, Settings, Source, read_settings
from crome.data.mixture.mixture import Mixture, Report
from crome.data.mixture.selection import select
from crome.data.mixture.table import TableWriter, batches
from crome.data.pictures import undecodable
from crome.data.problems import Problem, Problems
from crome.data.reader import RowReader, read_rows
from crome.data.shards import ShardStream, read_shards
from crome.data.stream import RowStream
from crome.errors import InputError, JobError
from crome.rows import Row
from crome.storage import build_folder, cache_folder, is_whole, mark_used

FORMAT = 2  # of what is kept; raise it when that changes
TOLD = 20  # problems of a source kept whole

Check = Literal["none", "exists", "decode"]
logger = logging.getLogger(__name__)


def prepare(
    path: Path,
    root: Path | None = None,
    check: Check = "exists",
    cache: Path | None = None,
) -> Mixture:
    """Opens a mixture, after reading what was not read before.

    Several processes may call this at once: one reads, the others wait.

    Args:
        path: The mixture's YAML file.
        root: Where its paths start; None for its own.
        check: Whether pictures are looked for, or decoded too, or neither.
        cache: Folder to keep it in; None for `mixtures` in the user's cache folder.

    Raises:
        InputError: Settings are wrong, or a file cannot be read.
        JobError: The disk is full.
    """
    settings = read_settings(path, root)
    cache = cache or cache_folder() / "mixtures"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        tables = [table(source, settings, check, cache) for source in settings.sources]
        folder = cache / fingerprint("mixture", [t.name for t in tables], asdict(settings))
        with FileLock(f"{folder}.lock"):
            if not is_whole(folder):
                build_folder(folder, lambda staging: choose(settings, tables, staging))
    except (OSError, JobError) as error:
        if isinstance(error, JobError) and not isinstance(error.__cause__, OSError):
            raise
        raise JobError(
            f"could not prepare {path} in {cache}: {str(error).rstrip('.')}. Is there space? "
            "Another folder is named with XDG_CACHE_HOME."
        ) from error
    for used in (*tables, folder):
        mark_used(used)
    return Mixture(settings, folder)


def open_stream(
    data: Path,
    image_root: Path | None = None,
    on_bad_row: Literal["raise", "skip"] = "raise",
    check_images: bool = True,
    epochs: float = 1,
    questions_per_image: int = 4,
    seed: int = 0,
) -> RowStream | ShardStream:
    """A data file, mixture or set of shards in training order.

    Args:
        data: JSON lines, a JSON list or Parquet, which are read into memory; or a mixture or a
            set of shards (.yaml).
        image_root: Folder that image paths start from, and the files of a mixture.
        on_bad_row: Whether bad rows are an error, or are left out and counted in the log.
        check_images: Whether every picture is decoded first.
        epochs: See `RowStream`.
        questions_per_image: See `RowStream`.
        seed: See `RowStream`.
    """
    if data.suffix not in SUFFIXES:
        rows = read_rows(data, image_root, on_bad_row, check_images)
        return RowStream(
            rows, epochs, questions_per_image, seed, fingerprint=content_fingerprint(data, rows)
        )
    if data.is_file() and (shards := read_shards(data, epochs, seed)) is not None:
        return shards
    mixture = open_mixture(data, image_root, on_bad_row, "decode" if check_images else "exists")
    return mixture.stream(epochs, questions_per_image, seed)


def open_mixture(
    path: Path,
    root: Path | None = None,
    on_bad_row: Literal["raise", "skip"] = "raise",
    check: Check = "exists",
) -> Mixture:
    """A mixture to train on, without silent holes.

    Args:
        path: See `prepare`.
        root: See `prepare`.
        on_bad_row: Whether bad rows are an error, or are left out and counted in the log.
        check: See `prepare`.

    Raises:
        InputError: See `prepare`; or rows are bad, a source has none, or pictures have gone away.
        JobError: See `prepare`.
    """
    mixture = prepare(path, root, check)
    for report in mixture.reports:
        told = "; ".join(f"{number:,} × {reason}" for reason, number in report.reasons.items())
        if report.bad and on_bad_row == "raise":
            raise InputError(
                f"{path}, {report.name}: {report.bad:,} bad of {report.entries:,} ({told}), first "
                f"{report.problems[0].removesuffix('.')}. `crome validate {path}` says more; "
                "--on_bad_row skip leaves them out."
            )
        if report.bad:
            logger.warning(
                "%s, %s: skipped %d of %d: %s",
                path, report.name, report.bad, report.entries, told,
            )  # fmt: skip
        if not report.kept:
            raise InputError(
                f"{path}, {report.name}: no row is left of {report.rows:,}; take it out of the "
                f"mixture. `crome validate {path}` says why."
            )
    if check != "none":
        mixture.look()
    return mixture


def table(source: Source, settings: Settings, check: Check, cache: Path) -> Path:
    """The folder with the rows of a source, made if there is none."""
    by_content, pool = settings.same_image == "content", source.templates
    name = fingerprint(
        "rows", source.layout, source.arguments, [stamp(path) for path in source.paths],
        source.images, pool and (pool.needs_choices, pool.asks_for_question), by_content, check,
    )  # fmt: skip
    folder = cache / name
    with FileLock(f"{folder}.lock"):
        if not is_whole(folder):
            build_folder(folder, lambda staging: read(source, staging, by_content, check))
    return folder


def read(source: Source, folder: Path, by_content: bool, check: Check) -> None:
    """Reads a source into a folder, with a report of what was in it."""
    pool = source.templates
    problems = Problems(keep=TOLD)
    reader = RowReader(
        source.paths[0] if source.paths else source.images, source.images, source.entries(),
        problems, unique=False, look=check != "none",
    )  # fmt: skip
    writer = TableWriter(folder, by_content, pool is not None and pool.asks_for_question)
    seen: set[int] = set()
    broken: set[Path] = set()
    dropped = 0
    with progress() as bar:
        task = bar.add_task(source.name, total=None, rows=0)
        for batch in batches(reader):
            good = [row for place, row in batch if fits(source, writer, place, row, problems)]
            if check == "decode":
                good = decodable(batch, good, seen, broken, problems)
            writer.write(good)
            dropped += len(batch) - len(good)
            bar.update(task, rows=len(writer.images))
    writer.close()
    images = np.frombuffer(writer.images, dtype=np.uint64)
    report = Report(
        source.name,
        entries=reader.entries,
        bad=reader.bad + dropped,
        rows=len(images),
        images=len(np.unique(images[images != 0])),
        text_only=int((images == 0).sum()),
        reasons=dict(problems.reasons.most_common()),
        problems=[str(problem) for problem in problems.first],
    )
    (folder / "report.json").write_text(json.dumps(asdict(report)))


def fits(source: Source, writer: TableWriter, place: str, row: Row, problems: Problems) -> bool:
    """Whether a row has what its templates need, and pictures that can be told apart."""
    misfit = source.templates.misfit(row) if source.templates else None
    if misfit is None and writer.by_content:
        try:
            writer.image_key(row)
        except InputError as error:
            misfit = "image", str(error).removesuffix("."), "a readable file"
    if misfit is not None:
        problems.add(Problem(place, *misfit))
    return misfit is None


def decodable(
    batch: Sequence[tuple[str, Row]],
    rows: list[Row],
    seen: set[int],
    broken: set[Path],
    problems: Problems,
) -> list[Row]:
    """The rows whose pictures decode; each picture is decoded the first time it occurs."""
    first: dict[Path, str] = {}
    for place, row in batch:
        for image in row.images:
            if isinstance(image, Path) and hash(image) not in seen:
                first.setdefault(image, place)
    seen.update(map(hash, first))
    for path, told in undecodable(first).items():
        broken.add(path)
        found = told.removeprefix(f"{first[path]}, image: ").removesuffix(".")
        problems.add(Problem(first[path], "image", found, "a picture that can be decoded"))
    return [row for row in rows if broken.isdisjoint(row.images)]


def choose(settings: Settings, tables: Sequence[Path], folder: Path) -> None:
    """Selects the rows of a mixture and writes to a folder which they are, with the reports."""
    kept = select(
        [np.load(t / "images.npy", mmap_mode="r") for t in tables],
        [np.load(t / "texts.npy", mmap_mode="r") for t in tables],
        [source.name for source in settings.sources],
        cap=settings.max_questions_per_image,
        across=settings.cap == "mixture",
        duplicates=settings.keep_duplicates,
        seed=settings.seed,
    )
    reports = []
    for number, (source, path, part) in enumerate(zip(settings.sources, tables, kept, strict=True)):
        np.save(folder / f"kept-{number}.npy", part.rows)
        report = json.loads((path / "report.json").read_text())
        reports.append(
            report
            | {"name": source.name, "expected_rows": source.expected_rows}
            | {"kept": len(part.rows)}
            | {"duplicates": part.duplicates, "over_cap": part.over_cap}
        )
    index = {"tables": [path.name for path in tables], "reports": reports}
    (folder / "index.json").write_text(json.dumps(index))


def fingerprint(*parts: Any) -> str:
    """A name for settings: equal for equal ones."""
    told = json.dumps([FORMAT, *parts], default=str, sort_keys=True)
    return f"{parts[0]}-{blake2b(told.encode(), digest_size=10).hexdigest()}"


def content_fingerprint(data: Path, rows: Sequence[Row]) -> str:
    """A name for what a data file says, whenever and wherever it was written.

    Of a folder of `Dataset.save_to_disk`, which may hold many gigabytes of pictures, the library's
    own fingerprint is taken; of a data set of the hub, which is no file here, what its rows say.
    """
    if not data.exists():
        said = blake2b(digest_size=10)
        for row in rows:
            said.update(repr((row.id, row.question, row.answer, row.history, row.system)).encode())
        return f"hub-{said.hexdigest()}"
    with (data / "state.json" if data.is_dir() else data).open("rb") as file:
        return f"file-{file_digest(file, lambda: blake2b(digest_size=10)).hexdigest()}"


def stamp(path: Path) -> tuple[str, int, int]:
    """What tells a file from itself after a change."""
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns


def progress() -> Progress:
    """Rows read, on stderr."""
    console = Console(stderr=True)
    return Progress(
        SpinnerColumn(),
        TextColumn("reading {task.description}: {task.fields[rows]:,} rows"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
