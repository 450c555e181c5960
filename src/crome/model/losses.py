"""Cross-entropy of answers through a frozen head, in chunks where answers are long.

Only positions that predict an answer token meet the vocabulary. Where there are many of them,
their logits would still be the largest tensors of a step (1,000 tokens × 128 k entries in float32
are half a gigabyte, and the backward pass wants several), so they are made and dropped chunk by
chunk. The head is frozen, so all that must outlive a chunk is the gradient of its hidden states,
which is computed on the spot: nothing is kept but (A, d), and nothing is computed twice.

Shapes: A positions that predict, d width of the language model, V vocabulary.
"""

from typing import Any
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from crome.model.language import head_rows

IGNORED = -100
"""Label of a token that is no target."""
CHUNK_ELEMENTS = 1 << 26
"""Logits made at a time: 256 MB in float32."""

_WRAPPED: WeakSet[nn.Module] = WeakSet()
"""Models that do something to their logits behind the head (scaling, soft-capping): not chunked."""


def predicting_rows(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Flat positions that predict a labelled token, and those tokens.

    Args:
        labels: (B, L), -100 where no token is a target.

    Returns:
        (A,) indices into (B · L), each one before its target, and (A,) targets.
    """
    shifted = F.pad(labels[:, 1:], (0, 1), value=IGNORED).flatten()
    rows = (shifted != IGNORED).nonzero().squeeze(1)
    return rows, shifted[rows]


def answer_losses(
    language_model: PreTrainedModel, rows: Tensor, targets: Tensor, **inputs: Any
) -> tuple[Tensor | None, Tensor]:
    """Runs a language model and scores the tokens it should predict.

    Args:
        language_model: Frozen, its head too.
        rows: (A,) flat positions that predict a target.
        targets: (A,) token ids.
        inputs: Of the model.

    Returns:
        (A, V) logits, None where they were made in chunks; and (A,) cross-entropies.
    """
    head: Any = language_model.get_output_embeddings()
    chunk = max(1, CHUNK_ELEMENTS // head.weight.shape[0])
    if len(rows) > chunk and language_model not in _WRAPPED:
        met: list[Tensor] = []

        def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden = arguments[0].reshape(-1, arguments[0].shape[-1])
            met.append(hidden[rows.to(hidden.device)])
            return (met[0][:1], *arguments[1:])

        handle = head.register_forward_pre_hook(keep)
        try:
            first = language_model(**inputs).logits
        finally:
            handle.remove()
        if torch.equal(first.reshape(1, -1), head(met[0][:1])):
            return None, _Chunked.apply(met[0], head, targets.to(first.device), chunk)
        _WRAPPED.add(language_model)
    with head_rows(language_model, rows):
        logits = language_model(**inputs).logits
    return logits, F.cross_entropy(logits.float(), targets, reduction="none")


class _Chunked(torch.autograd.Function):
    """(A, d) hidden states → (A,) losses; the gradient is made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: nn.Module, targets: Tensor, chunk: int) -> Tensor:
        losses: list[Tensor] = []
        gradients: list[Tensor] = []
        wanted = ctx.needs_input_grad[0]
        for x, target in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            with torch.set_grad_enabled(wanted):
                x = x.detach().requires_grad_(wanted)
                loss = F.cross_entropy(head(x).float(), target, reduction="none")
                gradients += torch.autograd.grad(loss.sum(), x) if wanted else ()
            losses.append(loss.detach())
        if wanted:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *of_losses: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (of_losses[0][:, None] * gradient).to(gradient.dtype), None, None, None
