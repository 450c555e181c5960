import pytest

from crome.evaluation.replies import (
    option_letter,
    tolerant_letter,
    tolerant_yes_no,
    without_reasoning,
)

OPTIONS = {"A": "bird", "B": "dog", "C": "cat"}


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("bird", "A"),
        ("Bird.", "A"),
        ("B", "B"),
        ("b", "B"),
        ("(A)", "A"),
        ("[C]", "C"),
        ("Ａ", "A"),
        ("A. bird", "A"),
        ("C) cat", "C"),
        ("B: dog", "B"),
        ("cat。", "C"),
        ("a dog", "B"),  # the article is no letter
        ("A dog", "B"),
        ("A bird", "A"),
        ("(A) bird (B) dog", None),  # a list of options is no choice
        ("A. bird\nB. dog\nC. cat", None),
        ("It is a dog", None),
        ("d", None),
        ("", None),
    ],
)
def test_option_letter(reply: str, letter: str | None) -> None:
    assert option_letter(reply, OPTIONS) == letter


def test_letters_go_by_position_also_where_texts_are_letters() -> None:
    options = {"A": "B", "B": "A"}
    assert option_letter("A", options) == "A"
    assert option_letter("(B)", options) == "B"


def test_without_options_any_letter_is_read() -> None:
    assert option_letter("C.", {}) == "C"
    assert option_letter("red", {}) is None


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("**C**", "C"),
        ("Answer: C", "C"),
        ("The answer is a dog.", "B"),
        ("the answer is (b)", "B"),
        ("Final answer: **B. dog**", "B"),
        ("答案是C", "C"),
        ("正确答案：B", "B"),
        ("因此选C。", "C"),
        ("答案：（B）", "B"),
        (r"\boxed{C}", "C"),
        (r"So $\boxed{\text{B}}$ it is", "B"),
        ("A is wrong because x. The correct answer is B.", "B"),
        ("The wings show it.\n\nA", "A"),
        ("Step by step, therefore C.", "C"),
        ("B is the correct answer", "B"),
        ("So I choose B", "B"),
        ("It is a dog", "B"),
        ("Answer:\nB", "B"),
        ("### Answer\n\n**B**", "B"),
        ("dog or cat", None),
        ("I think the answer is not A", None),
        ("A bird in the hand is a dog or a cat", None),
    ],
)
def test_tolerant_letter(reply: str, letter: str | None) -> None:
    assert tolerant_letter(reply, OPTIONS) == letter


def test_an_option_inside_another_is_not_mentioned_on_its_own() -> None:
    assert tolerant_letter("It is dark red here", {"A": "red", "B": "dark red"}) == "B"


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("No.", "no"),
        ("The answer is yes", "yes"),
        (r"\boxed{No}", "no"),
        ("I see none, so **no**", "no"),
        ("Yes and no", None),
        ("know", None),
        ("either yes or no", None),
    ],
)
def test_tolerant_yes_no(reply: str, answer: str | None) -> None:
    assert tolerant_yes_no(reply) == answer


@pytest.mark.parametrize(
    ("reply", "rest"),
    [
        ("<think>B? No.</think>C", "C"),
        ("<THINKING>x</THINKING>\n\nC", "C"),
        ("B? No.</think>\n\nC", "C"),  # the template opened it in the prompt
        ("<think>cut off at the token lim", ""),
        ("<think>a</think>B<think>c</think>C", "BC"),
        (" as it is \n", " as it is \n"),
        ("x < y", "x < y"),
    ],
)
def test_reasoning_is_taken_off(reply: str, rest: str) -> None:
    assert without_reasoning(reply) == rest


@pytest.mark.parametrize(
    "reply",
    ["A or B", "A and B", "Neither A nor B", "Answer: A and B", "A, B", "A/B", "(A) or (B)",
     "The answer is A or B", r"\boxed{A, C}", "Answer: (A), (C)", "A & C"],
)  # fmt: skip
def test_several_letters_are_no_answer(reply: str) -> None:
    options = {"A": "bird", "B": "dog", "C": "cat"}
    assert option_letter(reply, options) is None
    assert tolerant_letter(reply, options) is None


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("Either A or B, but I choose C", "C"),
        ("The answer is A, B is wrong.", "A"),
        ("Compare A and B: the answer is B", "B"),
        ("I considered A, B and C. Answer: C", "C"),
        ('{"answer": "C"}', "C"),
        ("<answer>C</answer>", "C"),
        ("<|begin_of_box|>C<|end_of_box|>", "C"),
        ("答えはCです", "C"),
        ("答案是C选项", "C"),
        ('"C"', "C"),
    ],
)
def test_letters_in_the_wrappings_that_models_use(reply: str, letter: str) -> None:
    assert tolerant_letter(reply, {"A": "bird", "B": "dog", "C": "cat"}) == letter
