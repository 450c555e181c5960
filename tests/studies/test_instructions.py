"""Instructions are checked by what their replies hold, and nothing else."""

import pytest

from crome.studies.instructions import TOPICS, follow, instructions

THIRTY = " ".join(["word"] * 30)
RIGHT = {
    "length": THIRTY,
    "sentences": "The sea is wide. It is deep!",
    "list": "Here you are:\n1. sand\n2) boats\n- fish",
    "copy": "Of course: I like the sea very much.",
    "topic": "The Sea covers most of this planet.",
    "question": "Why is it so salty?",
}
WRONG = {
    "length": THIRTY.removesuffix(" word"),
    "sentences": "The sea is 3.5 miles deep.",
    "list": "1. sand\n2. boats and 3. fish",
    "copy": "I like the sea.",
    "topic": "The seaside is a fine place.",
    "question": "Why?",
}


@pytest.mark.parametrize("kind", RIGHT)
def test_each_kind_tells_right_from_wrong(kind):
    (one,) = [i for i in instructions(TOPICS[:1]) if i.kind == kind]
    assert one.followed(RIGHT[kind])
    assert not one.followed(WRONG[kind])
    assert not one.followed("")


def test_an_instruction_keeps_its_own_topic():
    """A check that closed over the loop's variable would look for the last topic."""
    for topic, copy in zip(TOPICS, [i for i in instructions() if i.kind == "copy"], strict=True):
        assert copy.followed(f"I like {topic} very much.")


def test_replies_come_in_order_without_an_image(build):
    pair = build()
    asked = instructions(TOPICS[:2])
    replies = follow(pair.model, pair.processor, asked)
    assert [reply["kind"] for reply in replies] == [one.kind for one in asked]
    assert all(reply["followed"] in (0.0, 1.0) for reply in replies)
