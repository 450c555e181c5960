"""The order of training rows, as a pure function of (seed, position)."""

import random
from collections import defaultdict
from collections.abc import Hashable, Sequence

from PIL import Image
from torch.utils.data import Dataset

from crome.data.rows import Row
from crome.data.scenes import Scenes


class RowStream(Dataset[Row]):
    """Rows in training order, for a loader that reads positions from 0 on.

    Each epoch is shuffled anew by images: up to `questions_per_image` rows of an image stay
    together, so that a batch computes what they share once; the other questions on that image come
    elsewhere in the epoch. Position i is the same row whatever was read before, so a resumed run
    goes on exactly.

    Args:
        rows: The training rows.
        epochs: How often each row is seen; the length is `epochs · len(rows)`.
        questions_per_image: Rows of one image kept together; 1 shuffles rows freely.
        seed: Of the shuffle.
    """

    def __init__(
        self, rows: Sequence[Row], epochs: float = 1, questions_per_image: int = 4, seed: int = 0
    ) -> None:
        self.rows = rows
        self.epochs = epochs
        self.questions_per_image = questions_per_image
        self.seed = seed
        self._orders: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return max(1, round(self.epochs * len(self.rows)))

    def __getitem__(self, position: int) -> Row:
        if position >= len(self):
            raise IndexError(position)
        epoch, place = divmod(position, len(self.rows))
        if epoch not in self._orders:
            self._orders = {epoch: self._shuffled(epoch)}
        return self.rows[self._orders[epoch][place]]

    def _shuffled(self, epoch: int) -> list[int]:
        generator = random.Random(f"{self.seed}/{epoch}")
        by_image: dict[Hashable, list[int]] = defaultdict(list)
        for number, row in enumerate(self.rows):
            by_image[self._key(row, number)].append(number)
        groups = []
        for numbers in by_image.values():
            generator.shuffle(numbers)
            size = self.questions_per_image
            groups += [numbers[i : i + size] for i in range(0, len(numbers), size)]
        generator.shuffle(groups)
        return [number for group in groups for number in group]

    @staticmethod
    def _key(row: Row, number: int) -> Hashable:
        if not row.images:
            return number
        return tuple(id(i) if isinstance(i, Image.Image) else i for i in row.images)


class SceneStream(Dataset[list[Row]]):
    """Generated scenes in order: item i is the questions of picture i.

    Args:
        scenes: The generator.
    """

    def __init__(self, scenes: Scenes) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, position: int) -> list[Row]:
        return [
            Row((row["image"],), row["question"], row["answer"], row["id"], kind=row["kind"])
            for row in self.scenes[position]
        ]
