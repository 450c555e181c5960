"""Builds a mixture: every source is read and checked once, and its rows are selected.

The result is kept in the user's cache folder. Its name stands for the settings and for size and
time of every file, so that the next start opens it at once and a file that changed is read again.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from crome.data.mixture.file import Settings, Source, read_settings
from crome.data.mixture.mixture import Mixture, Report
from crome.data.mixture.selection import select
from crome.data.mixture.table import TableWriter, batches
from crome.data.pictures import files, first_uses, medium_of, undecodable
from crome.data.problems import Problem, Problems
from crome.data.reader import RowReader
from crome.errors import InputError, JobError
from crome.rows import Row
from crome.storage import build_folder, cache_folder, is_whole, mark_used

FORMAT = 2  # of what is kept; raise it when that changes
REPORTED = 20  # problems of a source that are kept in full

Check = Literal["none", "exists", "decode"]


def build_mixture(
    path: Path,
    root: Path | None = None,
    check: Check = "exists",
    cache: Path | None = None,
) -> Mixture:
    """Opens a mixture, and builds first what was not built before.

    Several processes may call this at once: one builds, the others wait.

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
        tables = [source_folder(source, settings, check, cache) for source in settings.sources]
        folder = cache / fingerprint("mixture", [t.name for t in tables], asdict(settings))
        with FileLock(f"{folder}.lock"):
            if not is_whole(folder):
                build_folder(folder, lambda staging: write_selection(settings, tables, staging))
    except (OSError, JobError) as error:
        if isinstance(error, JobError) and not isinstance(error.__cause__, OSError):
            raise
        raise JobError(
            f"could not build {path} in {cache}: {str(error).rstrip('.')}. Is there space? "
            "Another folder is named with XDG_CACHE_HOME."
        ) from error
    for used in (*tables, folder):
        mark_used(used)
    return Mixture(settings, folder)


def source_folder(source: Source, settings: Settings, check: Check, cache: Path) -> Path:
    """The folder with the rows of a source, built if there is none."""
    by_content, pool = settings.same_image == "content", source.templates
    name = fingerprint(
        "rows", source.layout, source.arguments, [stamp(path) for path in source.paths],
        source.images, pool and (pool.needs_choices, pool.asks_for_question), by_content, check,
    )  # fmt: skip
    folder = cache / name
    with FileLock(f"{folder}.lock"):
        if not is_whole(folder):
            build_folder(folder, lambda staging: write_rows(source, staging, by_content, check))
    return folder


def write_rows(source: Source, folder: Path, by_content: bool, check: Check) -> None:
    """Reads a source and writes its rows to a folder, with a report of what was in it."""
    pool = source.templates
    problems = Problems(keep=REPORTED)
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
    uses = first_uses(batch)
    first = {picture: place for picture, place in uses.items() if hash(picture) not in seen}
    seen.update(map(hash, first))
    for picture, reason in undecodable(first).items():
        broken.add(picture)
        medium = medium_of(picture)
        found = reason.removeprefix(f"{first[picture]}, {medium}: ").removesuffix(".")
        noun = "recording" if medium == "audio" else "picture"
        problems.add(Problem(first[picture], medium, found, f"a {noun} that can be decoded"))
    return [row for row in rows if broken.isdisjoint(files(row))]


def write_selection(settings: Settings, tables: Sequence[Path], folder: Path) -> None:
    """Selects the rows of a mixture and writes their numbers to a folder, with the reports."""
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
    """A name for settings, the same for the same settings."""
    text = json.dumps([FORMAT, *parts], default=str, sort_keys=True)
    return f"{parts[0]}-{blake2b(text.encode(), digest_size=10).hexdigest()}"


def stamp(path: Path) -> tuple[str, int, int]:
    """What tells a file from itself after a change."""
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns


def progress() -> Progress:
    """Rows read, on stderr."""
    console = Console(stderr=True)
    return Progress(
        SpinnerColumn(),
        TextColumn("reading {task.description}: {task.fields[rows]:,} rows", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
