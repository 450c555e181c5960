"""Batches of an attached model: padding on either side, options behind prompts, means of losses.

Shapes: B rows, T tokens, N options, A tokens of the longest.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from crome.attached.encoding import Encoded, Visual
from crome.errors import InputError
from crome.model.losses import IGNORED


@dataclass(frozen=True)
class Shown:
    """What the rows of a batch show, and through which adapters.

    Attributes:
        media: Tensors of the distinct sets of media, from the processor.
        index: (B,) the set each row shows, -1 for none.
        features: Frozen features of the sets, None in it or itself where they are not known.
        adapter_names: An adapter for each row.
    """

    media: Sequence[Mapping[str, Tensor]]
    index: Tensor
    features: Sequence[Visual | None] | None
    adapter_names: Sequence[str | None]

    @classmethod
    def split(
        cls, batch: Mapping[str, Any], rows: int, active: str | None
    ) -> tuple[Self | None, dict[str, Tensor]]:
        """What a batch shows, None for text alone, and what its model reads beside each token.

        Args:
            batch: Without ids and mask.
            rows: B.
            active: The adapter of rows that name none.
        """
        rest = {name: value for name, value in batch.items() if value is not None}
        media, index = rest.pop("media", None), rest.pop("media_index", None)
        features, names = rest.pop("features", None), rest.pop("adapter_names", None)
        names = [active] * rows if names is None else list(names)
        if len(names) != rows:
            raise InputError(f"{len(names)} adapter names for {rows} rows; give one a row.")
        if index is None or not media or not (index >= 0).any():
            return None, rest
        if features is not None:
            features = [None if one is None else as_encoded(one) for one in features]
        return cls(media, index, features, names), rest

    def rows(self, numbers: Tensor) -> Self:
        """What some of the rows show, or rows again."""
        names = [self.adapter_names[number] for number in numbers.tolist()]
        return replace(self, index=self.index[numbers.to(self.index.device)], adapter_names=names)


def as_encoded(features: Mapping[str, Any]) -> Visual:
    """Features by modality, which may come as plain dictionaries."""
    return {modality: Encoded(**encoded) for modality, encoded in features.items()}


def is_beside(value: Any, input_ids: Tensor) -> bool:
    """Whether a value is read beside each token."""
    return isinstance(value, Tensor) and value.shape == input_ids.shape


def left_padded(
    input_ids: Tensor, attention_mask: Tensor, beside: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Rows moved to the right, so that new tokens follow the last one of each."""
    if attention_mask[:, -1].all():
        return input_ids, attention_mask, dict(beside)
    steps = torch.arange(input_ids.shape[1], device=input_ids.device)
    shift = input_ids.shape[1] - last_real(attention_mask)[:, None]
    source = (steps - shift) % input_ids.shape[1]  # the padding comes to the front
    moved = {k: v.gather(1, source.to(v.device)) for k, v in beside.items()}
    return input_ids.gather(1, source), attention_mask.gather(1, source), moved


def options_behind(
    input_ids: Tensor, attention_mask: Tensor, option_ids: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Options behind the last token of prompts that are padded on the right.

    Args:
        input_ids: (N, T).
        attention_mask: (N, T).
        option_ids: (N, A), -100 behind each one's end.

    Returns:
        (N, T + A) ids, mask and labels.
    """
    room = (0, option_ids.shape[1])
    start = last_real(attention_mask)[:, None]
    place = start + torch.arange(option_ids.shape[1], device=start.device)
    ids = F.pad(input_ids, room).scatter(1, place, option_ids.clamp(min=0))
    wanted = (option_ids != IGNORED).to(attention_mask.dtype)
    mask = F.pad(attention_mask, room).scatter(1, place, wanted)
    labels = torch.full_like(ids, IGNORED).scatter(1, place, option_ids)
    return ids, mask, labels


def last_real(attention_mask: Tensor) -> Tensor:
    """(B,) one more than the last place of each row that is no padding."""
    steps = torch.arange(1, attention_mask.shape[1] + 1, device=attention_mask.device)
    return (attention_mask * steps).amax(1)


class AnswerStream(BaseStreamer):
    """Hands the answer on to a streamer, and in place of the prompt nothing.

    `generate` streams the ids of a prompt first. A CROME checkpoint has none there, and what
    prints a stream is the same for both.

    Args:
        inner: As `generate` takes it.
    """

    def __init__(self, inner: BaseStreamer) -> None:
        self.inner = inner
        self.began = False

    def put(self, value: Tensor) -> None:
        """Takes the prompt, and then each new token."""
        self.inner.put(value if self.began else value[..., :0])
        self.began = True

    def end(self) -> None:
        """The answer is complete."""
        self.inner.end()


@contextmanager
def mismatch_named() -> Iterator[None]:
    """Says what is meant where a model finds other media than its text has placeholders for."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        text = str(error)
        if "do not match" not in text or "tokens" not in text:
            raise
        raise InputError(
            f"{text.strip().splitlines()[0][:200]}: a prompt was cut inside its pictures, or the "
            "processor is not this model's; raise the limit, or load both from one checkpoint."
        ) from error
