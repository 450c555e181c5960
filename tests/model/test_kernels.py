"""The kernels of attention: the same numbers, chosen by measuring."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from crome.model import kernels
from crome.model.kernels import CHUNK, NAME, best_kernel, chunked, fused, obeys_packing, use_kernels
from crome.model.packing import Packing


@pytest.mark.parametrize(
    ("rows", "keys"), [(5, 5), (CHUNK + 44, CHUNK + 44), (70, 200), (2 * CHUNK, 3 * CHUNK)]
)
@pytest.mark.parametrize("mask", [None, "bool", "added"])
def test_both_kernels_compute_the_same(rows, keys, mask):
    torch.manual_seed(0)
    shapes = [(2, 6, rows, 8), (2, 2, keys, 8), (2, 2, keys, 8)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    chosen = None
    if mask == "bool":
        chosen = torch.rand(2, 1, rows, keys) < 0.5
        chosen[..., 0] = True
    elif mask == "added":
        chosen = torch.randn(2, 6, rows, keys, dtype=torch.float64)
    outs = [kernel(*inputs, scale=0.3, mask=chosen) for kernel in (fused, chunked)]
    torch.testing.assert_close(outs[1], outs[0])
    down = torch.randn_like(outs[0])
    for ours, theirs in zip(
        *(torch.autograd.grad(out, inputs, down) for out in reversed(outs)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("mask", [None, "bool"])
def test_bfloat16_is_as_near_to_float32_as_the_fused_kernel(mask):
    torch.manual_seed(0)
    exact = [torch.randn(1, 3, 200, 64) for _ in range(3)]
    chosen = None if mask is None else torch.ones(200, 200, dtype=torch.bool).tril()[None, None]
    expected = fused(*exact, scale=0.125, mask=chosen)
    half = [x.bfloat16() for x in exact]
    errors = [
        (kernel(*half, scale=0.125, mask=chosen).float() - expected).abs().max()
        for kernel in (chunked, fused)
    ]
    assert errors[0] < 2 * errors[1]


def test_the_choice_is_measured_once_and_kept_on_disk(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = []
    monkeypatch.setattr(kernels, "faster", lambda *_: asked.append(_) or "chunked")
    query = torch.ones(1, 2, 90, 4, dtype=torch.bfloat16, requires_grad=True)
    for _ in range(2):
        kernels.measured.cache_clear()  # as in another process
        assert best_kernel(query, query) is chunked
    (measured,) = asked
    assert measured[2] == 128
    (kept,) = json.loads((tmp_path / "crome" / "attention.json").read_text()).values()
    assert kept == "chunked"
    (tmp_path / "crome" / "attention.json").write_text('{"cut')
    kernels.measured.cache_clear()
    assert best_kernel(query, query) is chunked
    assert len(asked) == 2
    kernels.measured.cache_clear()


def test_a_measurement_names_a_kernel():
    assert kernels.faster(torch.bfloat16, (2, 1, 8), 64) in ("fused", "chunked")


def test_without_gradients_or_in_float32_there_is_nothing_to_measure():
    query = torch.ones(1, 2, 3, 4, requires_grad=True)
    assert best_kernel(query, query) is fused
    half = query.detach().bfloat16()
    assert best_kernel(half, half) is fused
    with torch.no_grad():
        assert best_kernel(half.requires_grad_(), half) is fused


def small(**settings):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        LlamaConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, vocab_size=32, **settings,
        )
    ).eval()  # fmt: skip


def test_without_gradients_a_model_gives_the_same_bits():
    model, ids = small(), torch.arange(12).view(2, 6)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        use_kernels(model)
        assert model.config._attn_implementation == NAME
        assert torch.equal(model(input_ids=ids).logits, expected)


def test_half_precision_learns_from_the_same_gradients(monkeypatch):
    """Rows of unequal length, of a kernel that keeps its weights and of one that does not."""
    model = small().bfloat16().requires_grad_(False)
    use_kernels(model)
    mask = torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]])
    embeds = torch.randn(2, 6, 16).bfloat16().requires_grad_()
    found = []
    for name in ("fused", "chunked"):
        monkeypatch.setattr(kernels, "measured", lambda *_, name=name: name)
        logits = model(inputs_embeds=embeds, attention_mask=mask).logits[mask.bool()]
        found.append((logits, torch.autograd.grad(logits.float().pow(2).sum(), embeds)[0]))
    for fast, plain in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=0.05, atol=0.05)


def test_a_model_whose_layers_do_not_follow_a_packing_is_found_out(monkeypatch):
    model = small()
    assert obeys_packing(model)
    kernels._OBEYS.clear()
    monkeypatch.setattr(Packing, "fits", lambda *_: False)
    assert not obeys_packing(model)
    kernels._OBEYS.clear()


def test_eager_attention_stays_eager_and_reading_apart_is_said_once(caplog):
    model = small(attn_implementation="eager")
    kernels.warn_no_sharing.cache_clear()
    for _ in range(2):
        assert not obeys_packing(model)
    assert model.config._attn_implementation == "eager"
    (line,) = caplog.messages
    assert "LlamaForCausalLM with eager attention" in line
