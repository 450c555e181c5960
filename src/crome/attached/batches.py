"""Batches of an attached model: padding on either side, options behind prompts, means of losses.

Shapes: B rows, T tokens, N options, A tokens of the longest.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from crome.attached.encoding import Encoded, Visual
from crome.errors import InputError
from crome.model.losses import IGNORED

MEDIA = ("media", "media_index", "features", "adapter_names")
"""What a batch holds besides what stands beside each token."""


@dataclass(frozen=True)
class MediaBatch:
    """What the rows of a batch show, and through which adapters.

    Attributes:
        media: Tensors of the distinct sets of media, from the processor.
        index: (B,) the set each row shows, -1 for none, on the CPU.
        features: Frozen features of the sets, None in it or itself where they are not known.
        adapter_names: An adapter for each row.
    """

    media: Sequence[Mapping[str, Tensor]]
    index: Tensor
    features: Sequence[Visual | None] | None
    adapter_names: Sequence[str | None]

    def rows(self, numbers: Tensor) -> Self:
        """What some of the rows show, or rows again."""
        names = [self.adapter_names[number] for number in numbers.tolist()]
        return replace(self, index=self.index[numbers.cpu()], adapter_names=names)


class Parts(NamedTuple):
    """A batch whose parts agree with each other.

    Attributes:
        ids: (B, T) with placeholders.
        mask: (B, T).
        media_batch: What the rows show; None for text alone.
        text: What the model reads beside each token, (B, T) each.
    """

    ids: Tensor
    mask: Tensor
    media_batch: MediaBatch | None
    text: dict[str, Tensor]

    @classmethod
    def read(cls, model: Any, ids: Tensor | None, mask: Tensor | None, batch: Any) -> Self:
        """Checks a batch as an attached model takes it.

        Args:
            model: An `AttachedModel`.
            ids: (B, T).
            mask: (B, T); None where nothing is padding.
            batch: The rest, by name.

        Raises:
            InputError: Parts are absent, unknown, or disagree.
        """
        if ids is None:
            raise InputError("there are no input_ids; give the tensors that the processor made.")
        if ids.ndim != 2:
            raise InputError(f"input_ids is {tuple(ids.shape)}; expected (rows, tokens).")
        mask = torch.ones_like(ids) if mask is None else mask
        require_shape("attention_mask", mask, ids)
        text = {k: v for k, v in batch.items() if v is not None and k not in MEDIA}
        for name, value in text.items():
            if not isinstance(value, Tensor) or not is_beside(name):
                raise InputError(
                    f"{name} is nothing that this model takes beside its tokens; give it the batch "
                    "that its processor made, in which pictures are `media` and `media_index`."
                )
            require_shape(name, value, ids)
        names = model.names_of_rows(batch.get("adapter_names"), len(ids))
        media_batch = media_batch_of(batch, len(ids), names)
        require_media(model, ids, mask, media_batch)
        return cls(ids, mask, media_batch, text)


def require_shape(name: str, value: Tensor, ids: Tensor) -> None:
    """Refuses what has not one value for each token.

    Raises:
        InputError: With both shapes.
    """
    if value.shape != ids.shape:
        raise InputError(
            f"{name} is {tuple(value.shape)} and input_ids {tuple(ids.shape)}; expected one value "
            "for each token."
        )


def media_batch_of(
    batch: Mapping[str, Any], rows: int, names: Sequence[str | None]
) -> MediaBatch | None:
    """What a batch shows; None for text alone.

    Args:
        batch: Has `media`, `media_index` and `features`, or some of them.
        rows: B.
        names: The adapter of each row.

    Raises:
        InputError: They disagree.
    """
    media, index, features = (batch.get(name) for name in ("media", "media_index", "features"))
    if index is None or not media:
        return None
    if len(index) != rows:
        raise InputError(f"media_index has {len(index)} rows for {rows} questions.")
    index = index.cpu()
    highest = int(index.max())
    if highest >= len(media):
        raise InputError(f"media_index names set {highest}, and the batch has {len(media)}.")
    if features is not None:
        if len(features) != len(media):
            raise InputError(f"{len(features)} features for {len(media)} sets of media; one a set.")
        features = [None if one is None else as_encoded(one) for one in features]
    return MediaBatch(media, index, features, names) if highest >= 0 else None


def require_media(model: Any, ids: Tensor, mask: Tensor, media_batch: MediaBatch | None) -> None:
    """Refuses rows with places for media that they do not have.

    Raises:
        InputError: With the first of them.
    """
    if not model.placeholders:
        return
    wanted = torch.tensor(sorted(model.placeholders), device=ids.device)
    placed = (torch.isin(ids, wanted) & (mask > 0)).any(1)
    if media_batch is not None:
        placed = placed & (media_batch.index.to(ids.device) < 0)
    if bool(placed.any()):
        raise InputError(
            f"row {int(placed.int().argmax())} of the batch has places for media and shows none; "
            "give `media` and `media_index` as the processor made them."
        )


def as_encoded(features: Mapping[str, Any]) -> Visual:
    """Features by modality, which may come as plain dictionaries."""
    return {modality: Encoded(**encoded) for modality, encoded in features.items()}


def is_beside(name: str) -> bool:
    """Whether a name is that of something a model reads beside each token."""
    return name.endswith("_type_ids") or name == "position_ids"


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
    except IndexError as error:
        if "out of range in self" not in str(error):
            raise
        raise InputError(
            "the text has a token that the model has no embedding for: its tokenizer is larger "
            "than its table of embeddings. Enlarge the table (resize_token_embeddings) and save "
            "the model, or load model and processor from one checkpoint."
        ) from error
    except (ValueError, RuntimeError) as error:
        text = str(error)
        if "do not match" not in text or "tokens" not in text:
            raise
        raise InputError(
            f"{text.strip().splitlines()[0][:200]}: a prompt was cut inside its pictures, or the "
            "processor is not this model's; raise the limit, or load both from one checkpoint."
        ) from error
