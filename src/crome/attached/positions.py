"""Positions of tokens in models that number a picture's tokens in a plane: each row's as alone.

Shapes: B rows, T tokens, R axes of positions (3, or 4 where text has an axis of its own).
"""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from crome.attached.batches import MediaBatch
from crome.model.batch import on_host

FORWARD = {"second_per_grids": "video_second_per_grid", "audio_seqlens": "feature_attention_mask"}
"""What positions hang on where a model's `forward` and its processor have another name for it."""


class Positions:
    """The positions that a model gives its rows.

    Args:
        vlm: A vision-language model of transformers.

    Attributes:
        inputs: What they hang on, by the names of the function that works them out; empty where
            tokens are numbered plainly.
    """

    def __init__(self, vlm: PreTrainedModel) -> None:
        self.rope = getattr(getattr(vlm, "model", vlm), "get_rope_index", None)
        taken = () if self.rope is None else inspect.signature(self.rope).parameters
        self.inputs = frozenset(taken)
        takes = inspect.signature(vlm.forward).parameters
        self.names = {n: FORWARD.get(n, n) for n in taken if FORWARD.get(n, n) in takes}
        self._as_alone: set[frozenset[str]] = set()

    def grids(self, media_batch: MediaBatch, rows: list[int] | None = None) -> dict[str, Tensor]:
        """What positions hang on besides the text.

        Args:
            media_batch: What the rows of a batch show.
            rows: Which of them; None for all, in order.
        """
        sets = media_batch.index.tolist()
        chosen = sets if rows is None else [sets[row] for row in rows]
        media = [media_batch.media[number] for number in chosen if number >= 0]
        found = {}
        for name, other in self.names.items():
            given = [one[name] if name in one else one.get(other) for one in media]
            values = [torch.as_tensor(value) for value in given if value is not None]
            if values:
                found[name] = torch.cat(values)
        return found

    def taken(self, grids: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same as `forward` takes it; of a mask of recordings it reads the sum of each row."""
        found = {self.names[name]: value for name, value in grids.items()}
        if "audio_seqlens" in grids:
            found[FORWARD["audio_seqlens"]] = grids["audio_seqlens"][:, None]
        return found

    def of_rows(
        self, ids: Tensor, mask: Tensor, media_batch: MediaBatch, text: Mapping[str, Tensor]
    ) -> Tensor | None:
        """(B, T) positions of each row alone, or (R, B, T) where a model has them.

        Args:
            ids: (B, T) padded on either side.
            mask: (B, T).
            media_batch: What the rows show.
            text: What stands beside each token.

        Returns:
            None where a model has positions of another form.
        """
        device = ids.device
        if device.type != "cpu":  # models ask for the numbers of each row and picture
            found = self.of_rows(*self._fetched(ids, mask, media_batch, text))
            return None if found is None else found.to(device)
        grids = [self.grids(media_batch, [row]) for row in range(len(ids))]
        if not any(grids):
            return torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)
        plain = (mask.cumsum(1) - 1).clamp(min=0)
        rows: list[Tensor | None] = []
        for number, grid in enumerate(grids):
            own = slice(number, number + 1)
            beside = {name: value[own] for name, value in text.items()}
            rows.append(self._called(ids[own], mask[own], beside, grid) if grid else None)
        known = [row for row in rows if row is not None]
        if any(row.ndim != 3 or row.shape[1:] != (1, ids.shape[1]) for row in known):
            return None
        axes = len(known[0])
        return torch.cat(
            [plain[i].expand(axes, 1, -1) if row is None else row for i, row in enumerate(rows)], 1
        )

    def _fetched(
        self, ids: Tensor, mask: Tensor, media_batch: MediaBatch, text: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, MediaBatch, dict[str, Tensor]]:
        """What positions hang on, on the CPU; numbers of tokens and grids in one transfer."""
        named: dict[tuple[int | None, str], Tensor] = {
            (None, name): value for name, value in text.items() if name in self.inputs
        }
        for number, one in enumerate(media_batch.media):
            named |= {(number, name): one[name] for name in self.inputs & one.keys()}
        whole = {key: value for key, value in named.items() if not value.is_floating_point()}
        known: list[Any] = on_host(ids, mask, *whole.values())
        found = {key: value.cpu() for key, value in named.items() if key not in whole}
        found |= zip(whole, known[2:], strict=True)
        media = [
            {name: value for (owner, name), value in found.items() if owner == number}
            for number in range(len(media_batch.media))
        ]
        beside = {name: value for (owner, name), value in found.items() if owner is None}
        return known[0], known[1], replace(media_batch, media=media), beside

    def own(
        self, ids: Tensor, mask: Tensor, media_batch: MediaBatch | None, text: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """`position_ids` as each row has alone, where the model would give others in a batch.

        Some families number pictures through all rows of a batch, so that the second row's first
        picture would be its second. Others are asked once whether they do.

        Args:
            ids: As in `of_rows`, as are the others.
            mask: As above.
            media_batch: None for text alone.
            text: As above.
        """
        if media_batch is None or self.rope is None or int((media_batch.index >= 0).sum()) < 2:
            return {}
        grids = self.grids(media_batch)
        if not grids or frozenset(grids) in self._as_alone:
            return {}
        host = self._fetched(ids, mask, media_batch, text)
        alone, together = self.of_rows(*host), self._called(*host[:2], host[3], self.grids(host[2]))
        mask = host[1]
        if alone is None or alone.shape != together.shape:
            return {}
        if torch.equal(alone * mask, together * mask):
            self._as_alone.add(frozenset(grids))
            return {}
        return {"position_ids": alone.to(ids.device)}

    def _called(
        self, ids: Tensor, mask: Tensor, text: Mapping[str, Tensor], grids: Mapping[str, Tensor]
    ) -> Tensor:
        """What the model's own function says of rows."""
        assert self.rope is not None
        beside = {name: value for name, value in text.items() if name in self.inputs}
        found: Tensor = self.rope(input_ids=ids, attention_mask=mask, **beside, **grids)[0]
        return found
