"""Recordings: features that are ready, where a model's own forward pass would compute them.

`forward(mm_encoder_outputs=…)` takes pictures and films from outside. Recordings it encodes
itself, by a call of its own `get_audio_features`. As long as a model runs, that method of that one
model also takes features in the place of samples and hands them back. They come as one tensor with
a dimension more than samples have, which is how the two are told apart, and whatever transformers
does to the inputs of a batch (copies for beams, other devices) is done to them.

Shapes: R rows with recordings, A recordings of a row, N tokens of the longest, d width of the
language model.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import Lock
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from crome.attached.encoding import MAIN_INPUTS, Encoder

METHOD = "get_audio_features"
EACH_PADDED = ("gemma3n",)
"""Families that fill every recording up to a fixed number of tokens; others read what is real."""
_LOCK = Lock()
_RUNNING: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


def hears(vlm: PreTrainedModel, encoder: Encoder) -> bool:
    """Whether a model was built with ears, and its forward pass takes recordings."""
    takes = inspect.signature(vlm.forward).parameters
    return (
        "audio" in encoder.functions
        and getattr(vlm.config, "audio_config", None) is not None
        and any(name in takes for name in MAIN_INPUTS["audio"])
    )


def heard_inputs(vlm: PreTrainedModel, rows: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
    """Features of recordings as `forward` takes them while `features_heard` lasts.

    Args:
        vlm: The model.
        rows: Of each row with recordings, in the order of rows, the (n, d) tokens of each of them.

    Returns:
        By the names of the model: the features, and whatever else must be there for the model to
        look at them.
    """
    takes = inspect.signature(vlm.forward).parameters
    name = next(name for name in MAIN_INPUTS["audio"] if name in takes)
    pieces = [F.pad(piece, (0, 1), value=1.0) for row in rows for piece in row]  # 1: a token
    places = [(i, j) for i, row in enumerate(rows) for j in range(len(row))]
    together = pad_sequence(pieces, batch_first=True)
    shape = (len(rows), max(map(len, rows)), *together.shape[1:])
    row, recording = torch.tensor(places, device=together.device).unbind(1)
    found = {name: together.new_zeros(shape).index_put((row, recording), together)}
    if (mask := f"{name}_mask") in takes:  # only its presence counts
        found[mask] = torch.ones(len(rows), 1, dtype=torch.bool, device=together.device)
    if "chunk_sample_lengths" in takes:  # a row counts as one chunk when it is copied for beams
        lengths = torch.tensor([sum(map(len, row)) for row in rows], device=together.device)
        found["chunk_sample_lengths"] = lengths * vlm.config.audio_config.samples_per_token
    return found


@contextmanager
def features_heard(vlm: PreTrainedModel, encoder: Encoder) -> Iterator[None]:
    """Lets a model's own forward pass take features in the place of recordings.

    Several threads may be inside at once, and samples are encoded as ever meanwhile.

    Args:
        vlm: The model, which afterwards is as it was.
        encoder: Its encoders.
    """
    if not hears(vlm, encoder):
        yield
        return
    owner = encoder.functions["audio"].__self__
    padded = vlm.config.model_type in EACH_PADDED
    with _LOCK:
        _RUNNING[owner] = _RUNNING.get(owner, 0) + 1
        if _RUNNING[owner] == 1:
            setattr(owner, METHOD, partial(ready_or_encoded, getattr(owner, METHOD), padded))
    try:
        yield
    finally:
        with _LOCK:
            _RUNNING[owner] -= 1
            if not _RUNNING[owner]:
                delattr(owner, METHOD)


def ready_or_encoded(encode: Any, padded: bool, samples: Tensor, *more: Any, **named: Any) -> Any:
    """What `forward` reads of recordings: features that are ready, or what an encoder makes.

    Args:
        encode: The model's own method.
        padded: Whether `forward` wants each recording apart, with its padding.
        samples: (R, A, N, d + 1) features, or samples with fewer dimensions.
        more: As the model's own method takes them.
        named: The same.
    """
    if samples.ndim < 4:
        return encode(samples, *more, **named)
    real, tokens = samples[..., -1] > 0, samples[..., :-1]
    if padded:
        there = real.any(-1)
        return SimpleNamespace(pooler_output=tokens[there], audio_mel_mask=~real[there])
    flat = tokens[real]
    mask = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
    return SimpleNamespace(pooler_output=flat, last_hidden_state=flat, attention_mask=mask)
