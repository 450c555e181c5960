"""Packed rows: who stands where, who sees whom."""

from functools import partial

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from crome.model.kernels import chunked, fused
from crome.model.packing import Packing

# Three prefixes; questions of 3, 1, 2 and 1 tokens on prefixes 0, 0, 1 and 2.
REAL = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 0, 0]], dtype=torch.bool)
OWNER = torch.tensor([0, 0, 1, 2])
EVEN = torch.ones(3, 2, dtype=torch.bool)
UNEVEN = torch.tensor([[1, 1], [1, 0], [1, 1]], dtype=torch.bool)


def places(packing: Packing, prefix: torch.Tensor) -> list[tuple[int, int]]:
    """(prefix, question or -1) of every place."""
    found = [(-1, -1)] * packing.total
    for number, row in enumerate(packing.prefix):
        for place in row[prefix[number]].tolist():
            found[place] = (number, -1)
    for number, row in enumerate(packing.place):
        for place in row[REAL[number]].tolist():
            found[place] = (int(OWNER[number]), number)
    return found


@pytest.mark.parametrize("prefix", [EVEN, UNEVEN])
def test_every_token_has_a_place_of_its_own(prefix):
    packing = Packing.plan(prefix, REAL, OWNER)
    assert packing.total == prefix.sum() + REAL.sum()
    tokens, suffix = torch.arange(6.0).view(3, 2, 1), 10 + torch.arange(12.0).view(4, 3, 1)
    flat = packing.fill(tokens, suffix).flatten()
    assert torch.equal(flat[packing.prefix[prefix]], tokens[..., 0][prefix])
    assert torch.equal(flat[packing.place[REAL]], suffix[..., 0][REAL])
    assert len(set(places(packing, prefix))) == 3 + 4


def test_positions_count_as_if_every_question_were_alone_with_its_image():
    packing = Packing.plan(UNEVEN, REAL, OWNER)
    assert packing.positions.tolist() == [0, 1, 0, 0, 1, 2, 3, 4, 2, 1, 2, 2]


@pytest.mark.parametrize("kernel", [fused, chunked])
@pytest.mark.parametrize("head", [0, 4])
@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("prefix", [EVEN, UNEVEN])
def test_attention_is_that_of_a_mask_over_all_pairs(prefix, head, opened, kernel):
    """A token sees the opening, its prefix, and its own question up to itself."""
    packing = Packing.plan(prefix, REAL, OWNER)
    inside = torch.ones(2, 2, dtype=torch.bool) if opened else torch.ones(2, 2).bool().tril()
    inside = inside & prefix[:, None]
    if opened:
        packing = packing.masked((inside | torch.eye(2).bool())[:, None])
    stands = places(packing, prefix)
    seen = torch.ones(packing.total, head + packing.total, dtype=torch.bool)
    for i, (image, question) in enumerate(stands):
        for j, (other, asked) in enumerate(stands):
            before = j <= i or (opened and question < 0 and asked < 0)
            seen[i, head + j] = before and image == other and asked in (-1, question)
    torch.manual_seed(0)
    shapes = [(1, 4, packing.total, 8), *[(1, 2, head + packing.total, 8)] * 2]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    expected = fused(*inputs, scale=0.3, mask=seen)
    found = packing.attend(*inputs, partial(kernel, scale=0.3))
    torch.testing.assert_close(found, expected)
    down = torch.randn_like(found)
    gradients = (torch.autograd.grad(out, inputs, down) for out in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_attention_is_that_of_a_block_mask():
    """FlexAttention over the whole row, which GPUs compile, computes the same."""
    packing = Packing.plan(UNEVEN, REAL, OWNER)
    stands = torch.tensor(places(packing, UNEVEN))
    image, question = stands[:, 0], stands[:, 1]

    def seen(_, __, i, j):
        asked = (question[j] < 0) | (question[i] == question[j])
        return (j <= i) & (image[i] == image[j]) & asked

    mask = create_block_mask(seen, None, None, packing.total, packing.total, device="cpu")
    q, k, v = torch.randn(3, 1, 2, packing.total, 16).unbind(0)
    expected = flex_attention(q, k, v, block_mask=mask, scale=0.3)
    torch.testing.assert_close(packing.attend(q, k, v, partial(fused, scale=0.3)), expected)


def test_what_two_questions_make_of_each_other_is_nothing():
    """Another question's tokens change no bit of one's own."""
    packing = Packing.plan(EVEN, REAL, OWNER)
    q, k, v = torch.randn(3, 1, 2, packing.total, 8).unbind(0)
    before = packing.attend(q, k, v, partial(fused, scale=1.0))
    k[:, :, packing.place[0]] += 1.0
    after = packing.attend(q, k, v, partial(fused, scale=1.0))
    changed = (before != after).any(-1).any(1)[0].nonzero().flatten().tolist()
    assert changed == packing.place[0].tolist()
