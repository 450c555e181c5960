"""The running answers in slots, whose decoding steps a GPU replays; see `crome.model.slots`.

Shapes: B running rows, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from crome.model.slots import Slots
from crome.serving.engine.batch import Batch, Row
from crome.serving.engine.layers import Layers, ones_of, own_copies, tokens_of
from crome.serving.engine.protocol import EngineModel


class SlottedBatch:
    """The running rows, row i in slot i; it does what `Batch` does.

    Args:
        model: Whose language model decodes.
        slots: Of that language model, used by nobody else.
    """

    def __init__(self, model: EngineModel, slots: Slots) -> None:
        self.model = model
        self.rows: list[Row] = []
        self._slots = slots
        self._filled: list[int] = []  # tokens of each row

    def join(self, rows: Sequence[tuple[Row, Layers]]) -> None:
        """Puts rows into free slots."""
        if not rows:
            return
        begin = len(self.rows)
        self._slots.reserve(
            begin + len(rows), max(r.tokens for r in [*self.rows, *(row for row, _ in rows)]),
            rows[0][1], begin,
        )  # fmt: skip
        for row, layers in rows:
            self._slots.put(layers, ones_of(layers).bool(), len(self.rows))
            self.rows.append(row)
            self._filled.append(tokens_of(layers))

    def keep(self, chosen: Sequence[int]) -> None:
        """Drops all other rows; the last ones move into their slots."""
        kept = set(chosen)
        for slot in range(len(self.rows) - 1, -1, -1):
            if slot in kept:
                continue
            last = len(self.rows) - 1
            if slot != last:
                self._slots.move(last, slot, self._filled[last])
                self.rows[slot], self._filled[slot] = self.rows[last], self._filled[last]
            self.rows.pop()
            self._filled.pop()

    def part(self, chosen: Sequence[int]) -> Batch:
        """Some of the rows in a batch that decodes without slots."""
        part = Batch(self.model)
        part.join([(self.rows[i], self._layers(i)) for i in chosen])
        return part

    def _layers(self, row: int) -> Layers:
        return own_copies(self._slots.layers(row, self._filled[row]))

    def step(self) -> Tensor:
        """Feeds each row its last token; returns the logits (B, V) of the next ones."""
        ids = torch.tensor([row.last for row in self.rows])
        logits = self._slots.step(ids, max(self._filled))
        self._filled = [filled + 1 for filled in self._filled]
        return logits
