"""`crome validate`: every row and picture of a data file, or of a mixture of data sets."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from crome.data.mixture.file import SUFFIXES
from crome.data.pictures import files, first_uses, is_recording, undecodable
from crome.data.problems import Problems, count
from crome.data.reader import RowReader
from crome.errors import InputError, not_negative
from crome.rows import Row, require_media

if TYPE_CHECKING:
    from crome.data.mixture.mixture import Mixture

WIDTH = 130  # characters of the table; a narrower terminal wraps it rather than losing numbers


def validate(
    file: Path,
    image_root: Path | None = None,
    check_images: bool = True,
    limit: int = 50,
    checkpoint: str | None = None,
) -> None:
    """Check every row and picture of a data file or mixture and name each bad one.

    Of a mixture it also says how much of each source is kept and why not the rest.

    Args:
        file: JSON lines, a JSON list, Parquet or a folder of `Dataset.save_to_disk`, of rows, LLaVA
            conversations, chat messages or LAVIS triples; or a mixture (.yaml).
        image_root: Folder that image paths start from, and the files of a mixture; by default the
            file's own.
        check_images: Whether to decode every picture too, each once.
        limit: How many problems to print.
        checkpoint: Also look for rows that are longer than this model reads, a folder, a hub id or
            a preset; the rows with the most text and with the most pictures are counted.

    Raises:
        InputError: Something is wrong.
    """
    not_negative(limit=limit)
    mixed = file.suffix in SUFFIXES
    rows = (validate_mixture if mixed else validate_file)(file, image_root, check_images, limit)
    if checkpoint is not None:
        check_length(file, rows, checkpoint, limit)


def check_length(file: Path, rows: Sequence[Row], checkpoint: str, limit: int) -> None:
    """Prints which rows are longer than a model reads, the longest first.

    Raises:
        InputError: Some are.
    """
    # These imports take seconds, which the check of a plain file does without.
    from crome.checkpoints.loading import load
    from crome.model.lengths import REMEDY, Room, too_long

    console = Console(highlight=False, markup=False, soft_wrap=True)
    model, processor = load(checkpoint)
    require_media(rows, processor.media)
    found = list(islice(too_long(Room.measured(model, processor), processor, rows), limit))
    for reason in found:
        console.print(f"{file}, {reason}")
    if found:
        number = count(len(found), "row is", "rows are")
        raise InputError(f"{file}: at least {number} too long for {checkpoint}. {REMEDY}")


def validate_mixture(
    file: Path, root: Path | None, check_images: bool, limit: int
) -> Sequence[Row]:
    """Prints what is kept of each source, and what is wrong; returns the rows that are kept.

    Raises:
        InputError: Something is wrong.
    """
    from crome.data.mixture.build import build_mixture
    from crome.data.shards import read_shards

    if file.is_file() and read_shards(file, epochs=1, seed=0) is not None:
        raise InputError(
            f"{file} names shards, which are read as they stream by: nothing is checked before. "
            "Unpacked on a disk they can be a mixture."
        )
    console = Console(highlight=False, markup=False, soft_wrap=True)
    mixture = build_mixture(file, root, "decode" if check_images else "exists")
    problems = [f"{r.name}: {problem}" for r in mixture.reports for problem in r.problems]
    for line in problems[:limit]:
        console.print(line)
    for report in mixture.reports:
        for reason, number in report.reasons.items():
            console.print(f"{report.name}: {number:,} × {reason}")
        if report.expected_rows not in (None, report.rows):
            console.print(
                f"{report.name}: {report.rows:,} rows; the mixture expects {report.expected_rows:,}"
            )
    console.width = max(console.width, WIDTH)
    console.print(kept_table(mixture))
    console.print(f"prepared in {mixture.folder}")
    if bad := sum(report.bad for report in mixture.reports):
        raise InputError(f"{file}: {count(bad, 'bad row')}.")
    if not len(mixture):
        raise InputError(f"{file} has no rows; expected at least one.")
    return mixture


def kept_table(mixture: "Mixture") -> Table:
    """What becomes of each source's rows, and how often each row comes in an epoch."""
    table = Table(title=f"{count(len(mixture), 'row')} kept", title_justify="left")
    columns = "source rows bad duplicates over_cap kept images text-only share passes/epoch"
    for name in columns.split():
        table.add_column(name.replace("_", " "), justify="left" if name == "source" else "right")
    sizes = [report.kept for report in mixture.reports]
    shares = mixture.weights or [size / max(len(mixture), 1) for size in sizes]
    for report, share in zip(mixture.reports, shares, strict=True):
        numbers = (report.rows, report.bad, report.duplicates, report.over_cap, report.kept)
        passes = share * len(mixture) / report.kept if report.kept else 0
        table.add_row(
            report.name, *(f"{n:,}" for n in numbers), f"{report.images:,}",
            f"{report.text_only:,}", f"{share:.6f}", f"{passes:.2f}",
        )  # fmt: skip
    return table


def validate_file(
    file: Path, image_root: Path | None, check_images: bool, limit: int
) -> Sequence[Row]:
    """Prints what is wrong with a data file, and its size; returns its rows.

    Raises:
        InputError: Something is wrong.
    """
    console = Console(highlight=False, markup=False, soft_wrap=True)
    reader = RowReader(file, image_root, problems=Problems(keep=limit))
    placed = list(reader)
    first_use = first_uses(placed)
    broken = undecodable(first_use, again=True) if check_images else {}
    good = [row for _, row in placed if broken.keys().isdisjoint(files(row))]
    problems = len(reader.problems) + len(broken)
    for problem in [*reader.problems.first, *broken.values()][:limit]:
        console.print(f"{file}, {problem}")
    if problems > limit:
        console.print(f"… and {problems - limit} more")
    size = max(len(good), 1)
    heard = sum(map(is_recording, first_use))
    sounds = f"{count(heard, 'distinct recording')}, " if heard else ""
    console.print(
        f"{file}: {count(len(good), 'good row')} of {count(reader.entries, 'entry', 'entries')}, "
        f"{count(len(first_use) - heard, 'distinct picture')}, "
        f"{sounds}{sum(not row.media for row in good)} text-only; on average "
        f"{sum(len(row.question.split()) for row in good) / size:.1f} words a question and "
        f"{sum(len(row.answer.split()) for row in good) / size:.1f} an answer"
    )
    if problems:
        raise InputError(f"{file}: {count(problems, 'problem')}.")
    if not good:
        raise InputError(f"{file} has no rows; expected at least one.")
    return good
