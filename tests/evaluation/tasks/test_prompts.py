import pytest

from crome.errors import InputError
from crome.evaluation.tasks.prompts import STYLES, multiple_choice, short_answer

OPTIONS = {"A": "red", "B": "blue"}


def test_short_answer_in_every_style() -> None:
    assert [short_answer("Which colour?", style) for style in STYLES] == [
        "Which colour?\nAnswer the question using a single word or phrase.",
        "Question: Which colour? Short answer:",
        "Question: Which colour?\nAnswer:",
        "Which colour?",
    ]


def test_multiple_choice_in_every_style() -> None:
    letters, texts = ("A", "B"), ("red", "blue")
    sentence = "Answer with the option's letter from the given choices directly."
    assert multiple_choice("Which?", OPTIONS, "llava", "Hint.") == (
        f"Hint.\nWhich?\nA. red\nB. blue\n{sentence}",
        letters,
    )
    assert multiple_choice("Which?", OPTIONS, "instructblip", "Hint.") == (
        "context: Hint. Question: Which? Options: (a) red (b) blue. Answer:",
        texts,
    )
    assert multiple_choice("Which?", OPTIONS, "rank") == ("Question: Which?\nAnswer:", texts)


def test_unknown_style_is_named() -> None:
    with pytest.raises(InputError, match="'lava' is unknown: use one of llava, instructblip"):
        short_answer("Which?", "lava")
