"""A mixture to train on: its rows are mapped into memory, balanced, and worded by templates."""

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from crome.data.mixture.file import Settings
from crome.data.mixture.table import RowTable
from crome.data.sampler import Layout, Sampler, lay_out, square_root_weights
from crome.data.stream import RowStream
from crome.errors import InputError
from crome.rows import Row
from crome.storage import build_folder, is_whole, mark_used

LOOKS = 256  # pictures looked for when a prepared mixture is opened


@dataclass
class Report:
    """What became of a source.

    Attributes:
        name: Name of the source.
        entries: That were read.
        bad: How many of them were left out because something was wrong.
        rows: Good rows: a conversation has several.
        duplicates: Rows left out since image and text were those of another row.
        over_cap: Rows left out since their image had enough others.
        kept: Rows to train on.
        images: Distinct images of the good rows.
        text_only: Good rows without image.
        reasons: What was wrong, with numbers.
        problems: The first problems.
        expected_rows: As the mixture has it.
    """

    name: str
    entries: int = 0
    bad: int = 0
    rows: int = 0
    duplicates: int = 0
    over_cap: int = 0
    kept: int = 0
    images: int = 0
    text_only: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    expected_rows: int | None = None


class Mixture(Sequence[Row]):
    """The rows that a mixture keeps, numbered through its sources.

    Args:
        settings: Settings of the mixture.
        folder: What `crome.data.mixture.build` made.

    Attributes:
        fingerprint: Stands for the settings and the files they name.
        reports: What became of each source.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        self.settings, self.folder = settings, folder
        self.fingerprint = folder.name
        self.reports = [Report(**report) for report in index["reports"]]
        self.tables = [
            RowTable(folder.parent / name, np.load(folder / f"kept-{n}.npy", mmap_mode="r"))
            for n, name in enumerate(index["tables"])
        ]
        self.starts = np.cumsum([0, *map(len, self.tables)]).tolist()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        if not 0 <= number < len(self):
            raise IndexError(number)
        source = self.source(number)
        return self.tables[source][number - self.starts[source]]

    def source(self, number: int) -> int:
        """Which source a row is of."""
        return bisect_right(self.starts, number) - 1

    @property
    def weights(self) -> list[float] | None:
        """Shares of the sources; None where every row comes once an epoch."""
        if self.settings.balance == "size" or not len(self):
            return None
        roots = square_root_weights([len(table) for table in self.tables])
        found = [w * s.weight for w, s in zip(roots, self.settings.sources, strict=True)]
        return [w / sum(found) for w in found]

    def stream(self, epochs: float = 1, questions_per_image: int = 4, seed: int = 0) -> RowStream:
        """The rows in training order, balanced and in the words of their templates.

        Args:
            epochs: The length in numbers of rows kept.
            questions_per_image: Rows of one image kept together.
            seed: Seed of order and wording.
        """
        weights = self.weights
        layouts = self.layouts(questions_per_image, joined=weights is None)
        sampler = Sampler(layouts, questions_per_image, seed, weights)
        return RowStream(
            self, epochs, questions_per_image, seed, sampler, self.word, self.fingerprint
        )

    def word(self, number: int, row: Row, draw: int) -> Row:
        """A row in one of the forms of its source's templates."""
        pool = self.settings.sources[self.source(number)].templates
        return row if pool is None else pool.word(row, draw)

    def layouts(self, group: int, joined: bool) -> list[Layout]:
        """Groups of rows on one image, of each source or of all rows; made once, then mapped."""
        name = f"{self.folder.name}-{'joined' if joined else 'apart'}-{group}"
        folder = self.folder.with_name(name)
        if not is_whole(folder):
            with FileLock(f"{folder}.lock"):
                if not is_whole(folder):
                    build_folder(folder, lambda staging: self._lay_out(staging, joined, group))
        mark_used(folder)
        shapes = json.loads((folder / "layouts.json").read_text())
        return [
            Layout(np.load(folder / f"{number}.npy", mmap_mode="r"), *shape)
            for number, shape in enumerate(shapes)
        ]

    def _lay_out(self, folder: Path, joined: bool, group: int) -> None:
        images = [table.image_keys() for table in self.tables]
        parts = [np.concatenate(images)] if joined else images
        shapes = []
        for number, part in enumerate(parts):
            layout = lay_out(part, group)
            np.save(folder / f"{number}.npy", layout.rows)
            shapes.append(layout[1:])
        (folder / "layouts.json").write_text(json.dumps(shapes))

    def look(self) -> None:
        """Looks for a few hundred pictures all over the mixture, since a disk may have gone away.

        Raises:
            InputError: Some are not there.
        """
        numbers = np.linspace(0, len(self) - 1, min(LOOKS, len(self)), dtype=int)
        pictures = {image for number in numbers for image in self[int(number)].images}
        absent = sorted(str(image) for image in pictures if not Path(image).is_file())
        if absent:
            raise InputError(
                f"{len(absent)} of {len(pictures)} pictures looked for are not there any more, "
                f"first {absent[0]}; is a disk away? They were when the mixture was prepared."
            )
