"""Questions on the terminal as rows."""

import pytest
from PIL import Image

from crome.errors import InputError
from crome.rows import Place
from crome.serving.ask import row_of

RED, BLUE = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")


def test_marks_in_a_question_are_places():
    row = row_of("Compare <image> with <image>.", (RED, BLUE))
    assert (row.question, row.images) == ("Compare  with .", (RED, BLUE))
    assert row.places == (Place("image", 0, 8), Place("image", 0, 14))
    assert row_of("<image>\nWhat?", (RED,)).question == "What?"
    assert row_of("Second: <image 2>, first: <image 1>", (RED, BLUE)).images == (BLUE, RED)


def test_without_marks_pictures_stand_in_front_and_without_pictures_marks_are_words():
    assert row_of(" What? ", (RED, BLUE)).places == ()
    assert row_of("What does <image> mean?", ()).question == "What does <image> mean?"


@pytest.mark.parametrize("question", ["One <image>?", "<image> <image> <image>?", "<video>?"])
def test_other_marks_than_pictures_are_refused(question):
    with pytest.raises(InputError, match=r"the question|images: 2 images for"):
        row_of(question, (RED, BLUE))
