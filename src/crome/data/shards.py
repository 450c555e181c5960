"""Rows from shards as they stream by: WebDataset tars and Parquet files, on disk or object stores.

    shards: s3://bucket/train-*.tar     # or a list; whatever `datasets` opens
    rows: 1200000                       # how many there are: shards do not say
    buffer: 10000                       # rows among which the next one is drawn

A sample of a tar is the files of one name: pictures in any of the formats that are read elsewhere,
and a JSON file, which is an entry as `crome.data.reader` reads it, or a text file with a caption. A
Parquet file has the fields of rows as columns and pictures with their bytes.

Weaker than a mixture: nothing is checked before the run (bad rows are left out, counted and told),
the shuffle reaches no farther than the buffer and the order of the shards, a run that goes on reads
again what it had read, every process reads every row, and the order depends on the number of
loader processes. Videos and recordings in shards are refused: each would be a file on the disk.
"""

import itertools
import logging
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
from datasets.data_files import DataFilesPatternsDict
from datasets.download.streaming_download_manager import StreamingDownloadManager
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from crome.config_file import read_config
from crome.data.entries import decode
from crome.data.media import media_key, medium_in
from crome.data.problems import Problem, Problems, show, unknown_keys
from crome.data.reader import RowReader
from crome.errors import InputError, JobError
from crome.images import load_image
from crome.rows import Row

KINDS = {".tar": "webdataset", ".parquet": "parquet"}
CAPTIONS = ("txt", "text", "caption")  # endings of a caption beside a picture
PATIENCE = 1000  # bad samples one after the other before the shards are taken to be others

logger = logging.getLogger(__name__)


class ShardStream(IterableDataset[Row]):
    """Rows of shards, shuffled through a buffer; the same seed gives the same order.

    Args:
        files: Names, patterns or URLs of tar files or Parquet files, all of one kind.
        rows: How many rows they have, for the length of an epoch.
        epochs: The length is `epochs · rows`; the shards are read as often as that takes.
        seed: Seed of the shuffle, which differs in each pass.
        buffer: Rows among which the next one is drawn.

    Attributes:
        problems: What was wrong with the samples that this process left out.
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
        self._looking: Iterator[Row] | None = None
        self._first: list[Row] = []

    def __len__(self) -> int:
        return max(1, round(self.epochs * self.rows))

    def __iter__(self) -> Iterator[Row]:
        return itertools.islice(self._endless(), len(self))

    def __getitem__(self, position: int) -> Row:
        """One of the first rows, for a look at the data; what trains reads them in succession."""
        if self._looking is None:
            self._looking = iter(self)
        while len(self._first) <= position:
            self._first.append(next(self._looking))
        return self._first[position]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_looking": None, "_first": []}

    def _endless(self) -> Iterator[Row]:
        for number in itertools.count():
            before, read = len(self.problems), 0
            reader = RowReader(
                Path(self.files[0]), Path(), self._entries(number), self.problems, unique=False
            )
            for _, row in reader:
                read += 1
                yield row
            if len(self.problems) > before:
                logger.warning("%s: samples left out: %s", self.files, self.problems.summary())
            if not read:
                if get_worker_info() is not None:  # shards are dealt out to loader processes
                    return
                raise InputError(f"{self.files} have no usable rows; {self.problems.summary()}.")

    def _entries(self, number: int) -> Iterator[tuple[str, object]]:
        """Entries of readable samples, with their pictures opened."""
        streak = 0
        for place, sample in enumerate(self._samples(number)):
            name = str(sample.get("__key__", sample.get("id", place)))
            try:
                entry = tar_entry(sample, name) if self.kind == "webdataset" else unfolded(sample)
                streak = 0
                yield f"sample {name}", {"id": name} | entry
            except (InputError, ValueError, OSError, RecursionError) as error:
                streak += 1
                found = str(error).removesuffix(".")
                self.problems.add(Problem(f"sample {name}", "sample", found, "a readable sample"))
            if streak >= PATIENCE:
                raise JobError(
                    f"{streak} samples in succession cannot be read, last: "
                    f"{self.problems.first[-1]}. Are these the right shards?"
                )

    def _samples(self, number: int) -> Iterator[dict[str, Any]]:
        named = ", ".join(self.files)
        try:
            found = self._dataset()
        except (FileNotFoundError, IndexError) as error:  # the latter of a pattern without files
            raise InputError(f"no shards {named}; expected existing files.") from error
        except (OSError, ValueError) as error:  # as Arrow's errors are
            raise InputError(f"the shards {named} cannot be read: {error}.") from error
        try:
            yield from found.shuffle(seed=self.seed + number, buffer_size=self.buffer)
        except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error) as error:
            raise JobError(
                f"the shards cannot be read any more: {error}. Start again when they are back; "
                "training resumes from its last checkpoint."
            ) from error

    def _dataset(self) -> Any:
        """The samples in the shards' order, to be shuffled; pictures are not decoded yet."""
        if self.kind == "webdataset":
            # The library's own loader takes the fields of the first samples for those of all.
            files = DataFilesPatternsDict.from_patterns({"train": self.files}).resolve("")["train"]
            if not files:
                raise FileNotFoundError
            return datasets.IterableDataset.from_generator(
                tar_samples, gen_kwargs={"files": list(map(str, files))}
            )
        found = datasets.load_dataset(
            self.kind, data_files=self.files, split="train", streaming=True
        )
        for column, feature in (found.features or {}).items():
            if isinstance(feature, datasets.Image | datasets.Audio | datasets.Video):
                found = found.cast_column(column, type(feature)(decode=False))
        return found


def tar_samples(files: list[str]) -> Iterator[dict[str, Any]]:
    """The samples of tars: ending in small letters → bytes, and the name under `__key__`."""
    for file in files:
        sample: dict[str, Any] = {}
        for name, member in StreamingDownloadManager().iter_archive(file):
            folder, _, base = name.rpartition("/")
            key, _, ending = base.partition(".")
            key = f"{folder}/{key}" if folder else key
            if sample and (sample["__key__"] != key or ending.lower() in sample):
                yield sample
                sample = {}
            sample |= {"__key__": key, ending.lower(): member.read()}
        if sample:
            yield sample


def tar_entry(sample: dict[str, Any], name: str) -> dict[str, Any]:
    """The entry of a sample of a tar, with its pictures.

    Raises:
        InputError: It has a video or recording, or a picture cannot be decoded.
        ValueError: Its JSON cannot be read.
    """
    pictures: list[Image.Image] = []
    entry: dict[str, Any] = {}
    for ending, content in sample.items():
        medium = media_key("", f"x.{ending}")
        if medium == "image":
            pictures.append(load_image(content))
        elif medium is not None:
            raise InputError(f"it has the {medium} {name}.{ending}; shards may have pictures alone")
        elif ending.endswith("json"):
            entry |= json_object(content)
        elif ending in CAPTIONS:
            entry.setdefault("caption", content.decode("utf-8"))
    if not entry and not pictures:
        raise InputError(f"it has neither a picture nor an entry, but {', '.join(sample)}")
    if not pictures:
        return entry
    # The names that the entry has for them are those of files that are not here.
    named = [key for key, value in entry.items() if media_key(str(key), value) == "image"]
    return {key: value for key, value in entry.items() if key not in named} | {"image": pictures}


def json_object(content: bytes | str) -> dict[str, Any]:
    """What JSON says.

    Raises:
        ValueError: It says no object, or cannot be read.
    """
    decoded = decode(content if isinstance(content, bytes) else content.encode(), "its JSON")
    if isinstance(decoded, Problem):
        raise ValueError(str(decoded))
    if not isinstance(decoded, dict):
        raise ValueError(f"its JSON is {show(decoded)}, and no object")
    return decoded


def unfolded(sample: dict[str, Any]) -> dict[str, Any]:
    """The entry of a row of Parquet; of a tar made into Parquet that is what its JSON says."""
    entry: dict[str, Any] = opened(sample)
    endings = [key for key, value in entry.items() if isinstance(value, Image.Image)
               and media_key("", f"x.{key}") == "image"]  # fmt: skip
    pictures = [entry.pop(key) for key in endings]
    inner = entry.pop("json", {})
    entry |= json_object(inner) if isinstance(inner, bytes | str) else inner
    for key in ("__key__", "__url__"):
        entry.pop(key, None)
    return entry | ({"image": pictures} if pictures else {})


def opened(value: Any) -> Any:
    """A value of a Parquet file with every picture in it opened, and without empty columns."""
    if isinstance(value, dict):
        if isinstance(value.get("bytes"), bytes) and value.keys() <= {"bytes", "path"}:
            return load_image(value["bytes"])
        return {key: opened(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, bytes) and medium_in(value) == "image":
        return load_image(value)
    return [opened(inner) for inner in value] if isinstance(value, list) else value


def read_shards(path: Path, epochs: float, seed: int) -> ShardStream | None:
    """The stream a YAML file describes; None where it describes a mixture.

    Raises:
        InputError: Something in it is wrong.
    """
    given = read_config(path)
    if "shards" not in given:
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
