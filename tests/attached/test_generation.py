"""Answers of an attached model: what is streamed, and what reaches its head."""

import torch
from transformers import TextStreamer

from crome.rows import Row


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
