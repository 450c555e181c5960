"""How the tokens of a frozen language model attend to each other, by the fastest way there is.

It gives the results of transformers' `sdpa` under a name of its own (`NAME`), so that two things
can be decided at each call and in each thread:

- which tokens see which, where a batch is packed (`crome.model.packing`);
- which kernel computes it. PyTorch's fused kernel is the fastest without gradients, in float32 and
  on a GPU. On a CPU in half precision its backward pass is slow, and products of matrices over
  pieces of the sequence take its place where they were measured to be faster.

Shapes: B sequences, H heads of the queries, h ≤ H heads of keys and values, m queries, n keys, c
width of a head.
"""

import logging
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache, partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from crome.errors import JobError
from crome.model import flash
from crome.model.families import positions_tell
from crome.model.packing import Packing
from crome.storage import cache_folder, read_object, write_json

logger = logging.getLogger(__name__)
NAME = "crome"
"""What the configuration of a language model calls this attention."""
CHUNK = 128
"""Queries that are multiplied at a time; keys that none of them sees are left out."""
PROBED = (64, 2048)
"""Shortest and longest sequence that is measured."""
TIE = 0.9
"""The fused kernel is chosen only if it takes at most this share of the other's time. Measurements
are noisy, and a choice that changes from run to run changes the last bits of a loss."""
Kernel = Callable[..., Tensor]
"""(B, H, m, c) queries, (B, h, n, c) keys and values, scale, mask → (B, H, m, c)."""

_PACKING: ContextVar[Packing | None] = ContextVar("crome_packing", default=None)
_OBEYS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def use_kernels(model: Any) -> None:
    """Gives a model's decoder this attention in place of transformers' `sdpa`.

    Args:
        model: A language model, or one that sees, whose towers are left as they are.
    """
    decoder = model.get_decoder()
    chosen = decoder is not None and getattr(decoder.config, "_attn_implementation", None)
    if chosen == "sdpa" and decoder._can_set_attn_implementation():
        decoder.config._attn_implementation = NAME


@contextmanager
def packed(packing: Packing | None) -> Iterator[None]:
    """Applies a packing to the attention of this thread while the block lasts."""
    token = _PACKING.set(packing)
    try:
        yield
    finally:
        _PACKING.reset(token)


def current_packing() -> Packing | None:
    """The packing of the block around the call, which recomputed activations need once more."""
    return _PACKING.get()


@torch.compiler.disable
def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """The function that layers call; arguments and results are those of transformers' `sdpa`."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    packing = _PACKING.get()
    if packing is not None and packing.fits(query):
        if flash.suits(query, value, packing, fused):
            return flash.attend(query, key, value, packing, scale), None
        out = packing.attend(query, key, value, partial(best_kernel(query, key), scale=scale))
        return out.transpose(1, 2).contiguous(), None
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    plain = attention_mask is None and causal and query.shape[2] == key.shape[2]
    special = dropout or any(more.get(name) is not None for name in ("softcap", "position_bias"))
    if (plain or attention_mask is not None) and not special:
        if best_kernel(query, key) is chunked:
            out = chunked(query, key, value, scale, attention_mask)
            return out.transpose(1, 2).contiguous(), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask,
        dropout=dropout, scaling=scaling, is_causal=is_causal, **more,
    )  # fmt: skip


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)


# ---------------------------------------------------------------------- kernels


def fused(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """PyTorch's fused kernel; without a mask, attention is causal and ends with the last key."""
    rows, keys, groups = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    chosen = mask
    if mask is None and rows != keys:
        chosen = torch.ones(rows, keys, dtype=torch.bool, device=q.device).tril(keys - rows)
    grouped = groups > 1 and chosen is None and q.device.type == "cuda"
    if groups > 1 and not grouped:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=chosen, is_causal=chosen is None, scale=scale, enable_gqa=grouped
    )


def chunked(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Products of matrices over `CHUNK` queries at a time; the same numbers as `fused`."""
    return _Chunked.apply(q * scale, k, v, mask)


class _Chunked(torch.autograd.Function):
    """Attention whose weights are kept, in the type of the queries, for the backward pass.

    Heads that share keys are rows of one product. Without a mask, keys that a chunk cannot see are
    left out of its products, which is half of all.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        rows, ahead = q.shape[2], k.shape[2] - q.shape[2]
        weights, parts = [], []
        for start in range(0, rows, CHUNK):
            end = min(start + CHUNK, rows)
            seen = k.shape[2] if mask is not None else ahead + end
            scores = _folded(q[:, :, start:end], k.shape[1]) @ k[:, :, :seen].mT
            _hide(_unfolded(scores, end - start), mask, start, ahead)
            weight = scores.softmax(-1)
            parts.append(_unfolded(weight @ v[:, :, :seen], end - start))
            weights.append(weight)
        ctx.save_for_backward(q, k, v, *weights)
        return torch.cat(parts, 2) if len(parts) > 1 else parts[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *weights = ctx.saved_tensors
        exact = torch.promote_types(q.dtype, torch.float32)
        parts, sums = [], [torch.zeros_like(x, dtype=exact) for x in (k, v)]
        for weight, start in zip(weights, range(0, q.shape[2], CHUNK), strict=True):
            size, seen = min(CHUNK, q.shape[2] - start), weight.shape[-1]
            given = _folded(gradients[0][:, :, start : start + size], k.shape[1])
            sums[1][:, :, :seen] += weight.mT @ given
            of_weight = given @ v[:, :, :seen].mT
            of_scores = torch._softmax_backward_data(of_weight, weight, -1, weight.dtype)
            parts.append(_unfolded(of_scores @ k[:, :, :seen], size))
            asked = _folded(q[:, :, start : start + size], k.shape[1])
            sums[0][:, :, :seen] += of_scores.mT @ asked
        return torch.cat(parts, 2), sums[0].to(k.dtype), sums[1].to(v.dtype), None


def _folded(x: Tensor, heads: int) -> Tensor:
    """(B, H, m, c) → (B, h, H / h · m, c)."""
    batch, _, _, width = x.shape
    return x.reshape(batch, heads, -1, width)


def _unfolded(x: Tensor, rows: int) -> Tensor:
    """(B, h, H / h · m, c) → (B, H, m, c)."""
    return x.view(x.shape[0], -1, rows, x.shape[-1])


def _hide(scores: Tensor, mask: Tensor | None, start: int, ahead: int) -> None:
    """Lowers the scores (B, H, m, n) of hidden keys so far that their weights are zero."""
    size = scores.shape[2]
    lowest = torch.finfo(scores.dtype).min
    if mask is None:
        own = scores[..., ahead + start :]
        later = torch.ones(size, size, dtype=torch.bool, device=own.device).triu(1)
        own.masked_fill_(later, lowest)
    elif mask.dtype == torch.bool:
        scores.masked_fill_(~mask[..., start : start + size, :], lowest)
    else:
        scores += mask[..., start : start + size, :]


# ---------------------------------------------------------------------- choice


def best_kernel(query: Tensor, key: Tensor) -> Kernel:
    """The fastest kernel for a call, measured where there is a choice."""
    differentiates = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad)
    half = query.dtype in (torch.bfloat16, torch.float16)
    if not differentiates or not half or query.device.type != "cpu":
        return fused
    length = min(max(key.shape[2], PROBED[0]), PROBED[1])
    heads = (query.shape[1], key.shape[1], query.shape[3])
    return {"fused": fused, "chunked": chunked}[
        measured(query.dtype, heads, 1 << (length - 1).bit_length(), torch.get_num_threads())
    ]


@cache
def measured(dtype: torch.dtype, heads: tuple[int, int, int], length: int, threads: int) -> str:
    """The kernel that takes less time forward and back; the choice is kept on disk.

    Args:
        dtype: Type of all tensors.
        heads: H, h and c.
        length: Tokens of a sequence.
        threads: Number of threads that compute it.
    """
    path = cache_folder() / "attention.json"
    key = f"{processor()}, {threads} threads, torch {torch.__version__}, {dtype}, {heads}, {length}"
    kept: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        kept = read_object(path)
    if kept.get(key) not in ("fused", "chunked"):
        kept[key] = faster(dtype, heads, length)
        with suppress(JobError):  # if the folder cannot be written, the next process measures again
            write_json(path, kept)
    return str(kept[key])


@torch.enable_grad()
def faster(dtype: torch.dtype, heads: tuple[int, int, int], length: int) -> str:
    """Runs both kernels in turn and compares the least CPU-seconds of each."""
    shapes = [(1, heads[0], length, heads[2]), *[(1, heads[1], length, heads[2])] * 2]
    q, k, v = (torch.ones(shape, dtype=dtype, requires_grad=True) for shape in shapes)
    best = {"fused": float("inf"), "chunked": float("inf")}
    for _ in range(3):
        for name, kernel in (("fused", fused), ("chunked", chunked)):
            began = time.process_time()
            torch.autograd.grad(kernel(q, k, v, 1.0).sum(), (q, k, v))
            best[name] = min(best[name], time.process_time() - began)
    return "fused" if best["fused"] < TIE * best["chunked"] else "chunked"


def processor() -> str:
    """The name of this machine's processor."""
    with suppress(OSError, StopIteration), open("/proc/cpuinfo") as file:
        line = next(line for line in file if line.startswith("model name"))
        return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def warn_no_sharing(model: str, attention: str) -> None:
    """Warns once that questions on one image cannot share its tokens."""
    logger.warning(
        "Questions on one image are read apart, each with a copy of its tokens: %s with %s "
        "attention cannot share them. Where the model has sdpa attention, choose it or auto.",
        model,
        attention,
    )


@torch.enable_grad()
def obeys_packing(model: Any) -> bool:
    """Whether a decoder's attention and positions follow a packing.

    It is tested once for each model, on two short questions behind one prefix, so that every
    process does the same work, whatever its batch is.
    """
    use_kernels(model)  # the attention may have been changed since
    decoder = model.get_decoder()
    if decoder.config._attn_implementation != NAME or not positions_tell(model):
        warn_no_sharing(type(model).__name__, str(decoder.config._attn_implementation))
        return False
    words = model.get_input_embeddings()
    if words.weight.device.type == "meta":
        return True
    if decoder not in _OBEYS:
        ids = torch.arange(8, device=words.weight.device) % words.weight.shape[0]
        # With a gradient, since some quantised weights change their form for good without one.
        embeds = words(ids).detach().requires_grad_()
        own = embeds[None, [0, 1, 2, 5, 6, 7]]
        alone = decoder(inputs_embeds=own, use_cache=False)[0].detach()
        real = torch.tensor([[True, True, False], [True, True, True]])
        packing = Packing.plan(torch.ones(1, 3, dtype=torch.bool), real, torch.tensor([0, 0]))
        packing = packing.to(embeds.device)
        with packed(packing):
            together = decoder(
                inputs_embeds=embeds[None], attention_mask=packing.no_mask(embeds.dtype),
                position_ids=packing.positions[None], use_cache=False,
            )[0]  # fmt: skip
        difference = (together.detach()[:, 5:] - alone[:, 3:]).float().abs().mean()
        allowed = 1e-3 if embeds.dtype == torch.float32 else 0.05
        _OBEYS[decoder] = bool(difference < allowed * alone.float().abs().mean())
    return _OBEYS[decoder]
