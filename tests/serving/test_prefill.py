"""Prompts that arrive together are read together, what they share once, and mean what each says."""

import pytest
import torch

from crome.rows import Row
from crome.serving.engine import Engine, Request
from crome.serving.layers import ones_of, side_by_side, tokens_of
from crome.serving.prefill import Prefill
from crome.serving.prompts import prompt_of


def prompts_of(pair, pictures):
    """Two questions on one picture, one on another, one without; all lengths differ."""
    rows = [
        Row((pictures[0],), "What?", "", ""), Row((pictures[0],), "Is there a star?", "", ""),
        Row((pictures[1],), "How many are there in the picture?", "", ""), Row((), "yes", "", ""),
    ]  # fmt: skip
    return [prompt_of(pair.processor, row) for row in rows]


@pytest.mark.parametrize("language", ["llama", "gemma3", "mistral"])
def test_together_as_alone(build, pictures, language):
    """In float32 the difference is rounding; sliding windows see no padding."""
    pair = build(language=language)
    prompts = prompts_of(pair, pictures)
    with torch.inference_mode():
        together = Prefill(pair.model)
        found = together.read([together.stretches(prompt) for prompt in prompts])
        for prompt, (layers, logits, reused) in zip(prompts, found, strict=True):
            alone = Prefill(pair.model)
            (expected,) = alone.read([alone.stretches(prompt)])
            torch.testing.assert_close(logits, expected[1], atol=1e-5, rtol=0)
            torch.testing.assert_close(layers, expected[0], atol=1e-5, rtol=0)
            assert tokens_of(layers) == prompt.length
            assert reused == 0


def test_what_is_shared_is_read_once(build, pictures, monkeypatch):
    pair = build()
    prefill, read = Prefill(pair.model), []
    extend = prefill._extend
    monkeypatch.setattr(prefill, "_extend", lambda rows: read.append(len(rows)) or extend(rows))
    prompts = prompts_of(pair, pictures)
    with torch.inference_mode():
        first = prefill.read([prefill.stretches(prompt) for prompt in prompts])
        assert read == [1, 2, 4]  # the one head, two pictures, four questions
        again = prefill.read([prefill.stretches(prompt) for prompt in prompts])
    assert read[3:] == [0, 0, 4]
    for before, after in zip(first, again, strict=True):
        assert torch.equal(before[1], after[1])
    assert [known > 0 for _, _, known in again] == [True, True, True, False]


def test_prompts_are_read_in_groups_that_do_not_hold_up_the_others(build, pictures, monkeypatch):
    pair = build()
    prompts = prompts_of(pair, pictures) * 2
    engine = Engine(pair.model, pair.processor, prefill_tokens=70)
    groups, read = [], engine.prefill.read
    monkeypatch.setattr(
        engine.prefill, "read", lambda group: groups.append(len(group)) or read(group)
    )
    for prompt in prompts:
        engine.submit(Request(prompt, lambda piece: None, 3))
    engine.call(lambda: groups.append("between"))
    engine.submit(Request(prompts[0], lambda piece: None, 3))
    engine.start()
    engine.close(30)
    assert sum(groups[: groups.index("between")]) == len(prompts)
    assert groups[-2:] == ["between", 1]
    assert 1 < max(groups[:-2]) < len(prompts)


def test_rows_side_by_side():
    row = [(torch.ones(1, 1, 2, 3), torch.ones(1, 1, 2, 3))]
    cache, mask = side_by_side([(row, ones_of(row)), ([], ones_of([]))])
    assert mask.tolist() == [[1, 1], [0, 0]]
    assert cache.layers[0].keys.sum((1, 2, 3)).tolist() == [6, 0]
    assert side_by_side([([], ones_of([]))])[1].shape == (1, 0)
