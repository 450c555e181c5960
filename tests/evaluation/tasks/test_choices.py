import pytest

from crome.errors import InputError
from crome.evaluation.predictions import Prediction
from crome.evaluation.tally import accuracy
from crome.evaluation.tasks import choices

RECORD = {"id": "1", "options": {"A": "red", "B": "blue", "C": "green"}, "answer": "B"}


@pytest.mark.parametrize(
    ("response", "letter"),
    [("B", "B"), (" b) blue", "B"), ("Blue", "B"), ("D", None), ("", None), ("\n", None)],
)
def test_first_character(response: str, letter: str | None) -> None:
    assert choices.first_character(RECORD, Prediction("1", response=response)) == letter


def test_ranked_takes_the_smallest_loss_and_the_first_of_equals() -> None:
    assert choices.ranked(RECORD, Prediction("1", losses=(3.0, 2.0, 2.5))) == "B"
    assert choices.ranked(RECORD, Prediction("1", losses=(3.0, 2.0, 2.0))) == "B"
    assert choices.ranked(RECORD, Prediction("1", losses=(2.0, 2.0, 2.0))) == "A"


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (Prediction("1", response="B"), "ranking needs the candidates' losses"),
        (Prediction("1", losses=(1.0, 2.0)), "2 losses for 3 options"),
        (
            Prediction("1", losses=(1.0, 2.0, 3.0), generation={"length_normalised": True}),
            "losses are means over tokens, the protocol wants sums",
        ),
    ],
)
def test_ranked_refuses(prediction: Prediction, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choices.ranked(RECORD, prediction)


def test_ranked_per_token_wants_means() -> None:
    sums = Prediction("1", losses=(1.0, 2.0, 3.0))
    with pytest.raises(InputError, match="sums over tokens, the protocol wants means"):
        choices.ranked(RECORD, sums, per_token=True)


def test_accuracy_counts_absent_and_unreadable_as_wrong() -> None:
    records = [{"id": str(k), "answer": "A", "kind": "x" if k < 3 else None} for k in range(4)]
    answers = {"0": "A", "1": "B", "2": None}
    scores = accuracy("kind")("t/p", records, answers)
    assert scores.metrics["t/p"].value == 1 / 4
    assert scores.metrics["t/p/x"].value == 1 / 3
    assert scores.metrics["t/p/x"].n == 3
    assert scores.rows == {"0": 1, "1": 0, "2": 0, "3": 0}


def test_most_frequent() -> None:
    records = [{"id": str(k), "answer": a} for k, a in enumerate("ABB")]
    assert choices.most_frequent(records) == {"always B": {"0": "B", "1": "B", "2": "B"}}


def test_split_options() -> None:
    text = "Context: x\nWhich?\nA. red\nB. blue\nor navy\nC. D. is not a letter line"
    assert choices.split_options(text) == (
        "Context: x\nWhich?",
        {"A": "red", "B": "blue\nor navy", "C": "D. is not a letter line"},
    )
    assert choices.split_options("Why?") == ("Why?", {})
