"""Cross-entropy of answers, in chunks where answers are long.

Only positions that predict an answer token meet the vocabulary. Where there are many of them,
their logits would still be the largest tensors of a step (1,000 tokens × 128 k entries in float32
are half a gigabyte, and the backward pass wants several), so they are made and dropped chunk by
chunk. Where the head is frozen, all that must outlive a chunk is the gradient of its hidden states,
which is computed on the spot: nothing is kept but (A, d), and nothing is computed twice. A head
that trains gets its gradient by computing each chunk again on the way back.

Shapes: A positions that predict, d width of the language model, V vocabulary.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from crome.errors import InputError
from crome.model.language import head_input

IGNORED = -100
"""Label of a token that is no target."""
CHUNK_ELEMENTS = 1 << 26
"""Logits made at a time: 256 MB in float32."""

_ENDS_WITH_HEAD: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


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


def mean_loss(token_losses: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
    """The mean of the answer tokens' losses, or their sum over a given number.

    Args:
        token_losses: (A,).
        num_items_in_batch: Answer tokens over all accumulated batches and devices.

    Raises:
        InputError: There is no answer token.
    """
    if not len(token_losses):
        raise InputError("no token of this batch is an answer: labels are -100 throughout.")
    if num_items_in_batch is None:
        return token_losses.mean()
    if torch.is_tensor(num_items_in_batch):
        num_items_in_batch = num_items_in_batch.to(token_losses.device)
    return token_losses.sum() / num_items_in_batch


def answer_losses(
    language_model: PreTrainedModel, rows: Tensor, targets: Tensor, **inputs: Any
) -> tuple[Tensor | None, Tensor]:
    """Runs a language model and scores the tokens it should predict.

    Args:
        language_model: Frozen, or training as a whole.
        rows: (A,) flat positions that predict a target.
        targets: (A,) token ids.
        inputs: Inputs of the model.

    Returns:
        (A, V) logits, None where they were made in chunks; and (A,) cross-entropies.
    """
    head: Any = language_model.get_output_embeddings()
    chunk = max(1, CHUNK_ELEMENTS // head.weight.shape[0])
    # Every process of a sharded run must run as many passes, so all of them ask at their first.
    together = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
    if len(rows) > chunk or (together and language_model not in _ENDS_WITH_HEAD):
        ends_with_head = logits_end_with_head(language_model, inputs)
        if len(rows) > chunk and ends_with_head:
            hidden = hidden_states(language_model, rows, inputs)
            return None, losses_in_chunks(hidden, head, targets.to(hidden.device), chunk)

    def gather(hidden: Tensor) -> Tensor:  # three dimensions, as what stands behind a head expects
        return hidden.reshape(1, -1, hidden.shape[-1])[:, rows.to(hidden.device)]

    with head_input(language_model, gather):
        logits = language_model(**inputs).logits[0]
    return logits, F.cross_entropy(logits.float(), targets.to(logits.device), reduction="none")


def hidden_states(language_model: PreTrainedModel, rows: Tensor, inputs: dict[str, Any]) -> Tensor:
    """(A, d) inputs of the head at chosen positions; the head itself projects only one of them."""
    met: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        hidden = hidden.reshape(-1, hidden.shape[-1])
        met.append(hidden[rows.to(hidden.device)])
        return met[0][None, :1]

    with head_input(language_model, keep):
        language_model(**inputs)
    return met[0]


@torch.no_grad()
def logits_end_with_head(language_model: PreTrainedModel, inputs: dict[str, Any]) -> bool:
    """Whether a model's logits are its head's output, without scaling or soft-capping behind it.

    It is tested once for each model, on one token, so that every process does the same work.
    """
    if language_model not in _ENDS_WITH_HEAD:
        met: list[Tensor] = []

        def keep(hidden: Tensor) -> Tensor:
            met.append(hidden)
            return hidden

        head: Any = language_model.get_output_embeddings()
        first = "inputs_embeds" if "inputs_embeds" in inputs else "input_ids"
        token: dict[str, Any] = {first: inputs[first][:1, :1].detach()}
        if "decoder_input_ids" in inputs:
            token["decoder_input_ids"] = inputs["decoder_input_ids"][:1, :1]
        with head_input(language_model, keep):
            logits = language_model(**token, use_cache=False).logits
        _ENDS_WITH_HEAD[language_model] = torch.equal(logits, head(met[0]))
    return _ENDS_WITH_HEAD[language_model]


def losses_in_chunks(hidden: Tensor, head: nn.Module, targets: Tensor, chunk: int) -> Tensor:
    """(A, d) hidden states → (A,) losses, with so many positions' logits at a time."""
    if not any(p.requires_grad for p in head.parameters()):
        return _Chunked.apply(hidden, head, targets, chunk)
    parts = [
        checkpoint(_losses, x, head, target, use_reentrant=False)
        for x, target in zip(hidden.split(chunk), targets.split(chunk), strict=True)
    ]
    return torch.cat(parts)


def _losses(hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
    return F.cross_entropy(head(hidden).float(), targets, reduction="none")


class _Chunked(torch.autograd.Function):
    """(A, d) hidden states → (A,) losses of a frozen head; the gradient is made on the way."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: nn.Module, targets: Tensor, chunk: int) -> Tensor:
        losses: list[Tensor] = []
        gradients: list[Tensor] = []
        wanted = ctx.needs_input_grad[0]
        for x, target in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            with torch.set_grad_enabled(wanted):
                x = x.detach().requires_grad_(wanted)
                loss = _losses(x, head, target)
                gradients += torch.autograd.grad(loss.sum(), x) if wanted else ()
            losses.append(loss.detach())
        if wanted:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *of_losses: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (of_losses[0][:, None] * gradient).to(gradient.dtype), None, None, None
