"""The vocabulary projection on chosen positions only, whatever a model does around it.

A hook stands before a head once and for all, and asks the context of the call what to do. Two
threads that use one model at a time therefore do not meet each other's choice.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Change = Callable[[Tensor], Tensor]
"""From the hidden states that reach a head, (B, T, d) or (N, d), to those that it projects."""

_CHANGE: ContextVar[tuple[nn.Module, Change] | None] = ContextVar("crome_head_change", default=None)
_LOCK = Lock()


def _before_the_head(head: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if torch.compiler.is_compiling():
        return None
    chosen = _CHANGE.get()
    if chosen is None or chosen[0] is not head:
        return None
    return (chosen[1](inputs[0]), *inputs[1:])


@contextmanager
def head_input(language_model: PreTrainedModel, change: Change) -> Iterator[None]:
    """Has a model's head project other hidden states, in this thread, as long as the block lasts.

    Args:
        language_model: The model whose head is meant.
        change: Applied to what reaches the head.
    """
    head = language_model.get_output_embeddings()
    with _LOCK:
        if _before_the_head not in head._forward_pre_hooks.values():
            head.register_forward_pre_hook(_before_the_head)
    token = _CHANGE.set((head, change))
    try:
        yield
    finally:
        _CHANGE.reset(token)


@contextmanager
def head_rows(language_model: PreTrainedModel, rows: Tensor | None) -> Iterator[None]:
    """Makes the vocabulary projection run on chosen positions only, gathered into a 2-D tensor.

    Everything a model does around its head (scaling, soft-capping) stays in place, which is why
    the choice is made right before the head. A strided 3-D input would also leave the fast path of
    bf16 matrix products on the CPU, by two orders of magnitude.

    Args:
        language_model: The model whose head is meant.
        rows: Flat indices into (B · T) hidden states; None keeps all rows and only makes the
            input contiguous.
    """

    def gather(hidden: Tensor) -> Tensor:
        if rows is None:
            return hidden.contiguous()
        return hidden.reshape(-1, hidden.shape[-1])[rows.to(hidden.device)]

    with head_input(language_model, gather):
        yield
