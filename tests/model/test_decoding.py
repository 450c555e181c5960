"""oneDNN is left out of passes over few tokens where that was measured to be faster, only there."""

import pytest
import torch

from crome.model import decoding
from crome.model.decoding import decode_fast


@pytest.fixture
def language_model(build):
    return build().model.language_model.to(torch.bfloat16)


def seen_by(language_model, shape):
    """Whether oneDNN was on inside a pass, and the logits."""
    states = []
    handle = language_model.lm_head.register_forward_hook(
        lambda *_: states.append(torch.backends.mkldnn.enabled)
    )
    with torch.inference_mode():
        logits = language_model(input_ids=torch.ones(shape, dtype=torch.long)).logits
    handle.remove()
    return states[0], logits


def test_few_tokens_and_no_others(language_model, monkeypatch):
    monkeypatch.setattr(decoding, "_better_without", lambda weights, rows: rows < 3)
    before = {shape: seen_by(language_model, shape)[1] for shape in ((1, 1), (2, 1), (3, 1))}
    assert decode_fast(language_model) == {1, 2}
    for shape, off in (((1, 1), True), ((2, 1), True), ((1, 2), True), ((3, 1), False),
                       ((1, 9), False)):  # fmt: skip
        state, logits = seen_by(language_model, shape)
        assert state is not off
        assert torch.backends.mkldnn.enabled
        if shape in before:  # bfloat16 has 8 bits of precision
            torch.testing.assert_close(logits, before[shape], atol=0.1, rtol=0.05)


def test_a_pass_that_fails_leaves_nothing_switched(language_model, monkeypatch):
    monkeypatch.setattr(decoding, "_better_without", lambda weights, rows: True)
    decode_fast(language_model)
    language_model.lm_head.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        language_model(input_ids=torch.ones(1, 1, dtype=torch.long))
    assert torch.backends.mkldnn.enabled


def test_float32_is_left_as_it_is(build):
    language_model = build().model.language_model
    before = language_model.config._attn_implementation
    assert decode_fast(language_model, free_attention=True) == frozenset()
    assert language_model.config._attn_implementation == before
    assert not language_model._forward_pre_hooks


def test_the_trial_measures_both_ways(language_model):
    """On this machine; which is faster is its own affair."""
    assert decode_fast(language_model) <= {1, 2, 3}
    assert torch.backends.mkldnn.enabled
