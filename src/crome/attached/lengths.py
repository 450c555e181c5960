"""How many positions the rows of a batch take, and models that keep positions on themselves.

Shapes: B rows, T tokens.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from crome.attached.batches import MediaBatch
from crome.model.families import context_length, require_room

_LOCKS: WeakKeyDictionary[nn.Module, RLock] = WeakKeyDictionary()
_LOCK = RLock()


def lengths_of(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    media_batch: MediaBatch | None,
    text: Mapping[str, Tensor],
) -> Tensor:
    """(B,) positions that rows take."""
    found = None if media_batch is None else model.positions.of_rows(ids, mask, media_batch, text)
    if found is None or found.ndim < 3:
        return mask.sum(1)
    longest: Tensor = found.masked_fill(mask == 0, -1).amax((0, 2)) + 1
    return longest


def require_positions(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    media_batch: MediaBatch | None,
    text: Mapping[str, Tensor],
    new_tokens: int = 0,
) -> None:
    """Refuses rows that are longer than the language model has positions for.

    Positions are worked out only where there are more tokens than positions: they are never more.

    Raises:
        InputError: With the longest.
    """
    config = model.language_model.config
    limit = context_length(config)
    if limit is not None and int(mask.sum(1).max()) + new_tokens > limit:
        require_room(config, lengths_of(model, ids, mask, media_batch, text), new_tokens)


@contextmanager
def one_at_a_time(model: Any) -> Iterator[None]:
    """Keeps other threads from a model that keeps positions on itself between its steps."""
    if model.positions.rope is None:
        yield
        return
    with _LOCK:
        lock = _LOCKS.setdefault(model.vlm, RLock())
    with lock:
        yield
