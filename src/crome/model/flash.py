"""Attention of a packed row by the flash kernel of a GPU, without a mask and without copies.

A token of a packed row sees up to three stretches of keys, each of them contiguous:

1. what stands in front of it in its own segment, a prefix or a question;
2. if it belongs to a question, all of the prefix that the question follows;
3. all of the opening, if the row has one.

The kernel computes each stretch on its own and also gives the logarithm of the sum of exponentials
(LSE) that its softmax divides by. Two results over different keys are merged by

    LSE = log(exp(LSE₁) + exp(LSE₂)),   out = out₁ + σ(LSE₂ − LSE₁) · (out₂ − out₁),

and each stretch's gradients are those of the kernel with the merged output and LSE, as in ring
attention (arXiv 2310.01889).

Shapes: N tokens of a packed row, h of the opening in front, H heads of the queries and h' of keys,
c width of a head.
"""

import logging
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from crome.model.packing import Packing

logger = logging.getLogger(__name__)
WIDEST = 256
"""Width of a head that the kernel takes at most."""
CLOSE = 0.02
"""Relative difference from float32 that rounding to 16 bits can make."""
Kernel = Callable[..., Tensor]
"""Queries, keys and values with a scale and a mask → attention, as in `crome.model.kernels`."""
Ends = tuple[Tensor, int]
"""Where sequences end, (S + 1,) int32 with a 0 in front, and tokens of the longest."""


class Stretch(NamedTuple):
    """Queries and keys of sequences that stand one behind the other.

    Attributes:
        queries: Tokens among N.
        keys: Tokens among h + N.
        query_ends: Of the queries' sequences.
        key_ends: Of the keys' sequences.
        causal: Whether a query sees the keys up to its own, or all of its sequence.
    """

    queries: slice
    keys: slice
    query_ends: Ends
    key_ends: Ends
    causal: bool


def suits(query: Tensor, value: Tensor, packing: Packing, exact: Kernel) -> bool:
    """Whether the kernel computes the attention of (1, H, N, c) packed queries.

    Args:
        query: (1, H, N, c).
        value: (1, h', h + N, c).
        packing: Of the row.
        exact: What the kernel is tried against in float32.
    """
    width = query.shape[-1]
    return (
        query.device.type == "cuda"
        and query.dtype in (torch.float16, torch.bfloat16)
        and packing.mask is None
        and value.shape[-1] == width <= WIDEST
        and width % 8 == 0
        and works(query.device, query.dtype, exact)
    )


def attend(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float) -> Tensor:
    """(1, H, N, c) queries on (1, h', h + N, c) keys and values → (1, N, H, c)."""
    head = key.shape[2] - query.shape[2]
    dense = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    rows = (x[0].transpose(0, 1) for x in dense)  # the kernel takes any strides but that of c
    out: Tensor = _Merged.apply(*rows, stretches(packing.beside(query), head), scale)
    return out[None]


def stretches(packing: Packing, head: int) -> list[Stretch]:
    """What the tokens of a packed row see, in the order of the module's docstring.

    Args:
        packing: On the device of the tokens.
        head: h.
    """
    spans, total = packing.spans, packing.total
    own = spans.segments, spans.longest_segment
    found = [Stretch(slice(total), slice(head, None), own, own, True)]
    if spans.prefixes < total:
        asked = slice(spans.prefixes, total), slice(head, head + spans.prefixes)
        ends = (spans.questions, spans.longest_group), (spans.fronts, spans.longest_prefix)
        found.append(Stretch(*asked, *ends, False))
    if head:
        row, opening = (  # made where the tokens are: nothing waits for a transfer
            (torch.arange(0, n + 1, n, out=spans.segments.new_empty(2)), n) for n in (total, head)
        )
        found.append(Stretch(slice(total), slice(head), row, opening, False))
    return found


class _Merged(torch.autograd.Function):
    """Attention over several stretches of keys: (N, H, c), twice (h + N, h', c) → (N, H, c)."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, stretches: list[Stretch], scale: float
    ) -> Tensor:
        out = lse = q.new_empty(0)
        states = []
        for number, one in enumerate(stretches):
            part, part_lse, *state = kernel_forward(q, k, v, one, scale)
            states += state
            if number == 0:  # of all tokens
                out, lse = part, part_lse
                continue
            seen = lse[:, one.queries]
            share = torch.sigmoid(part_lse - seen).T[..., None].to(out.dtype)
            out[one.queries].lerp_(part, share)
            lse[:, one.queries] = torch.logaddexp(seen, part_lse)
        ctx.save_for_backward(q, k, v, out, lse, *states)
        ctx.stretches, ctx.scale = stretches, scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, *states = ctx.saved_tensors
        first, *others = [
            kernel_backward(
                gradients[0], q, k, v, out, lse, one, ctx.scale, states[2 * number : 2 * number + 2]
            )
            for number, one in enumerate(ctx.stretches)
        ]
        head = len(k) - len(q)
        sums = [first[0], _behind(first[1], head), _behind(first[2], head)]
        for one, found in zip(ctx.stretches[1:], others, strict=True):
            for whole, part, own in zip(
                sums, found, (one.queries, one.keys, one.keys), strict=True
            ):
                whole[own].add_(part)
        return *sums, None, None


def _behind(x: Tensor, head: int) -> Tensor:
    """(N, …) behind so many zeros."""
    return torch.cat([x.new_zeros(head, *x.shape[1:]), x]) if head else x


def kernel_forward(q: Tensor, k: Tensor, v: Tensor, one: Stretch, scale: float) -> list[Tensor]:
    """Output (n, H, c), LSE (H, n), and two tensors that the way back wants."""
    (query_ends, most), (key_ends, most_keys) = one.query_ends, one.key_ends
    found = torch.ops.aten._flash_attention_forward.default(
        q[one.queries], k[one.keys], v[one.keys], query_ends, key_ends, most, most_keys,
        0.0, one.causal, False, scale=scale,
    )  # fmt: skip
    return list(found[:4])


def kernel_backward(
    given: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    one: Stretch, scale: float, state: list[Tensor],
) -> list[Tensor]:  # fmt: skip
    """Gradients of the queries and keys and values of a stretch."""
    (query_ends, most), (key_ends, most_keys) = one.query_ends, one.key_ends
    found = torch.ops.aten._flash_attention_backward.default(
        given[one.queries].contiguous(), q[one.queries], k[one.keys], v[one.keys],
        out[one.queries], lse[:, one.queries].contiguous(), query_ends, key_ends, most, most_keys,
        0.0, one.causal, *state, scale=scale,
    )  # fmt: skip
    return list(found)


@cache
def works(device: torch.device, dtype: torch.dtype, exact: Kernel) -> bool:
    """Whether the kernel gives, both ways, what another gives in float32; tried once."""
    try:
        with torch.inference_mode(False), torch.enable_grad():
            apart = differences(device, dtype, exact)
    except Exception:
        logger.info("the flash kernel cannot be used", exc_info=True)
        return False
    if max(apart) > CLOSE:
        logger.warning("the flash kernel gives other numbers (%s); it is not used.", apart)
        return False
    return True


def differences(device: torch.device, dtype: torch.dtype, exact: Kernel) -> list[float]:
    """Of the output and of the gradients of queries, keys and values, relative to their sizes."""
    prefix = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
    question = torch.tensor([[True, False], [True, True], [True, False]])
    packing = Packing.plan(prefix, question, torch.tensor([1, 0, 0])).to(device)
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 4, packing.total, 64), *[(1, 2, 2 + packing.total, 64)] * 2]
    made = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    q, k, v = (x.clone().requires_grad_() for x in made)
    whole = [x.float().requires_grad_() for x in made]
    found = attend(q, k, v, packing, 0.125).transpose(1, 2)
    expected = packing.attend(whole[0], whole[1], whole[2], partial(exact, scale=0.125))
    down = expected.detach()
    ours = torch.autograd.grad(found, (q, k, v), down.to(dtype))
    theirs = torch.autograd.grad(expected, whole, down)
    pairs = [(found.detach(), down), *zip(ours, theirs, strict=True)]
    return [float((a.float() - b).norm() / b.norm()) for a, b in pairs]
