"""Streamed text: the pieces make the whole, nothing undecided is sent, stop strings never leak."""

import itertools

import pytest

from crome.serving.engine.text import TextStream


class Letters:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids, skip_special_tokens):
        return bytes(ids).decode("utf-8", errors="replace")


def stream(text, **settings):
    stream = TextStream(Letters(), **settings)
    pieces = []
    for byte in text.encode():
        pieces.append(stream.push(byte))
        if stream.stopped:
            break
    else:
        pieces.append(stream.finish())
    return stream, pieces


@pytest.mark.parametrize("text", ["", " ", "a", " two  words ", "né 図形 🙂 end", "🙂", "a\n\nb\n"])
def test_pieces_make_the_stripped_whole(text):
    _, pieces = stream(text)
    assert "".join(pieces) == text.strip()
    assert "\ufffd" not in "".join(pieces)
    _, pieces = stream(text, strip=False)
    assert "".join(pieces) == text


def test_every_prefix_that_was_sent_stays():
    """What a client has seen begins what it sees next, whatever the stop strings."""
    text = "abcabcabd efg abcabd"
    for stop in itertools.product("abd", repeat=3):
        word = "".join(stop)
        whole = text[: text.find(word)] if word in text else text
        following, pieces = stream(text, stop=[word])
        assert "".join(pieces) == whole.strip()
        assert following.stopped == (word in text)


def test_the_first_of_several_stop_strings_ends():
    _, pieces = stream("one two three", stop=["three", "two", ""])
    assert "".join(pieces) == "one"
    _, pieces = stream("ab stop", stop=["stopped"])  # only its beginning came
    assert "".join(pieces) == "ab stop"


def test_half_a_character_at_the_end_is_said():
    following = TextStream(Letters())
    assert following.push("é".encode()[0]) == ""
    assert following.finish() == "\ufffd"
