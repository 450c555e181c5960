"""Rows as chat messages, and media that a model does not take."""

from pathlib import Path

import pytest

from crome.data.collator import Collator
from crome.errors import InputError
from crome.model.lengths import Room
from crome.rows import Place, Row, laid_out, require_media

A, B, C = Path("a.png"), Path("b.png"), Path("c.png")


def text(words):
    return {"type": "text", "text": words}


def image(path):
    return {"type": "image", "image": path}


def test_media_stand_in_the_messages_where_they_stand_in_the_text():
    row = Row(
        (A, B, C), "Compare  with  now.", "No.", "x", history=(("First?", "Yes."),),
        places=(Place("image", 0, 6), Place("image", 1, 8), Place("image", 1, 14)),
        system="Be brief.",
    )  # fmt: skip
    assert row.messages() == [
        {"role": "system", "content": [text("Be brief.")]},
        {"role": "user", "content": [text("First?"), image(A)]},
        {"role": "assistant", "content": [text("Yes.")]},
        {
            "role": "user",
            "content": [text("Compare "), image(B), text(" with "), image(C), text(" now.")],
        },
    ]


def test_media_without_a_place_stand_in_front_of_the_first_question():
    row = Row((A, B), "And?", "No.", "x", history=(("Hi", "Hello"),), videos=((C, C),),
              audios=(Path("d.wav"),), places=(Place("image", 1, 4),))  # fmt: skip
    first, _, last = row.messages()
    assert first["content"] == [
        image(B),
        {"type": "video", "video": (C, C)},
        {"type": "audio", "audio": Path("d.wav")},
        text("Hi"),
    ]
    assert last["content"] == [text("And?"), image(A)]
    assert Row((), "What?", "", "y").messages() == [{"role": "user", "content": [text("What?")]}]


class Seeing:
    media = ("image",)

    def encode(self, rows, answers=False):
        return {"text": [row.question for row in rows]}

    def reads_whole(self, question, answer=""):
        return True


def test_a_row_with_media_that_the_model_does_not_take_is_refused():
    rows = [Row((A,), "q", "a", "seen"), Row((), "q", "a", "heard", audios=(Path("a.wav"),))]
    require_media(rows, ("image", "audio"))
    with pytest.raises(InputError, match="row heard has audio, and this model takes image;"):
        require_media(rows, ("image",))
    with pytest.raises(InputError, match="row heard has audio"):
        Collator(Seeing(), Room(None))(rows)


def test_a_processor_says_which_media_it_takes():
    class Ears(Seeing):
        media = ("image", "audio")

    row = Row((), "q", "a", "heard", audios=(Path("a.wav"),))
    assert Collator(Ears(), Room(None))([row])["text"] == ["q"]


@pytest.mark.parametrize(
    ("parts", "expected", "starts"),
    [
        (["Compare ", None, " with ", None, "."], "Compare  with .", [0, 8, 9, 14, 14]),
        (["Look.", None, "What?"], "Look.\nWhat?", [0, 5, 6]),
        (["Look. ", "What?"], "Look.\nWhat?", [0, 6]),
        ([None, " What? ", None], "What?", [0, 0, 5]),
        ([None, None], "", [0, 0]),
        (["One", " ", None, "\n", "two"], "One\ntwo", [0, 3, 3, 3, 4]),
    ],
)
def test_parts_of_a_message_as_one_text(parts, expected, starts):
    assert laid_out(parts) == (expected, starts)
