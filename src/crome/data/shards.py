"""Rows from shards as they stream by: WebDataset tars and Parquet files, on disk or object stores.

    shards: s3://bucket/train-*.tar     # or a list; whatever `datasets` opens
    rows: 1200000                       # how many there are: shards do not say
    buffer: 10000                       # rows among which the next one is drawn

A sample of a tar is a picture and a JSON file of one name, the latter an entry as
`crome.data.reader` reads it; a Parquet file has the fields of rows as columns and pictures with
their bytes.

Weaker than a mixture: nothing is checked before the run (bad rows are left out, counted and told),
the shuffle reaches no farther than the buffer and the order of the shards, a run that goes on reads
again what it had read, every process reads every row, and the order depends on the number of
loader processes.
"""

import io
import itertools
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import yaml
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from crome.data.problems import Problem, Problems, unknown_keys
from crome.data.reader import RowReader
from crome.errors import InputError, JobError
from crome.images import FORMATS, load_image
from crome.rows import Row

KINDS = {".tar": "webdataset", ".parquet": "parquet"}
PICTURES = ("jpg", "jpeg", "png", "webp", "image")  # names a sample may give its picture
PATIENCE = 1000  # bad samples one after the other before the shards are taken to be others

logger = logging.getLogger(__name__)


class ShardStream(IterableDataset[Row]):
    """Rows of shards, shuffled through a buffer; the same seed gives the same order.

    Args:
        files: Names, patterns or URLs of tar files or Parquet files, all of one kind.
        rows: How many rows they have, for the length of an epoch.
        epochs: The length is `epochs · rows`; the shards are read as often as that takes.
        seed: Of the shuffle, another one each time.
        buffer: Rows among which the next one is drawn.

    Attributes:
        problems: Of the samples left out, in this process.
    """

    fingerprint: str | None = None

    def __init__(
        self, files: list[str], rows: int, epochs: float = 1, seed: int = 0, buffer: int = 10_000
    ) -> None:
        endings = {Path(file).suffix for file in files}
        if len(endings) != 1 or not endings <= KINDS.keys():
            raise InputError(
                f"shards: found names ending in {', '.join(sorted(endings))!r}; expected all in "
                f"one of {', '.join(KINDS)}."
            )
        self.files, self.rows, self.epochs = files, rows, epochs
        self.seed, self.buffer = seed, buffer
        self.kind = KINDS[endings.pop()]
        self.problems = Problems(keep=20)
        self._picture: Image.Image | None = None

    def __len__(self) -> int:
        return max(1, round(self.epochs * self.rows))

    def __iter__(self) -> Iterator[Row]:
        return itertools.islice(self._endless(), len(self))

    def _endless(self) -> Iterator[Row]:
        for number in itertools.count():
            before, read = len(self.problems), 0
            reader = RowReader(
                Path(self.files[0]), Path(), self._entries(number), self.problems, unique=False
            )
            for _, row in reader:
                read += 1
                yield row if self._picture is None else replace(row, images=(self._picture,))
            if len(self.problems) > before:
                logger.warning("%s: samples left out: %s", self.files, self.problems.summary())
            if not read:
                if get_worker_info() is not None:  # shards are dealt out to loader processes
                    return
                raise InputError(f"{self.files} have no usable rows; {self.problems.summary()}.")

    def _entries(self, number: int) -> Iterator[tuple[str, object]]:
        """Entries without their picture, which waits in `_picture` for the rows of the entry."""
        streak = 0
        for place, sample in enumerate(self._samples(number)):
            name = str(sample.get("__key__", sample.get("id", place)))
            try:
                self._picture, entry = self._split(sample, name)
                streak = 0
                yield f"sample {name}", entry
            except (InputError, ValueError, OSError) as error:
                streak += 1
                told = str(error).removesuffix(".")
                self.problems.add(Problem(f"sample {name}", "sample", told, "a readable sample"))
            if streak >= PATIENCE:
                raise JobError(
                    f"{streak} samples in succession cannot be read, last: "
                    f"{self.problems.first[-1]}. Are these the right shards?"
                )

    def _samples(self, number: int) -> Iterator[dict[str, Any]]:
        try:
            found = datasets.load_dataset(
                self.kind, data_files=self.files, split="train", streaming=True
            )
        except (FileNotFoundError, IndexError) as error:  # the latter of a pattern without files
            named = ", ".join(self.files)
            raise InputError(f"no shards {named}; expected existing files.") from error
        for column, feature in (found.features or {}).items():
            if isinstance(feature, datasets.Image):  # decoded here, with our own limits
                found = found.cast_column(column, datasets.Image(decode=False))
        try:
            yield from found.shuffle(seed=self.seed + number, buffer_size=self.buffer)
        except (OSError, EOFError) as error:
            raise JobError(
                f"the shards cannot be read any more: {error}. Start again when they are back; "
                "training resumes from its last checkpoint."
            ) from error

    @staticmethod
    def _split(sample: dict[str, Any], name: str) -> tuple[Image.Image | None, dict[str, Any]]:
        """The picture of a sample, and its entry."""
        told = sample.get("json")
        entry = json.loads(told) if isinstance(told, bytes | str) else told or sample
        entry = {key: value for key, value in entry.items() if value is not None}
        picture = None
        for key in PICTURES:
            content = sample.get(key)
            if isinstance(content, dict) and content.get("bytes"):
                with Image.open(io.BytesIO(content["bytes"]), formats=FORMATS) as opened:
                    picture = load_image(opened)
        for key in {*PICTURES, "__key__", "__url__", "json"}:
            entry.pop(key, None)
        if picture is not None and "conversations" in entry:  # its tag has its picture beside it
            entry["conversations"] = [
                turn | {"value": turn["value"].replace("<image>", "")}
                for turn in entry["conversations"]
            ]
        return picture, {"id": name} | entry


def read_shards(path: Path, epochs: float, seed: int) -> ShardStream | None:
    """The stream a YAML file describes; None where it describes a mixture.

    Raises:
        InputError: Something in it is wrong.
    """
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return None  # whoever reads the mixture says so
    if not isinstance(given, dict) or "shards" not in given:
        return None
    problems = unknown_keys(given, ["shards", "rows", "buffer"])
    names = [given["shards"]] if isinstance(given["shards"], str) else given["shards"]
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        problems.append(f"shards: found {names!r}; expected a name, pattern or URL, or several")
    for key in ("rows", "buffer"):
        number = given.get(key, 10_000 if key == "buffer" else None)
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            problems.append(f"{key}: found {number!r}; expected a whole number above 0")
    if problems:
        raise InputError(f"{path}: {'; '.join(problems)}.")
    files = [name if "://" in name else str(path.parent / name) for name in names]
    return ShardStream(files, given["rows"], epochs, seed, given.get("buffer", 10_000))
