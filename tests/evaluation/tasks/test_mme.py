from pathlib import Path

import pytest

from crome.errors import InputError
from crome.evaluation.predictions import Prediction
from crome.evaluation.scoring import score_answers
from crome.evaluation.tasks import mme

ASK = "Is there a kite? Please answer yes or no."


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("Yes", "yes"),
        ("no.", "no"),
        ('"Yes"', "yes"),
        (" Yes", "yes"),
        ("None of them", "no"),
        ("Nobody", "no"),
        ("The answer is yes", None),
        ("yesno", "yes"),
        ("   yes", None),  # the fourth character is a y
        ("", None),
    ],
)
def test_parse(response: str, answer: str | None) -> None:
    assert mme.parse({}, Prediction("1", response=response)) == answer


def references(folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "existence.txt").write_text(
        f"1.jpg\t{ASK}\tYes\n1.jpg\t{ASK}\tNo\n2.jpg\t{ASK}\tYes\n2.jpg\t{ASK}\tNo\n"
    )
    (folder / "OCR.txt").write_text(f"1.jpg\t{ASK}\tYes\r\n1.jpg\t{ASK}\tNo\r\n")
    (folder / "code_reasoning.txt").write_text(f"1.jpg\t{ASK}\tYes\n1.jpg\t{ASK}\tNo\n")
    return str(folder)


def test_points(tmp_path: Path) -> None:
    records = mme.MME.read(references(tmp_path))
    assert [r["id"] for r in records[:4]] == [
        "existence/1.jpg/1",
        "existence/1.jpg/2",
        "existence/2.jpg/1",
        "existence/2.jpg/2",
    ]
    said = {r["id"]: Prediction(r["id"], response="Yes") for r in records}
    said["existence/1.jpg/2"] = Prediction("existence/1.jpg/2", response="No")
    del said["code_reasoning/1.jpg/1"]
    scores, baselines = score_answers(mme.MME, records, said)
    values = {name: m.value for name, m in scores.metrics.items()}
    assert values["mme/official/existence"] == 75 + 50  # three of four, one of two images
    assert values["mme/official/OCR"] == 50
    assert values["mme/official/perception"] == 175
    assert values["mme/official/cognition"] == 0  # one absent, one wrong
    assert scores.metrics["mme/official/perception"].n == 3
    assert baselines["always yes"]["mme/official/perception"] == 100


def test_the_scorers_own_layout_may_hold_tabs_but_no_line_breaks(tmp_path: Path) -> None:
    (tmp_path / "OCR.txt").write_text(f"1.jpg\t{ASK}\tYes\tno,\tnot\there\n1.jpg\t{ASK}\tNo\tYes\n")
    first, second = mme.read_responses(str(tmp_path))
    assert (first.id, first.response) == ("OCR/1.jpg/1", "no,\tnot\there")
    assert second.id == "OCR/1.jpg/2"
    (tmp_path / "OCR.txt").write_text(f"1.jpg\t{ASK}\tYes\tIt is\nindeed a kite\n")
    with pytest.raises(InputError, match=r"OCR\.txt:2: expected 4 tab-separated columns, found 1"):
        mme.read_responses(str(tmp_path))


def test_a_byte_order_mark_is_no_part_of_the_first_image(tmp_path: Path) -> None:
    (tmp_path / "count.txt").write_text("\ufeffa.jpg\tIs it?\tYes\na.jpg\tIs it not?\tNo\n")
    assert [r["id"] for r in mme.MME.read(str(tmp_path))] == ["count/a.jpg/1", "count/a.jpg/2"]


def test_released_folders(tmp_path: Path) -> None:
    plain, split = tmp_path / "existence", tmp_path / "posters"
    for folder in (plain, split / "images", split / "questions_answers_YN"):
        folder.mkdir(parents=True)
    (plain / "7.jpg").touch()
    (plain / "7.txt").write_text(f"{ASK}\tYes\n{ASK}\tNo\n")
    (split / "images/8.png").touch()
    (split / "questions_answers_YN/8.txt").write_text(f"{ASK}\tYes\n")
    records = mme.MME.read(str(tmp_path))
    assert [r["id"] for r in records] == [
        "existence/7.jpg/1",
        "existence/7.jpg/2",
        "posters/8.png/1",
    ]
    assert records[2]["images"] == ("posters/images/8.png",)
    (split / "images/8.png").unlink()
    with pytest.raises(InputError, match="there is no image of that name"):
        mme.MME.read(str(tmp_path))


def test_hub_rows_get_the_same_ids(tmp_path: Path) -> None:
    file = tmp_path / "mme.jsonl"
    row = '{"question_id": "OCR/1.jpg", "category": "OCR", "question": "q", "answer": "%s"}\n'
    file.write_text(row % "Yes" + row % "No")
    assert [r["id"] for r in mme.MME.read(str(file))] == ["OCR/1.jpg/1", "OCR/1.jpg/2"]
    file.write_text(row % "Perhaps")
    with pytest.raises(InputError, match="the gold answer to 'q' is 'Perhaps'"):
        mme.MME.read(str(file))


def test_question(tmp_path: Path) -> None:
    record = mme.MME.read(references(tmp_path))[0]
    sentence = "Answer the question using a single word or phrase."
    assert mme.MME.question(record, "llava").prompt == f"Is there a kite?\n{sentence}"
    assert mme.MME.question(record, "official").prompt == ASK
    assert record["images"] == ("existence/1.jpg",)
    assert mme.MME.question(record, "llava").candidates == ("yes", "no")


def test_llava_names_both_questions_of_an_image_alike(tmp_path: Path) -> None:
    file = tmp_path / "llava_mme.jsonl"
    ids = ["existence/1.jpg", "existence/1.jpg", "artwork/images/2.jpg", "artwork/images/2.jpg"]
    file.write_text("".join(f'{{"question_id": "{i}", "text": "Yes"}}\n' for i in ids))
    assert [p.id for p in mme.read_responses(str(file))] == [
        "existence/1.jpg/1",
        "existence/1.jpg/2",
        "artwork/2.jpg/1",
        "artwork/2.jpg/2",
    ]
