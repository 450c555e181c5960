"""Attention of a packed row in stretches: who sees whom, and gradients of what was merged."""

from functools import partial

import pytest
import torch
from torch import Tensor

from crome.model import flash
from crome.model.kernels import fused
from crome.model.packing import Packing

EVEN = torch.ones(3, 2, dtype=torch.bool)
UNEVEN = torch.tensor([[1, 1], [1, 0], [1, 1]], dtype=torch.bool)
FULL = torch.ones(5, 3, dtype=torch.bool)
RAGGED = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 1, 1]], dtype=torch.bool)
APART = torch.tensor([2, 0, 0, 2, 0])
"""Prefixes of five questions that do not come one after another; one prefix has none."""


def sequences(one: flash.Stretch) -> list[tuple[slice, slice]]:
    """Queries and keys of each sequence, inside of the stretch."""
    bounds = [list(zip(ends.tolist(), ends.tolist()[1:], strict=False))
              for ends, _ in (one.query_ends, one.key_ends)]  # fmt: skip
    for pairs, (_, longest) in zip(bounds, (one.query_ends, one.key_ends), strict=True):
        assert max(end - begin for begin, end in pairs) <= longest
    return [(slice(*a), slice(*b)) for a, b in zip(*bounds, strict=True)]


def scores(q: Tensor, k: Tensor, one: flash.Stretch, scale: float) -> Tensor:
    """(H, n, keys) of one sequence, with repeated key heads."""
    found = torch.einsum("qhc,khc->hqk", q, k.repeat_interleave(q.shape[1] // k.shape[1], 1))
    hidden = torch.ones(found.shape[1:], dtype=torch.bool).triu(1) & one.causal
    return (found * scale).masked_fill(hidden, float("-inf"))


def forward(q: Tensor, k: Tensor, v: Tensor, one: flash.Stretch, scale: float) -> list[Tensor]:
    """What the kernel computes, by definition."""
    q, k, v = q[one.queries], k[one.keys], v[one.keys]
    out, lse = torch.zeros_like(q), q.new_zeros(q.shape[1], q.shape[0])
    for own, seen in sequences(one):
        s = scores(q[own], k[seen], one, scale)
        values = v[seen].repeat_interleave(q.shape[1] // v.shape[1], 1)
        out[own] = torch.einsum("hqk,khc->qhc", s.softmax(-1), values)
        lse[:, own] = s.logsumexp(-1)
    return [out, lse, torch.zeros(2), torch.zeros(0)]


def backward(given, q, k, v, out, lse, one, scale, state) -> list[Tensor]:
    """Its gradients, from outputs and LSEs that other keys have had a share in."""
    given, q, k, v = given[one.queries], q[one.queries], k[one.keys], v[one.keys]
    out, lse, groups = out[one.queries], lse[:, one.queries], q.shape[1] // k.shape[1]
    sums = [torch.zeros_like(x) for x in (q, k, v)]
    for own, seen in sequences(one):
        weight = (scores(q[own], k[seen], one, scale) - lse[:, own, None]).exp()
        keys, values = (x[seen].repeat_interleave(groups, 1) for x in (k, v))
        of_weight = torch.einsum("qhc,khc->hqk", given[own], values)
        of_scores = weight * (of_weight - (given[own] * out[own]).sum(-1).T[..., None]) * scale
        sums[0][own] = torch.einsum("hqk,khc->qhc", of_scores, keys)
        for whole, part in zip(
            sums[1:],
            (torch.einsum("hqk,qhc->khc", of_scores, q[own]),
             torch.einsum("hqk,qhc->khc", weight, given[own])),
            strict=True,
        ):  # fmt: skip
            whole[seen] = part.unflatten(1, (-1, groups)).sum(2)
    return sums


@pytest.mark.parametrize("head", [0, 4])
@pytest.mark.parametrize("prefix", [EVEN, UNEVEN])
@pytest.mark.parametrize("question", [FULL, RAGGED])
def test_merged_stretches_are_attention_over_all_keys_at_once(monkeypatch, head, prefix, question):
    monkeypatch.setattr(flash, "kernel_forward", forward)
    monkeypatch.setattr(flash, "kernel_backward", backward)
    packing = Packing.plan(prefix, question, APART)
    torch.manual_seed(0)
    shapes = [(1, 4, packing.total, 8), *[(1, 2, head + packing.total, 8)] * 2]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    expected = packing.attend(*inputs, partial(fused, scale=0.3))
    found = flash.attend(*inputs, packing, 0.3).transpose(1, 2)
    torch.testing.assert_close(found, expected)
    down = torch.randn_like(found)
    gradients = (torch.autograd.grad(out, inputs, down) for out in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("worth", [10**9, 1])  # without and with a pass for the opening
def test_a_step_by_stretches_has_the_loss_and_gradients_of_another(
    build, pictures, monkeypatch, worth
):
    pair = build(system_prompt="You look at pictures and answer in one word.")
    asked = [(pictures[i % 2], "Is there a star? " * (1 + i), "yes") for i in range(5)]
    model, batch = pair.model, pair.batch(asked)
    monkeypatch.setattr("crome.model.prefix.WORTH_A_PASS", worth)
    runs, stretches = [], []
    for by_stretches in (False, True):
        if by_stretches:
            monkeypatch.setattr(flash, "suits", lambda *_: True)
            monkeypatch.setattr(flash, "kernel_backward", backward)
            monkeypatch.setattr(
                flash, "kernel_forward", lambda *a: stretches.append(a[3]) or forward(*a)
            )
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        runs.append((loss.item(), [p.grad for p in model.adapter.parameters()]))
    (expected, theirs), (found, ours) = runs
    assert len(stretches) == (2 if worth > 1 else 3) * model.language_model.config.num_hidden_layers
    assert found == pytest.approx(expected, rel=1e-5)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).norm() <= 1e-5 * other.norm()


def test_a_kernel_is_tried_before_it_is_used(monkeypatch):
    """Inside of a ranking, too, where nothing has gradients; one that is wrong is not used."""
    right = torch.device("cpu"), torch.float32, fused
    with torch.inference_mode():
        monkeypatch.setattr(flash, "kernel_forward", forward)
        monkeypatch.setattr(flash, "kernel_backward", backward)
        assert flash.works.__wrapped__(*right)
        monkeypatch.setattr(flash, "kernel_backward", lambda *a: [2 * x for x in backward(*a)])
        assert not flash.works.__wrapped__(*right)
        monkeypatch.setattr(flash, "kernel_forward", lambda *a: forward(*a)[:1])
        assert not flash.works.__wrapped__(*right)


def test_rows_without_questions_need_one_stretch():
    nothing = torch.zeros(3, 1, dtype=torch.bool)
    packing = Packing.plan(UNEVEN, nothing, torch.arange(3))
    (own,) = flash.stretches(packing, 0)
    assert own.query_ends[0].tolist() == [0, 2, 3, 5, 5, 5, 5]


def test_a_cpu_has_no_such_kernel():
    packing = Packing.plan(EVEN, FULL, APART)
    query = torch.zeros(1, 4, packing.total, 8, dtype=torch.bfloat16)
    assert not flash.suits(query, query, packing, fused)


@pytest.mark.gpu
@pytest.mark.parametrize("head", [0, 24])
@pytest.mark.parametrize("width", [64, 80, 128])
def test_the_kernel_of_the_device_gives_what_float32_gives(device, head, width):
    if device != "cuda":
        pytest.skip("needs a CUDA device")
    for dtype in (torch.float16, torch.bfloat16):
        assert flash.works(torch.device(device), dtype, fused)
    prefix = torch.arange(257) < torch.tensor([[257], [100], [31]])
    question = torch.arange(40) < torch.tensor([[40], [1], [17], [0], [33]])
    packing = Packing.plan(prefix, question, APART).to(device)
    generator = torch.Generator().manual_seed(1)
    shapes = [(1, 4, packing.total, width), *[(1, 2, head + packing.total, width)] * 2]
    made = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
    half = [x.bfloat16().requires_grad_() for x in made]
    whole = [x.detach().float().requires_grad_() for x in half]
    scale = width**-0.5
    found = flash.attend(*half, packing, scale).transpose(1, 2)
    expected = packing.attend(*whole, partial(fused, scale=scale))
    down = torch.randn(found.shape, generator=generator).to(device)
    pairs = [(found, expected), *zip(
        torch.autograd.grad(found, half, down.bfloat16()),
        torch.autograd.grad(expected, whole, down), strict=True,
    )]  # fmt: skip
    for ours, theirs in pairs:  # bfloat16 keeps 8 bits: 0.004 a rounding
        assert (ours.float() - theirs).norm() < 0.01 * theirs.norm()
