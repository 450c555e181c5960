"""Decoding in slots: the same answers, by a step that is recorded once and replayed."""

import pytest
import torch
from transformers import DynamicCache

from crome.errors import InputError
from crome.model import slots
from crome.model.answering import answer
from crome.model.families import new_cache
from crome.model.slots import PLACES, Slots, choose, fits, records, slots_of
from crome.rows import Row
from tests.recording import Waits, recorded

FAMILIES = ["llama", "vicuna", "tied", "qwen3", "phi3"]


def known(cache):
    return [(layer.keys, layer.values) for layer in cache.layers]


def copied(cache):
    """A cache with tensors of its own."""
    new = DynamicCache()
    for layer, (keys, values) in enumerate(known(cache)):
        new.update(keys.clone(), values.clone(), layer)
    return new


def prompts(model, lengths):
    """Rows of some lengths, padded on the right: their mask, and a cache that holds them."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 50, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    cache = new_cache(model)
    embeds = model.get_input_embeddings()(ids)
    model(inputs_embeds=embeds, attention_mask=mask, past_key_values=cache, use_cache=True)
    return mask, cache


def behind_cache(model, cache, mask, ids):
    """Logits of a step behind a growing cache."""
    return model(
        inputs_embeds=model.get_input_embeddings()(ids)[:, None], attention_mask=mask,
        position_ids=mask.sum(1, keepdim=True) - 1, past_key_values=cache, use_cache=True,
    ).logits[:, -1]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("language", FAMILIES)
def test_logits_are_those_behind_a_growing_cache(build, recording, language):
    """Over a change of the number of places, with padding, and with slots that have no row."""
    model = build(language=language).model.language_model
    mask, cache = prompts(model, [PLACES - 5, 5, 90])
    ours = Slots(model)
    assert ours.take(new := copied(cache), mask, 12)
    assert not new.layers
    generator = torch.Generator().manual_seed(1)
    for step in range(12):
        ids = torch.randint(10, 50, (3,), generator=generator)
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        expected = behind_cache(model, cache, mask, ids)
        torch.testing.assert_close(
            ours.step(ids, PLACES - 5 + step), expected, atol=1e-5, rtol=1e-4
        )
    assert {size: found is not None for size, found in ours._recordings.items()} == {
        (4, PLACES): True, (4, 2 * PLACES): True
    }  # fmt: skip


@torch.no_grad()
def test_rows_come_go_and_move(build, recording):
    model = build().model.language_model
    mask, cache = prompts(model, [6, 4])
    ours = Slots(model)
    ours.reserve(2, 12, known(cache))
    ours.put(known(cache), mask.bool())
    ours.reserve(3, 200, known(cache), kept=2)
    ours.put([(k[:1, :, :4], v[:1, :, :4]) for k, v in known(cache)], mask[:1, :4].bool(), first=2)
    ours.move(2, 0, 4)
    first, second = ours.step(torch.tensor([11, 12]), 6)
    _, other = prompts(model, [6, 4])
    for layer in other.layers:
        layer.keys, layer.values = layer.keys[:1, :, :4], layer.values[:1, :, :4]
    expected = behind_cache(model, other, torch.ones(1, 5, dtype=torch.long), torch.tensor([11]))
    torch.testing.assert_close(first[None], expected, atol=1e-5, rtol=1e-4)
    mask = torch.nn.functional.pad(mask, (0, 1), value=1)
    expected = behind_cache(model, cache, mask, torch.tensor([11, 12]))[1:]
    torch.testing.assert_close(second[None], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("language", [*FAMILIES, "gemma2", "mistral"])
def test_answers_are_those_without(build, pictures, device, monkeypatch, language):
    """Of rows that share a picture and of rows that do not; where slots do not suit, too."""
    pair = build(language=language)
    asked = [Row((pictures[i // 2],), "Is there a star? " * (1 + i), "", str(i)) for i in range(4)]
    asked.append(Row((), "Is there one?", "", "text"))
    groups = asked, asked[:4]
    settings = {"max_new_tokens": 8, "eos_token_id": [1]}
    model = pair.model.language_model
    monkeypatch.setitem(slots._FITS, model, False)
    expected = [answer(pair.model, pair.processor, rows, **settings) for rows in groups]
    del slots._FITS[model]
    if device == "cpu":
        monkeypatch.setitem(slots.RECORDERS, "cpu", recorded)
    found = [answer(pair.model, pair.processor, rows, **settings) for rows in groups]
    assert found == expected
    assert (language in FAMILIES) == records(model) == (model in slots._SLOTS)
    if records(model):
        with slots_of(model) as used:
            assert used is not None
            assert any(used._recordings.values())


def test_a_step_waits_for_nothing(build, recording):
    """No operation in it asks the device for a number, so it can be recorded."""
    model = build().model.language_model
    with torch.no_grad():
        mask, cache = prompts(model, [6, 4])
        ours = Slots(model)
        ours.take(cache, mask, 20)
        with Waits() as waits:
            for step in range(6):
                ours.step(torch.tensor([11, 12]), 6 + step)
    # The comparison of the recording with what was computed, once.
    assert waits.names.count("_local_scalar_dense.default") <= 1


def test_a_recording_that_gives_something_else_is_not_used(build, monkeypatch, caplog):
    def spoilt(step, pool):
        replay, pool = recorded(step, pool)
        return lambda: replay() + 1.0, pool

    def failing(step, pool):
        raise RuntimeError("operation not permitted when stream is capturing")

    for broken in (spoilt, failing):
        model = build().model.language_model
        monkeypatch.setitem(slots.RECORDERS, "cpu", broken)
        with torch.no_grad():
            mask, cache = prompts(model, [6, 4])
            ours = Slots(model)
            ours.take(copied(cache), mask, 20)
            for step in range(6):
                mask = torch.nn.functional.pad(mask, (0, 1), value=1)
                expected = behind_cache(model, cache, mask, torch.tensor([11, 12]))
                found = ours.step(torch.tensor([11, 12]), 6 + step)
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        assert list(ours._recordings.values()) == [None]
    assert "gives other logits" in caplog.text
    assert "cannot be recorded" in caplog.text


def test_memory_stays_within_its_limit(build):
    model = build().model.language_model
    _, cache = prompts(model, [6])
    token = sum(x.nbytes // 6 for pair in known(cache) for x in pair)
    ours = Slots(model, limit=4 * PLACES * token)
    ours.reserve(4, 20, known(cache))
    assert (ours.number, ours.places) == (4, PLACES)
    ours.reserve(1, 3 * PLACES, known(cache))  # not four rows of this length
    assert (ours.number, ours.places) == (1, 3 * PLACES)
    ours.reserve(5, 20, known(cache))  # what is needed is there, and no more
    assert (ours.number, ours.places) == (5, PLACES)


def test_two_threads_do_not_meet(build, recording):
    model = build().model.language_model
    with slots_of(model) as mine:
        assert mine is not None
        with slots_of(model) as other:
            assert other is None
    with slots_of(model) as again:
        assert again is mine


def test_families_and_settings(build, recording):
    for language, suits in {"llama": True, "gemma2": False, "mistral": False, "t5": False}.items():
        model = build(language=language).model.language_model
        assert fits(model) == suits, language
        if suits:
            choose(model, "recorded")
            choose(model, "plain")
            assert not records(model)
        with pytest.raises(InputError, match="cannot be recorded on cpu; give --decoding auto"):
            choose(model, "recorded")
