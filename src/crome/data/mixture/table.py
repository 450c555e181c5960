"""Rows on disk: an Arrow file that is mapped into memory, with keys of images and texts beside it.

A row takes no memory until it is read. `datasets.Dataset.from_file` opens `rows.arrow`, too.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crome.errors import InputError
from crome.rows import Place, Row, Video

BATCH = 10_000
TEXT = pa.string()
VIDEO = pa.struct([("files", pa.list_(TEXT)), ("frames", pa.bool_())])
PLACE = pa.struct([("medium", TEXT), ("turn", pa.int32()), ("offset", pa.int32())])
SCHEMA = pa.schema(
    [
        ("images", pa.list_(TEXT)),
        ("question", TEXT),
        ("answer", TEXT),
        ("id", TEXT),
        ("choices", pa.list_(TEXT)),
        ("history", pa.list_(pa.list_(TEXT))),
        ("kind", TEXT),
        ("videos", pa.list_(VIDEO)),
        ("audios", pa.list_(TEXT)),
        ("places", pa.list_(PLACE)),
        ("system", TEXT),
        ("answers", pa.list_(TEXT)),
    ]
)


class RowTable(Sequence[Row]):
    """Rows of a table, read from disk one at a time.

    Args:
        folder: That `write_table` filled.
        kept: Numbers of the rows to show; None for all.
    """

    def __init__(self, folder: Path, kept: NDArray[np.uint32] | None = None) -> None:
        self.folder = folder
        with self._damage_named():
            self.dataset = datasets.Dataset.from_file(str(folder / "rows.arrow"))
        self.kept = kept

    @contextmanager
    def _damage_named(self) -> Iterator[None]:
        """Says what to do where a table is not as it was written.

        Raises:
            InputError: In place of what its reader trips over.
        """
        try:
            yield
        # Text that is no text is a ValueError; a number of a row that is none an IndexError.
        except (pa.ArrowException, OSError, ValueError, IndexError, TypeError, KeyError) as error:
            raise InputError(
                f"{self.folder / 'rows.arrow'} is damaged ({type(error).__name__}); remove "
                f"{self.folder}, and it is made anew."
            ) from error

    def image_keys(self) -> NDArray[np.uint64]:
        """Keys (rows,) of the rows' images, 0 for a row without."""
        keys = np.load(self.folder / "images.npy", mmap_mode="r")
        return np.asarray(keys if self.kept is None else keys[self.kept])

    def __len__(self) -> int:
        return len(self.dataset) if self.kept is None else len(self.kept)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        if not 0 <= number < len(self):
            raise IndexError(number)
        with self._damage_named():
            return self._row(number if self.kept is None else int(self.kept[number]))

    def _row(self, number: int) -> Row:
        row = self.dataset[number]
        return Row(
            images=tuple(map(Path, row["images"])),
            question=row["question"],
            answer=row["answer"],
            id=row["id"],
            choices=None if row["choices"] is None else tuple(row["choices"]),
            history=tuple((question, answer) for question, answer in row["history"]),
            kind=row["kind"],
            videos=tuple(
                tuple(map(Path, video["files"])) if video["frames"] else Path(video["files"][0])
                for video in row["videos"]
            ),
            audios=tuple(map(Path, row["audios"])),
            places=tuple(Place(**place) for place in row["places"]),
            system=row["system"],
            answers=tuple(row["answers"]),
        )


class TableWriter:
    """Writes rows, and their keys, to a folder.

    Args:
        folder: That exists.
        by_content: Whether two pictures are the same that have the same bytes, or only those with
            the same name.
        swapped: Whether templates give the answer and have the question learnt. Such a row is no
            duplicate of the same row in its usual order.
    """

    def __init__(self, folder: Path, by_content: bool = False, swapped: bool = False) -> None:
        self.folder, self.by_content, self.swapped = folder, by_content, swapped
        self.file = pa.ipc.new_stream(str(folder / "rows.arrow"), SCHEMA)
        self.images, self.texts = array("Q"), array("Q")
        self._contents = lru_cache(maxsize=2**16)(content)

    def write(self, rows: Sequence[Row]) -> None:
        """Appends a batch of rows."""
        for row in rows:
            image = self.image_key(row)
            turns = [text for turn in row.history for text in turn]
            turns += [] if row.system is None else ["system", row.system]
            turns += [row.answer, row.question] if self.swapped else [row.question, row.answer]
            self.images.append(image)
            self.texts.append(digest(str(image), *turns))
        columns = {
            "images": [[str(image) for image in row.images] for row in rows],
            "question": [row.question for row in rows],
            "answer": [row.answer for row in rows],
            "id": [row.id for row in rows],
            "choices": [None if row.choices is None else list(row.choices) for row in rows],
            "history": [[list(turn) for turn in row.history] for row in rows],
            "kind": [row.kind for row in rows],
            "videos": [
                [
                    {"files": files(video), "frames": isinstance(video, tuple)}
                    for video in row.videos
                ]
                for row in rows
            ],
            "audios": [[str(audio) for audio in row.audios] for row in rows],
            "places": [[place._asdict() for place in row.places] for row in rows],
            "system": [row.system for row in rows],
            "answers": [list(row.answers) for row in rows],
        }
        self.file.write_batch(pa.RecordBatch.from_pydict(columns, schema=SCHEMA))

    def image_key(self, row: Row) -> int:
        """A number for the images and other media of a row, 0 for none."""
        names = [str(image) for image in row.images]
        names += [name for video in row.videos for name in files(video)]
        names += [str(audio) for audio in row.audios]
        if not names:
            return 0
        return digest(*(map(self._contents, names) if self.by_content else names))

    def close(self) -> None:
        """Finishes the files."""
        self.file.close()
        for name, numbers in (("images", self.images), ("texts", self.texts)):
            np.save(self.folder / f"{name}.npy", np.frombuffer(numbers, dtype=np.uint64))


def files(video: Video) -> list[str]:
    """The file of a video, or those of its frames."""
    return [str(file) for file in (video if isinstance(video, tuple) else (video,))]


def content(path: str) -> str:
    """A digest of a file.

    Raises:
        InputError: It cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return blake2b(file.read(), digest_size=16).hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error


def digest(*texts: str) -> int:
    """A 64-bit number for texts, never 0.

    The chance that any two of eight million rows have the same number is one in half a million.
    """
    joined = "\x00".join(texts).encode(errors="surrogatepass")
    return int.from_bytes(blake2b(joined, digest_size=8).digest(), "little") or 1


def batches(rows: Iterable[Any], size: int = BATCH) -> Iterable[list[Any]]:
    """Lists of up to `size`, the last shorter."""
    batch: list[Any] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
