"""Prompts that arrive together are read together, what they share once, and mean what each says."""

import time
from dataclasses import replace
from functools import partial

import pytest
import torch

from crome.rows import Row
from crome.serving.engine import prefill as module
from crome.serving.engine.layers import ones_of, side_by_side, tokens_of
from crome.serving.engine.local import LocalEngine
from crome.serving.engine.prefill import Prefill
from crome.serving.engine.protocol import Request, RoomError
from crome.serving.prompts import prompt_of


def prompts_of(pair, pictures):
    """Two questions on one picture, one on another, one without; all lengths differ."""
    rows = [
        Row((pictures[0],), "What?", "", ""), Row((pictures[0],), "Is there a star?", "", ""),
        Row((pictures[1],), "How many are there in the picture?", "", ""), Row((), "yes", "", ""),
    ]  # fmt: skip
    return [prompt_of(pair.processor, row) for row in rows]


def read(prefill, prompts, tokens=1024):
    """Readings of prompts, and the tokens that each pass over the language model read."""
    readings, passes = prefill.begin(prompts), []
    while left := [reading for reading in readings if not reading.finished]:
        passes.append(prefill.advance(left, tokens))
    return readings, passes


@pytest.mark.parametrize("language", ["llama", "gemma3", "mistral"])
@pytest.mark.parametrize("tokens", [1024, 7])
def test_together_and_in_chunks_as_alone(build, pictures, language, tokens):
    """In float32 the difference is rounding; sliding windows see no padding."""
    pair = build(language=language)
    prompts = prompts_of(pair, pictures)
    with torch.inference_mode():
        found, passes = read(Prefill(pair.model), prompts, tokens)
        for prompt, reading in zip(prompts, found, strict=True):
            (expected,), _ = read(Prefill(pair.model), [prompt])
            torch.testing.assert_close(reading.logits, expected.logits, atol=1e-5, rtol=0)
            torch.testing.assert_close(reading.layers, expected.layers, atol=1e-5, rtol=0)
            assert tokens_of(reading.layers) == prompt.length
            assert reading.reused == 0
    assert max(passes) <= tokens


def test_what_is_shared_is_read_once(build, pictures, monkeypatch):
    pair = build()
    prefill, rows = Prefill(pair.model), []
    extend = prefill._extend
    monkeypatch.setattr(
        prefill, "_extend", lambda readings, n: rows.append(len(readings)) or extend(readings, n)
    )
    prompts = prompts_of(pair, pictures)
    with torch.inference_mode():
        first, _ = read(prefill, prompts)
        # The one head beside the prompt without a picture, two pictures, three questions.
        assert rows == [2, 2, 3]
        again, _ = read(prefill, prompts)
    assert rows[3:] == [4]
    for before, after in zip(first, again, strict=True):
        # Alone or beside others: rounding.
        torch.testing.assert_close(before.logits, after.logits, atol=1e-5, rtol=0)
    assert [reading.reused > 0 for reading in again] == [True, True, True, False]


def test_a_long_prompt_alone_is_read_in_the_same_chunks_warm_and_cold(build, pictures, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 5)
    pair = build()
    prefill, prompts = Prefill(pair.model), prompts_of(pair, pictures)[:1]
    with torch.inference_mode():
        (cold,), passes = read(prefill, prompts)
        (warm,), later = read(prefill, prompts)
    assert max(passes) == 5
    assert sum(later) < sum(passes)
    assert torch.equal(cold.logits, warm.logits)


def test_one_prompt_that_fails_ends_no_other(build, pictures, monkeypatch):
    """In the vision tower, and in the language model."""
    pair = build()
    prompts = prompts_of(pair, pictures)
    prompts[1].digests = ("broken",)
    prompts[1].pixel_values = torch.full_like(prompts[1].pixel_values, float("nan"))
    see, extend = pair.model.visual_features, Prefill._extend

    def fails_on_nan(pixels):
        if pixels.isnan().any():
            raise RuntimeError("no such picture")
        return see(pixels)

    def fails_on_long(self, readings, tokens):
        if any(reading.left > 60 for reading in readings):
            raise RuntimeError("out of memory")
        return extend(self, readings, tokens)

    monkeypatch.setattr(pair.model, "visual_features", fails_on_nan)
    monkeypatch.setattr(Prefill, "_extend", fails_on_long)
    prompts.append(replace(prompts[3], ids=torch.full((1, 70), 9)))
    engine, last = LocalEngine(pair.model, pair.processor), {}
    for number, prompt in enumerate(prompts):
        engine.submit(Request(prompt, partial(last.__setitem__, number), 3))
    engine.start()
    engine.close(30)
    assert [last[i].error is None for i in range(5)] == [True, False, True, True, False]
    assert not engine.failed


def test_what_does_not_fit_waits_or_is_refused(build, pictures):
    """Memory for two rows of this length: never more run, all are answered, one is too long."""
    pair = build()
    prompts = prompts_of(pair, pictures) * 2
    engine, last, most = LocalEngine(pair.model, pair.processor), {}, []
    engine.warm_up(prompts[0])
    longest = 10 + max(map(engine.length, prompts))
    engine.admission.cache_bytes = 2 * longest * engine.prefill.token_bytes

    def deliver(number, piece):
        most.append(engine.running)
        last[number] = piece

    for number, prompt in enumerate(prompts):
        engine.submit(Request(prompt, partial(deliver, number), 10))
    engine.submit(Request(prompts[0], partial(deliver, "long"), 10_000))
    engine.start()
    engine.close(60)
    assert max(most) == 2
    assert all(last[i].error is None for i in range(len(prompts)))
    assert isinstance(last["long"].error, RoomError)


def test_running_answers_go_on_while_a_long_prompt_is_read(build):
    """Between two of their tokens, no more is read than the rate of reading allows."""
    pair = build()
    words = prompt_of(pair.processor, Row((), "yes", "", ""))
    long = replace(words, ids=torch.full((1, 240), 9))
    engine = LocalEngine(pair.model, pair.processor, gap=0.001)
    events, advance = [], engine.prefill.advance

    def advancing(readings, tokens):
        engine._pace._tokens = engine._pace.most = 20
        events.append(("read", min(tokens, readings[0].left)))
        return advance(readings, tokens)

    engine.prefill.advance = advancing
    engine.submit(Request(words, lambda piece: events.append(("token", 1)), 40))
    engine.between(lambda: None)
    engine.start()
    while len(events) < 3:
        time.sleep(0.001)
    engine.submit(Request(long, lambda piece: events.append(("long", 1)), 1))
    engine.close(30)
    reads = [i for i, (kind, _) in enumerate(events) if kind == "read"][1:]
    assert all(events[i][1] <= 20 for i in reads)
    assert all(events[i + 1][0] == "token" for i in reads[:-1])
    assert len(reads) >= 12


def test_a_prompt_read_in_chunks_is_copied_once(build, pictures):
    """Its keys lie in one place with room for the whole; what is kept for others has no room."""
    pair = build()
    first, second, *_ = prompts_of(pair, pictures)
    prefill = Prefill(pair.model)
    with torch.inference_mode():
        (reading,) = prefill.begin([first])
        places = set()
        while not reading.finished:
            prefill.advance([reading], 7)
            places.add(reading.layers[0][0].data_ptr())
        assert len(places) == 1
        for layers, _ in prefill.prefixes._entries.values():
            for keys, values in layers:
                assert keys.untyped_storage().nbytes() == keys.nbytes
                assert values.untyped_storage().nbytes() == values.nbytes
        before = [(keys.clone(), values.clone()) for keys, values in reading.layers]
        (other,) = prefill.begin([second])  # goes on from the picture that both show
        assert other.reused
        while not other.finished:
            prefill.advance([other], 7)
        torch.testing.assert_close(reading.layers, before, atol=0, rtol=0)


def test_a_pass_that_failed_is_repeated_from_what_was_read(build):
    """Some layers took the tokens already when it failed."""
    pair = build()
    words = prompt_of(pair.processor, Row((), "yes", "", ""))
    long = replace(words, ids=torch.arange(40)[None] % 9)
    prefill = Prefill(pair.model)
    with torch.inference_mode():
        (expected,), _ = read(prefill, [long], 16)
        (reading,) = prefill.begin([long])
        prefill.advance([reading], 16)
        last = pair.model.language_model.get_decoder().layers[-1]
        forward, last.forward = last.forward, None
        with pytest.raises(TypeError):
            prefill.advance([reading], 16)
        last.forward = forward
        while not reading.finished:
            prefill.advance([reading], 16)
    torch.testing.assert_close(reading.logits, expected.logits, atol=1e-5, rtol=0)
    assert tokens_of(reading.layers) == 40


def test_rows_side_by_side():
    row = [(torch.ones(1, 1, 2, 3), torch.ones(1, 1, 2, 3))]
    cache, mask = side_by_side([(row, ones_of(row)), ([], ones_of([]))])
    assert mask.tolist() == [[1, 1], [0, 0]]
    assert cache.layers[0].keys.sum((1, 2, 3)).tolist() == [6, 0]
    assert side_by_side([([], ones_of([]))])[1].shape == (1, 0)
