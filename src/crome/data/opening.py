"""Opens whatever `--data` names as rows in training order: a file, a mixture, or shards."""

import logging
from collections.abc import Sequence
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Literal

from crome.data.mixture.build import Check, build_mixture
from crome.data.mixture.file import SUFFIXES
from crome.data.mixture.mixture import Mixture
from crome.data.reader import read_rows
from crome.data.shards import ShardStream, read_shards
from crome.data.stream import RowStream
from crome.errors import InputError
from crome.rows import Row

logger = logging.getLogger(__name__)


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
    """A mixture to train on; see `build_mixture`.

    Bad rows are an error, or are left out and counted in the log.

    Raises:
        InputError: See `build_mixture`; or rows are bad, a source has none, or pictures have gone.
        JobError: See `build_mixture`.
    """
    mixture = build_mixture(path, root, check)
    for report in mixture.reports:
        reasons = "; ".join(f"{number:,} × {reason}" for reason, number in report.reasons.items())
        if report.bad and on_bad_row == "raise":
            raise InputError(
                f"{path}, {report.name}: {report.bad:,} bad of {report.entries:,} ({reasons}), "
                f"first {report.problems[0].removesuffix('.')}. `crome validate {path}` says more; "
                "--on_bad_row skip leaves them out."
            )
        if report.bad:
            logger.warning(
                "%s, %s: skipped %d of %d: %s",
                path, report.name, report.bad, report.entries, reasons,
            )  # fmt: skip
        if not report.kept:
            raise InputError(
                f"{path}, {report.name}: no row is left of {report.rows:,}; take it out of the "
                f"mixture. `crome validate {path}` says why."
            )
    if check != "none":
        mixture.look()
    return mixture


def content_fingerprint(data: Path, rows: Sequence[Row]) -> str:
    """A name for the content of a data file, whenever and wherever it was written.

    A folder of `Dataset.save_to_disk` may hold many gigabytes of pictures, so the library's own
    fingerprint stands for it. A data set of the hub is no file here; its rows stand for it.
    """
    if not data.exists():
        digest = blake2b(digest_size=10)
        for row in rows:
            text = repr((row.id, row.question, row.answer, row.history, row.system))
            digest.update(text.encode())
        return f"hub-{digest.hexdigest()}"
    with (data / "state.json" if data.is_dir() else data).open("rb") as file:
        return f"file-{file_digest(file, lambda: blake2b(digest_size=10)).hexdigest()}"
