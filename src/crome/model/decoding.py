"""How a language model decodes fastest on a CPU: measured on the machine, not guessed.

A decoding step multiplies every weight matrix by the few rows of a batch, and is bound by reading
the weights. For one or two rows PyTorch's own product of a matrix and a vector may read them
several times as fast as oneDNN does, which is made for many rows; for more rows it is slower.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = (1, 2, 3)
"""Numbers of rows that are tried."""
PROBE_BYTES = 128 << 20
"""Weights that a trial reads: more than caches hold, so that memory is measured."""
REPETITIONS = 3
WORTH = 0.8
"""A way must take at most this share of the usual way's time to be taken."""


def decode_fast(language_model: Any, free_attention: bool = False) -> frozenset[int]:
    """Prepares a language model that is on a CPU for decoding; elsewhere it is left alone.

    Results change by rounding, in bfloat16 and float16 only.

    Args:
        language_model: In eval mode, called by one thread at a time from now on.
        free_attention: Whether its attention may be changed: the fused kernel, whose backward is
            slow in bfloat16, reads prompts and decodes faster than the plain one.

    Returns:
        The numbers of tokens in one pass for which oneDNN is left out.
    """
    weight = language_model.get_input_embeddings().weight
    half = weight.dtype in (torch.bfloat16, torch.float16)
    if weight.device.type != "cpu" or not half:
        return frozenset()
    if free_attention and getattr(language_model, "_supports_sdpa", False):
        language_model.set_attn_implementation("sdpa")
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return frozenset()
    weights = _probed(language_model, weight.dtype)
    rows = frozenset(number for number in ROWS if weights and _better_without(weights, number))
    if rows:
        language_model.register_forward_pre_hook(_Switch(rows), with_kwargs=True)
        language_model.register_forward_hook(_switch_back, always_call=True)
    return rows


def _probed(language_model: nn.Module, dtype: torch.dtype) -> list[Tensor]:
    """Weights of linear layers, up to the size of a trial."""
    found: list[Tensor] = []
    size = 0
    for module in language_model.modules():
        if isinstance(module, nn.Linear) and module.weight.dtype == dtype and size < PROBE_BYTES:
            found.append(module.weight)
            size += module.weight.nbytes
    return found


@torch.inference_mode()
def _better_without(weights: Sequence[Tensor], rows: int) -> bool:
    """Whether so many rows are multiplied faster without oneDNN; the ways take turns."""
    inputs = {w.shape[1]: torch.ones(rows, w.shape[1], dtype=w.dtype) for w in weights}
    best = {True: float("inf"), False: float("inf")}
    for _ in range(REPETITIONS):
        for enabled in (True, False):
            _set_onednn(enabled)
            try:
                began = time.perf_counter()
                for weight in weights:
                    F.linear(inputs[weight.shape[1]], weight)
                best[enabled] = min(best[enabled], time.perf_counter() - began)
            finally:
                _set_onednn(True)
    return best[False] < WORTH * best[True]


class _Switch:
    """Leaves oneDNN out of a pass over few tokens.

    Args:
        rows: The numbers of tokens that are meant.
    """

    def __init__(self, rows: frozenset[int]) -> None:
        self._rows = rows

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = kwargs.get("inputs_embeds")
        if given is None:
            given = kwargs.get("input_ids", args[0] if args else None)
        if given is not None and given.shape[0] * given.shape[1] in self._rows:
            _set_onednn(False)


def _switch_back(*_: Any) -> None:
    _set_onednn(True)


def _set_onednn(enabled: bool) -> None:
    torch.backends.mkldnn.enabled = enabled  # type: ignore[assignment]
