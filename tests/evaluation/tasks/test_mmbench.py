from pathlib import Path

import pytest

from crome.errors import InputError
from crome.evaluation.predictions import Prediction
from crome.evaluation.scoring import score_answers
from crome.evaluation.tasks import mmbench

HEADER = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\tl2-category\timage\n"


def table(tmp_path: Path, rows: str) -> str:
    file = tmp_path / "mmbench.tsv"
    file.write_text(HEADER + rows)
    return str(file)


def test_passes_rotate_downwards(tmp_path: Path) -> None:
    source = table(tmp_path, "4\tWhich?\tLook.\tred\tblue\tgreen\t\tA\tcolour\tfine\tQUJD\n")
    records = mmbench.MMBENCH.read(source)
    assert [r["id"] for r in records] == ["4", "1000004", "2000004"]
    assert [r["options"] for r in records] == [
        {"A": "red", "B": "blue", "C": "green"},
        {"A": "green", "B": "red", "C": "blue"},
        {"A": "blue", "B": "green", "C": "red"},
    ]
    assert [r["answer"] for r in records] == ["A", "B", "C"]
    assert records[1]["images"] == (b"ABC",)
    assert mmbench.MMBENCH.question(records[1], "llava").prompt == (
        "Look.\nWhich?\nA. green\nB. red\nC. blue\n"
        "Answer with the option's letter from the given choices directly."
    )


def test_the_number_zero_is_an_option(tmp_path: Path) -> None:
    file = tmp_path / "mmbench.jsonl"
    file.write_text('{"index": 4, "question": "Many?", "A": 0, "B": 1, "C": null, "answer": "A"}')
    assert mmbench.MMBENCH.read(str(file))[0]["options"] == {"A": "0", "B": "1"}


def test_images_are_decoded_looked_up_or_paths(tmp_path: Path) -> None:
    rows = "".join(
        f"{index}\tWhich?\t\tred\tblue\t\t\tA\t\t\t{image}\n"
        for index, image in ((12, "QUJD"), (1000012, "12"), (13, "images/13.jpg"))
    )
    records = mmbench.MMBENCH.read(table(tmp_path, rows))
    images = {r["id"]: r["images"] for r in records}
    assert images == {
        "12": (b"ABC",), "1000012": (b"ABC",), "13": ("images/13.jpg",),
        "1000013": ("images/13.jpg",),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        ("B. blue", "B"),
        ("(B)", "B"),
        ("Answer: B!", "B"),
        ("A or B", None),  # two letters, and no option's text
        ("I choose blue", "B"),
        ("It is red and not blue", None),  # two texts
        ("A bird that I have never seen", None),  # "A" is a word here: too far from the end
        ("A blue one it must be then", "B"),
        ("blue " * 20, None),  # longer than twice all options
        ("", None),
        ("purple", None),
        ("Z, though blue comes near", None),
        ("Cannot determine the answer, but B", None),  # a refusal outweighs the letter
    ],
)
def test_parse(response: str, letter: str | None) -> None:
    record = {"options": {"A": "red", "B": "blue", "C": "a green field of grass"}}
    assert mmbench.parse(record, Prediction("1", response=response)) == letter


def test_circular_needs_every_pass(tmp_path: Path) -> None:
    source = table(
        tmp_path,
        "1\tWhich?\tnan\tred\tblue\tnan\t\tA\tcolour\tfine\t\n"
        "2\tWhich?\t\tred\tblue\t\t\tB\tcolour\tfine\t\n",
    )
    records = mmbench.MMBENCH.read(source)
    assert records[0]["hint"] == ""
    said = {r["id"]: Prediction(r["id"], response=r["answer"]) for r in records}
    said["1000002"] = Prediction("1000002", response="B")
    circular, baselines = score_answers(mmbench.MMBENCH, records, said)
    assert circular.metrics["mmbench/circular-rules"].value == 1 / 2
    assert circular.metrics["mmbench/circular-rules"].n == 2
    assert circular.metrics["mmbench/circular-rules/colour"].value == 1 / 2
    assert circular.rows == {"1": 1, "2": 0}
    vanilla, _ = score_answers(mmbench.MMBENCH, records, said, "vanilla-rules")
    assert vanilla.metrics["mmbench/vanilla-rules"].value == 1
    assert baselines["always A"]["mmbench/circular-rules"] == 0


def test_hidden_answers_and_wrong_ones(tmp_path: Path) -> None:
    hidden = mmbench.MMBENCH.read(table(tmp_path, "1\tWhich?\t\tred\tblue\t\t\t\t\t\t\n"))
    with pytest.raises(InputError, match=r"2 of 2 .* such as 1: mmbench's test answers"):
        score_answers(mmbench.MMBENCH, hidden, {})
    with pytest.raises(InputError, match="the answer 'D' is none of the options A, B"):
        mmbench.MMBENCH.read(table(tmp_path, "1\tWhich?\t\tred\tblue\t\t\tD\t\t\t\n"))
