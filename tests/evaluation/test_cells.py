import numpy as np
import pytest

from crome.errors import InputError
from crome.evaluation import cells

LETTERED = {"A": "krill", "B": "whale"}


@pytest.mark.parametrize(
    "cell",
    [
        ["krill", "whale"],
        ("krill", "whale"),
        np.array(["krill", "whale"]),
        "['krill', 'whale']",
        '["krill", "whale"]',
        "['krill' 'whale']",  # a column of arrays written by pandas
        {"A": "krill", "B": "whale"},
        {"b": "whale", "a": "krill"},
        '{"A": "krill", "B": "whale"}',
        {"label": ["A", "B"], "text": ["krill", "whale"]},
    ],
)
def test_options_of_any_form(cell: object) -> None:
    assert cells.options(cell) == LETTERED


def test_an_option_that_is_missing_shifts_no_other() -> None:
    assert cells.options(["a", None, float("nan"), "d"]) == {"A": "a", "D": "d"}
    assert cells.options({"A": "a", "B": float("nan")}) == {"A": "a"}
    assert cells.options([0, 1.0, 2.5]) == {"A": "0", "B": "1", "C": "2.5"}


@pytest.mark.parametrize("cell", ["krill", 3, None, {"first": "x"}, [["a"], "b"]])
def test_what_is_no_list_of_options_is_refused(cell: object) -> None:
    with pytest.raises(InputError, match=r"expected|keyed by letters"):
        cells.options(cell)


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ("['red', 'red', 'red']", ["red"] * 3),
        ("red", ["red"]),
        ("red, or blue", ["red, or blue"]),
        ([{"answer": "red"}, {"answer": 2.0}], ["red", "2"]),
        ({"text": ["red"], "answer_start": [0]}, ["red"]),
        (["red", None, float("nan")], ["red"]),
        (3, ["3"]),
        (float("nan"), []),
        ("[0, 1)", ["[0, 1)"]),  # an interval is a text
    ],
)
def test_texts_are_never_a_word_s_characters(cell: object, found: list[str]) -> None:
    assert cells.texts(cell) == found


@pytest.mark.parametrize("cell", [None, float("nan"), "", " ", "nan"])
def test_missing_values_are_no_text(cell: object) -> None:
    assert cells.absent(cell)
    assert cells.text(cell) == ""


@pytest.mark.parametrize(
    ("cell", "answer"),
    [(1, "yes"), (1.0, "yes"), ("1", "yes"), (True, "yes"), ("Yes.", "yes"), (np.int64(1), "yes"),
     (0, "no"), (0.0, "no"), ("No", "no"), (False, "no")],
)  # fmt: skip
def test_yes_no(cell: object, answer: str) -> None:
    assert cells.yes_no(cell) == answer


@pytest.mark.parametrize("cell", ["maybe", 2, None, "", float("nan"), 0.5])
def test_nothing_else_is_taken_for_no(cell: object) -> None:
    with pytest.raises(InputError, match="expected yes or no"):
        cells.yes_no(cell)


@pytest.mark.parametrize(
    ("cell", "letter"),
    [("A", "A"), ("b", "B"), ("(B)", "B"), ("whale", "B"), (1, "B"), (1.0, "B"), ("0", "A")],
)
def test_gold_letter(cell: object, letter: str) -> None:
    assert cells.gold_letter(cell, LETTERED) == letter


@pytest.mark.parametrize("cell", ["C", 2, -1, 1.7, True, "?", "", None, "shark"])
def test_a_gold_answer_that_is_no_option_is_refused(cell: object) -> None:
    with pytest.raises(InputError, match="none of the options A, B"):
        cells.gold_letter(cell, LETTERED)


def test_a_letter_comes_before_an_option_that_is_a_letter() -> None:
    assert cells.gold_letter("A", {"A": "B", "B": "A"}) == "A"


def test_ids_and_whole_numbers_as_tables_write_them() -> None:
    assert [cells.identity(x) for x in (5, 5.0, "5", " 5 ", np.int64(5))] == ["5"] * 5
    assert cells.identity("e\u0301") == "é"
    assert cells.whole("5.0") == 5
    for bad in ("x", 1.5, None, True):
        with pytest.raises(InputError, match="whole number"):
            cells.whole(bad)


def test_pictures_are_found_under_any_usual_name() -> None:
    for name in ("image", "images", "image_path", "img", "file_name", "filename", "picture"):
        assert cells.pictures({"question": "q", name: "a.png"}) == ("a.png",)
    assert cells.pictures({"image": float("nan"), "img": "['a.png', 'b.png']"}) == (
        "a.png", "b.png",
    )  # fmt: skip
    assert cells.pictures({"image": None, "text": "a.png"}) == ()
    assert cells.pictures({"image": {"bytes": None, "path": "a.png"}}) == ("a.png",)
