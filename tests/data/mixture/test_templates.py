"""Instruction pools: forms, roles, and what rows they suit."""

import pytest

from crome.data.mixture.templates import Pool, pools, read_pool
from crome.errors import InputError
from crome.evaluation.tasks.prompts import multiple_choice, short_answer
from crome.rows import Place, Row

ROW = Row((), "What is shown?", "a {red} cup", "0", choices=("a plate", "a {red} cup"))


def test_the_packaged_pools():
    assert {name: len(pool.ask) for name, pool in pools().items()} == {
        "caption": 13, "short-answer": 10, "multiple-choice": 4, "multiple-choice-letter": 1,
        "question-generation": 6,
    }  # fmt: skip
    for pool in pools().values():
        assert len(set(pool.ask)) == len(pool.ask)
        asked = {pool.word(ROW, draw).question for draw in range(len(pool.ask))}
        assert len(asked) == len(pool.ask)  # each form is drawn


@pytest.mark.parametrize("name", ["short-answer", "multiple-choice"])
def test_questions_are_asked_and_answers_learnt(name):
    for draw in range(20):
        row = pools()[name].word(ROW, draw)
        assert ROW.question in row.question
        assert row.answer == ROW.answer
        assert (ROW.answer in row.question) == (name == "multiple-choice")  # among the options


def test_captions_do_not_show_the_question_or_the_answer():
    for draw in range(13):
        row = pools()["caption"].word(ROW, draw)
        assert ROW.question not in row.question
        assert ROW.answer not in row.question
        assert row.answer == ROW.answer


def test_question_generation_asks_with_the_answer_and_learns_the_question():
    """BLIVA's code has these the wrong way round."""
    pool = pools()["question-generation"]
    assert pool.asks_for_question
    for draw in range(6):
        row = pool.word(ROW, draw)
        assert ROW.answer in row.question
        assert ROW.question not in row.question
        assert row.answer == ROW.question


def test_training_asks_as_evaluation_does():
    options = dict(zip("AB", ROW.choices, strict=True))
    (letter,) = (pools()["multiple-choice-letter"].word(ROW, n) for n in range(1))
    assert letter.question == multiple_choice(ROW.question, options, "llava")[0]
    assert letter.answer == "B"
    forms = {pools()["short-answer"].word(ROW, n).question for n in range(10)}
    assert short_answer(ROW.question, "llava") in forms
    assert short_answer(ROW.question, "instructblip") in forms


def test_rows_without_options_do_not_suit_templates_that_list_them():
    pool = pools()["multiple-choice"]
    assert pool.misfit(ROW) is None
    bare = Row((), "Q?", "a", "0")
    assert pool.misfit(bare)[:2] == ("choices", "nothing")
    assert pool.misfit(Row((), "Q?", "c", "0", choices=("a", "b")))[:2] == ("answer", "'c'")
    many = tuple(map(str, range(27)))
    assert pool.misfit(Row((), "Q?", "1", "0", choices=many))[1] == "27 options"
    assert pools()["caption"].misfit(bare) is None


def test_pools_of_ones_own():
    pool = read_pool("mine", {"ask": "{question} Be brief."})
    assert pool.word(ROW, 5).question == "What is shown? Be brief."
    assert read_pool("x", "caption") is pools()["caption"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("captions", "no templates 'captions'; there are caption, short-answer"),
        ({"ask": []}, "no form under `ask`"),
        ({"ask": ["{wuestion}"]}, "has the field 'wuestion'; there are question"),
        ({"ask": ["{question"]}, "is no template"),
        ({"ask": ["{answer}?"]}, "tells the answer that is to be learnt"),
        ({"ask": ["{question} {letter}"], "target": "{answer}"}, "tells the answer"),
        ({"asks": ["{question}"]}, "expected the name of a pool"),
        ({"ask": [3]}, "expected the name of a pool"),
        (3, "expected the name of a pool"),
    ],
)
def test_mistakes_in_pools_are_named(given, message):
    with pytest.raises(InputError, match=message):
        read_pool("mine", given)


def test_a_pool_that_gives_the_answer_may_ask_for_the_question():
    assert Pool("qg", ("{answer}: what for?",), "{question}").asks_for_question


def test_places_move_with_the_question():
    row = Row((), "Is  it?", "no", "x", places=(Place("image", 0, 3),))
    pool = Pool("p", ("Answer: {question} {question}",), "{answer}")
    worded = pool.word(row, 0)
    assert worded.places == (Place("image", 0, 11),)
    assert worded.question[:11] == "Answer: Is "
    hidden = Pool("p", ("Describe it.",), "{answer}").word(row, 0)
    assert hidden.places == (Place("image", 0, 0),)
