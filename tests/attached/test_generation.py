"""Answers of an attached model: what is streamed, and what reaches its head."""

import pytest
import torch
from transformers import TextStreamer

from crome.attached import opening
from crome.rows import Row

PLAIN = ("llava", "internvl")


class Collected(TextStreamer):
    def __init__(self, tokenizer, **settings):
        super().__init__(tokenizer, **settings)
        self.text = ""

    def on_finalized_text(self, text, stream_end=False):
        self.text += text


def test_a_stream_holds_the_answer_alone(case, pictures):
    one = case("llava")
    batch = one.processor.encode([Row((pictures[0],), "What is it?", "", "1")])
    settings = {"max_new_tokens": 5, "do_sample": False, **one.processor.generation_kwargs}
    ids = one.model.generate(**batch, **settings)
    expected = one.processor.tokenizer.decode(ids[0], skip_special_tokens=True)
    for skip in (False, True):
        streamer = Collected(one.processor.tokenizer, skip_prompt=skip, skip_special_tokens=True)
        streamed = one.model.generate(**batch, streamer=streamer, **settings)
        assert torch.equal(streamed, ids)
        assert streamer.text == expected


def test_what_reaches_the_head_is_contiguous(case, pictures):
    """A strided bfloat16 input leaves the fast path of matrix products on a CPU."""
    one = case("llava")
    rows = [Row((picture,), "What is it?", "", str(n)) for n, picture in enumerate(pictures)]
    seen = []
    head = one.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    try:
        one.model.generate(**one.processor.encode(rows), max_new_tokens=2, do_sample=False)
    finally:
        handle.remove()
    assert seen
    assert all(states.is_contiguous() for states in seen)


@pytest.mark.parametrize("kind", ["llava", "internvl", "qwen2_5_vl", "gemma3"])
def test_questions_on_one_picture_are_answered_as_each_alone(case, pictures, kind, monkeypatch):
    """Where a family allows it their opening is read once; where not, nothing changes."""
    one = case(kind)
    one.draw()
    questions = ["What is it?", "How many of the things here do you see?", "x"]
    rows = [Row((picture,), q, "", q) for picture in pictures[:2] for q in questions]
    read, openings = opening.read, []
    monkeypatch.setattr(opening, "read", lambda *a: openings.append(a[1]) or read(*a))
    batch = one.processor.encode(rows)
    settings = {"max_new_tokens": 4, "do_sample": False, **one.processor.generation_kwargs}
    together = one.model.generate(**batch, **settings)
    assert [found.first for found in openings] == ([[0, 3]] if kind in PLAIN else [])
    for row, ids in zip(rows, together.tolist(), strict=True):
        (alone,) = one.model.generate(**one.processor.encode([row]), **settings).tolist()
        assert ids[: len(alone)] == alone
    one.model.shares_prefix, was = False, one.model.shares_prefix
    apart = one.model.generate(**batch, **settings)
    one.model.shares_prefix = was
    assert torch.equal(together, apart)


def test_beams_and_static_caches_read_whole_rows(case, pictures):
    one = case("llava")
    one.draw()
    rows = [Row((pictures[0],), q, "", q) for q in ("What is it?", "And how many?")]
    batch = one.processor.encode(rows)
    beams = {"num_beams": 2}
    for more in (beams, {"num_return_sequences": 2, **beams}, {"use_cache": False}):
        ends = one.processor.generation_kwargs
        settings = {"max_new_tokens": 3, "do_sample": False, **ends, **more}
        found = one.model.generate(**batch, **settings)
        copies = more.get("num_return_sequences", 1)
        for number, row in enumerate(rows):
            alone = one.model.generate(**one.processor.encode([row]), **settings)
            same = found[number * copies : (number + 1) * copies, : alone.shape[1]]
            assert torch.equal(same, alone)
