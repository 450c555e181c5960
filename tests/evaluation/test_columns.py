"""Right answers and pictures as people's files hold them: absent answers are never right."""

import json
from pathlib import Path
from typing import Any

import pytest

from crome.errors import InputError
from crome.evaluation.predictions import Prediction
from crome.evaluation.scoring import score_answers
from crome.evaluation.tasks import get_task, read_records

NAN = float("nan")


def value(
    tmp_path: Path, task: str, row: dict[str, Any], reply: str, protocol: Any = None
) -> float:
    source = tmp_path / "records.jsonl"
    source.write_text(json.dumps(row) + "\n")
    records = read_records(get_task(task), str(source))
    said = {record["id"]: Prediction(record["id"], response=reply) for record in records}
    scores, _ = score_answers(get_task(task), records, said, protocol)
    return next(iter(scores.metrics.values())).value


MATH = {"pid": "1", "question": "?", "answer_type": "text", "choices": ["x", "y"], "image": "a"}
SIGN = {"question": "Which?\nA. left\nB. right", "image": "a"}


@pytest.mark.parametrize(
    ("task", "row", "reply"),
    [
        ("mathvista", MATH | {"answer": "B"}, "y"),
        ("mathvista", MATH | {"answer": "y"}, "(B)"),
        ("mathvista", MATH | {"answer": "7", "answer_type": "integer", "choices": NAN}, "7"),
        ("realworldqa", SIGN | {"answer": "right"}, "B. right"),
        ("realworldqa", SIGN | {"answer": "B."}, "B"),
        ("mmbench", {"index": 1, "question": "?", "A": "x", "B": "y", "answer": "b"}, "B"),
    ],
)
def test_letters_and_texts_name_the_same_option(
    tmp_path: Path, task: str, row: dict[str, Any], reply: str
) -> None:
    protocol = "vanilla-rules" if task == "mmbench" else None
    assert value(tmp_path, task, row, reply, protocol) == 1


@pytest.mark.parametrize("absent", [None, NAN, "", " ", "nan"])
@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("chartqa", {"query": "?", "label": 0, "imgname": "a.png"}),
        ("gqa", {"id": 1, "question": "?", "answer": 0, "imageId": "a"}),
        ("mathvista", MATH | {"choices": None, "answer": 0}),
        ("realworldqa", {"question": "?", "answer": 0, "image": "a"}),
        ("docvqa", {"questionId": 1, "question": "?", "answers": 0, "image": "a"}),
        ("vqav2", {"question_id": 1, "question": "?", "answers": 0, "image": "a"}),
        ("textvqa", {"question_id": 1, "question": "?", "answers": 0, "image": "a"}),
        ("mmmu", {"id": "a", "question": "?", "answer": 0, "question_type": "open"}),
        ("mm-vet", {"id": "a", "question": "?", "answer": 0, "capability": "rec"}),
        ("llava-w", {"question_id": 1, "question": "?", "category": "conv", "caption": "c",
                     "gpt_answer": 0}),
    ],
)  # fmt: skip
def test_an_absent_answer_is_never_right(
    tmp_path: Path, task: str, row: dict[str, Any], absent: Any
) -> None:
    held = {name: absent if cell == 0 else cell for name, cell in row.items()}
    with pytest.raises(InputError, match=r"have no answer|expected a text, found"):
        value(tmp_path, task, held, "")


def test_options_with_the_same_text_are_the_same_answer(tmp_path: Path) -> None:
    row = {"question": "Colour?", "answer": "red", "choices": ["red", "blue", "Red"]}
    for protocol in ("exact-match", "letter", "tolerant"):
        for reply, right in (("A", 1), ("C", 1), ("red", 1), ("B", 0)):
            assert value(tmp_path, "rows", row, reply, protocol) == right


def test_more_choices_than_letters_are_refused(tmp_path: Path) -> None:
    row = {"question": "?", "answer": "1", "choices": [str(k) for k in range(30)]}
    with pytest.raises(InputError, match="row 0 has 30 choices; letters name at most 26"):
        value(tmp_path, "rows", row, "1")


@pytest.mark.parametrize("column", ["Image", "img_name", "photo_path", "IMAGE_PATH"])
@pytest.mark.parametrize(
    "row",
    [
        ("ai2d", {"question": "?", "options": ["x", "y"], "answer": 0}),
        ("gqa", {"id": 1, "question": "?", "answer": "x"}),
        ("hallusionbench", {"category": "VD", "subcategory": "c", "visual_input": "1",
                            "set_id": "0", "figure_id": "1", "question_id": "0",
                            "question": "?", "gt_answer": "1"}),
    ],
    ids=lambda row: row[0],
)  # fmt: skip
def test_pictures_are_found_under_the_usual_columns(
    tmp_path: Path, row: tuple[str, dict], column: str
) -> None:
    source = tmp_path / "records.jsonl"
    source.write_text(json.dumps(row[1] | {column: "a.png"}) + "\n")
    (record,) = read_records(get_task(row[0]), str(source))
    assert record["images"] == ("a.png",)


def test_an_embedded_picture_and_its_file_s_name_are_one_picture(tmp_path: Path) -> None:
    row = {"category": "VD", "subcategory": "c", "visual_input": "1", "set_id": "0",
           "figure_id": "1", "question_id": "0", "question": "?", "gt_answer": "1",
           "filename": "./a.png", "image": {"bytes": None, "path": "b.png"}}  # fmt: skip
    source = tmp_path / "records.jsonl"
    source.write_text(json.dumps(row) + "\n")
    (record,) = read_records(get_task("hallusionbench"), str(source))
    assert record["images"] == ("b.png",)
