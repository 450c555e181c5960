from pathlib import Path

import pytest

from crome.errors import InputError
from crome.evaluation.predictions import Prediction
from crome.evaluation.scoring import score_answers
from crome.evaluation.task import Record
from crome.evaluation.tasks import mmmu

OPTIONS = {"A": "a red kite", "B": "a barn owl", "C": "a heron", "D": "none of these"}


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("'B'", "B"),
        ("B) a barn owl", None),  # neither "(B)" nor " B ", and too short for texts
        ("B. a barn owl", None),
        ("b", None),
        ("It is (A), no, (C)", "C"),  # furthest right
        ("(A) is wrong, so D it is", "A"),  # brackets go before bare letters
        ("A or C ?", "C"),
        ("What I see there is surely A Barn Owl indeed", "A"),  # " A " is a letter to the rules
        ("the bird looks like a barn owl", "B"),  # seven words: texts count
        ("rather a heron than a barn owl", "B"),
        ("a barn owl", None),  # three words: texts do not count
        ("I cannot tell which bird this is", None),
        ("", None),
    ],
)
def test_parse_choice(response: str, letter: str | None) -> None:
    assert mmmu.parse_choice(response, OPTIONS) == letter


@pytest.mark.parametrize(
    ("gold", "response", "right"),
    [
        ("0.5", "x = 0.50", True),
        ("0.5", "The answer is 1/2", False),
        ("1234", "so we get 1,234", True),
        ("1,234", "1234.001", True),  # two decimals
        ("1500", "1.5e3", True),
        ("-3", "It is -3 degrees.", True),
        ("Paris", "I think it is Paris, in France.", True),
        ("Paris", "Not London", False),
        ("c", "c", True),
        ("c", "answer c", True),
        ("c", "cat", False),  # one letter is padded, or it would be found in any word
        ("c", "it must be c then", True),
        (["24/7", "3.429"], "about 3.43", True),
        (["24/7", "3.429"], "24/7", True),
        ("5", "15", False),
        ("5", "", False),
    ],
)
def test_open_answers(gold: str, response: str, right: bool) -> None:
    record = {"choice": False, "answer": gold}
    assert mmmu.is_right(record, mmmu.parse_open(response)) is right


def test_open_endings_are_the_shortest_per_line() -> None:
    said = mmmu.parse_open("The sum is thus equal to 7\nSo the answer is 12 = 3 · 4")
    assert "equal to 7" in said
    assert 7 in said
    assert "3 · 4" in said
    assert 12 not in said  # "=" cuts the last line further right


def records(n: int = 3) -> list[Record]:
    return [
        {
            "id": f"validation_Art_{k}",
            "question": f"Which bird, <image 1>? {k}",
            "options": OPTIONS,
            "answer": "B",
            "choice": True,
            "images": ("a.png",),
            "subject": "Art",
        }
        for k in range(n)
    ]


def test_guesses_are_seeded_counted_and_optional() -> None:
    import random

    rows = records(40)
    said = {r["id"]: Prediction(r["id"], response="I do not know") for r in rows}
    official, _ = score_answers(mmmu.MMMU, rows, said, "official")
    generator = random.Random(42)
    lucky = sum(generator.choice("ABCD") == "B" for _ in rows)
    assert official.counts["random_guesses"] == 40
    assert official.counts["random_guesses_right"] == lucky == official.counts["correct"]
    assert official.counts["multiple_choice_correct_without_guesses"] == 0
    plain, _ = score_answers(mmmu.MMMU, rows, said, "no-guess")
    assert plain.metrics["mmmu/no-guess"].value == 0
    assert plain.counts["unreadable"] == 40


def test_a_missing_prediction_is_wrong_and_never_guessed() -> None:
    official, _ = score_answers(mmmu.MMMU, records(20), {}, "official")
    assert official.counts["random_guesses"] == 0
    assert official.metrics["mmmu/official"].value == 0


def test_question_and_baseline() -> None:
    row = records(1)[0]
    asked = mmmu.MMMU.question(row, "llava")
    assert asked.prompt == (
        "Which bird, <image 1>? 0\n\n(A) a red kite\n(B) a barn owl\n(C) a heron\n"
        "(D) none of these\n\nAnswer with the option's letter from the given choices directly."
    )
    assert asked.candidates == ("A", "B", "C", "D")
    assert mmmu.MMMU.question(row, "rank").candidates == tuple(OPTIONS.values())
    open_row = row | {"options": {}, "choice": False}
    assert mmmu.MMMU.question(open_row, "llava").prompt.endswith(
        "\n\nAnswer the question using a single word or phrase."
    )
    assert list(mmmu.MMMU.baselines([row, open_row])) == ["always B"]
    assert mmmu.MMMU.baselines([open_row]) == {}


def test_reads_hub_rows_and_official_results(tmp_path: Path) -> None:
    hub = tmp_path / "hub.jsonl"
    hub.write_text(
        '{"id": "validation_Art_Theory_2", "question": "q <image 1>", "answer": "A", '
        '"options": "[\'x\', \\"it\'s\\"]", "question_type": "multiple-choice", '
        '"image_1": {"bytes": null, "path": "a.png"}, "image_2": null}\n'
        '{"id": "validation_Math_3", "question": "q", "answer": "[\'0\', \'zero\']", '
        '"options": "[]", "question_type": "open"}\n'
        '{"id": "validation_Math_4", "question": "q", "answer": "[0, 1)", '
        '"options": "[]", "question_type": "open"}\n'
    )
    choice, opened, interval = mmmu.MMMU.read(str(hub))
    assert choice["options"] == {"A": "x", "B": "it's"}
    assert choice["images"] == ("a.png",)
    assert choice["subject"] == "Art_Theory"
    assert opened["answer"] == ["0", "zero"]
    assert interval["answer"] == "[0, 1)"
    result = tmp_path / "output.json"
    result.write_text(
        '[{"id": "validation_Art_1", "question_type": "multiple-choice", "answer": "B", '
        '"all_choices": ["A", "B"], "index2ans": {"A": "x", "B": "y"}, "response": "B"}]'
    )
    assert mmmu.MMMU.read(str(result))[0]["options"] == {"A": "x", "B": "y"}


def test_references_without_options_are_refused() -> None:
    row = records(1)[0] | {"options": {}}
    with pytest.raises(InputError, match="hold no options"):
        mmmu.parse(row, Prediction(row["id"], response="B"))


def test_domains_hold_30_subjects() -> None:
    assert len(mmmu.SUBJECT_DOMAIN) == 30
