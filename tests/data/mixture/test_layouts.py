"""Readers of the published layouts, each on a small fixture in the authors' form."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from crome.data.mixture import layouts
from crome.data.mixture.layouts import CAPTION, LAYOUTS
from crome.data.problems import Problem
from crome.data.reader import RowReader
from crome.errors import InputError

READ: set[str] = set()


@pytest.fixture(autouse=True, scope="module")
def _every_layout_is_read():
    yield
    assert set(LAYOUTS) == READ


@pytest.fixture
def read(tmp_path):
    """Writes files, reads them by a layout, and checks the entries as a mixture would."""

    def read(layout: str, files: dict[str, object], *, images=(), bad=0, **arguments):
        READ.add(layout)
        for name, content in files.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content if isinstance(content, str) else json.dumps(content))
        for name in images:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(tmp_path / name)
        paths = {k: tmp_path / v for k, v in arguments.items() if k in PATHS}
        found = LAYOUTS[layout](**arguments | paths)
        reader = RowReader(tmp_path, tmp_path, found)
        rows = [row for _, row in reader]
        assert len(reader.problems) == bad, reader.problems.first
        return rows if not bad else (rows, reader.problems.first)

    return read


PATHS = {"file", "questions", "annotations", "ocr", "problems", "splits", "test_ids"}


def told(rows) -> list[tuple]:
    return [(row.images and row.images[0].name, row.question, row.answer) for row in rows]


# ---------------------------------------------------------------------- LLaVA and its kind


LLAVA = [
    {"id": "0", "image": "coco/a.jpg", "conversations": [
        {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cup."},
        {"from": "human", "value": "Is it full?"}, {"from": "gpt", "value": "No."}]},
    {"id": "1", "image": "gqa/b.jpg", "conversations": [
        {"from": "human", "value": "Caption it.\n<image>"}, {"from": "gpt", "value": "A dog."}]},
    {"id": "2", "model": "", "conversations": [
        {"from": "gpt", "value": "Hello, I am here."},
        {"from": "human", "value": "Write a line."}, {"from": "gpt", "value": "A line."}]},
    # LAMM: no tag, and keys of its own
    {"id": "3", "image": "coco/a.jpg", "task_type": "conversation", "src_image": "coco2017",
     "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]},
]  # fmt: skip


def test_llava_conversations_by_folder(read):
    images = ["coco/a.jpg", "gqa/b.jpg"]
    files = {"mix.json": LLAVA}
    rows = read("rows", files, images=images, file="mix.json")
    assert told(rows) == [
        ("a.jpg", "What is it?", "A cup."), ("a.jpg", "Is it full?", "No."),
        ("b.jpg", "Caption it.", "A dog."), ((), "Write a line.", "A line."),
        ("a.jpg", "Why?", "So."),
    ]  # fmt: skip
    assert rows[1].history == (("What is it?", "A cup."),)
    assert told(read("rows", files, file="mix.json", folder="gqa")) == told(rows[2:3])
    assert told(read("rows", files, file="mix.json", folder="")) == told(rows[3:4])


def test_parquet_and_several_shapes(read, tmp_path):
    table = pa.table({"image": ["a.png", None], "question": ["Q?", "T?"], "answer": ["a", "b"],
                      "choices": [["a", "b"], None]})  # fmt: skip
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    rows = read("rows", {}, images=["a.png"], file="rows.parquet")
    assert told(rows) == [("a.png", "Q?", "a"), ((), "T?", "b")]
    assert [row.choices for row in rows] == [("a", "b"), None]
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "rows.parquet").read_bytes()[:200])
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        read("rows", {}, file="cut.parquet")


# ---------------------------------------------------------------------- questions


def answers(*texts):
    return [{"answer": text, "answer_id": n} for n, text in enumerate(texts, start=1)]


def test_vqa_joins_questions_and_annotations(read):
    files = {
        "q.json": {"questions": [
            {"image_id": 9, "question": "What?", "question_id": 91},
            {"image_id": 25, "question": "Where?", "question_id": 250}]},
        "a.json": {"annotations": [
            {"question_id": 250, "image_id": 25, "answers": answers("on it", "under", "under")},
            {"question_id": 91, "image_id": 9, "answers": answers("x"),
             "multiple_choice_answer": "net"}]},
    }  # fmt: skip
    images = ["COCO_train2014_000000000009.jpg", "COCO_train2014_000000000025.jpg"]
    rows = read("vqa", files, images=images, questions="q.json", annotations="a.json")
    assert told(rows) == [(images[1], "Where?", "under"), (images[0], "What?", "net")]
    assert [row.id for row in rows] == ["250", "91"]


def test_an_annotation_without_its_question_is_a_bad_row(read):
    files = {
        "q.json": {"questions": []},
        "a.json": {"annotations": [{"question_id": 1, "image_id": 1, "answers": answers("x")}]},
    }
    rows, problems = read("vqa", files, questions="q.json", annotations="a.json", bad=1)
    assert rows == []
    assert str(problems[0]).startswith("annotation 1, 1: found nothing; expected a field of its")


def test_aokvqa_direct_and_multiple_choice(read):
    entry = {"image_id": 4, "question_id": "q", "question": "Why?", "choices": ["a", "b"],
             "correct_choice_idx": 1, "direct_answers": ["c", "d", "d"]}  # fmt: skip
    files, image = {"t.json": [entry]}, "000000000004.jpg"
    assert told(read("aokvqa", files, images=[image], file="t.json")) == [(image, "Why?", "d")]
    (row,) = read("aokvqa", files, file="t.json", choices=True)
    assert (row.answer, row.choices) == ("b", ("a", "b"))


def test_ocrvqa_has_several_questions_an_image(read):
    book = {"imageURL": "host/x.gif", "questions": ["Who?", "What?"], "answers": ["me", "it"]}
    files = {"d.json": {"1": {"split": 1, **book}, "2": {"split": 3, **book}, "3": {"split": 1}}}
    rows, problems = read("ocrvqa", files, images=["1.gif"], file="d.json", bad=1)
    assert told(rows) == [("1.gif", "Who?", "me"), ("1.gif", "What?", "it")]
    assert str(problems[0]).startswith("entry 3, imageURL: found nothing")
    assert (
        told(read("ocrvqa", files, images=["2.gif"], file="d.json", split="test"))[0][0] == "2.gif"
    )


# ---------------------------------------------------------------------- captions


def test_textcaps_with_and_without_what_was_read(read):
    files = {
        "c.json": {"data": [{"image_id": "f0", "caption_str": "A shop.", "caption_id": 7}]},
        "o.json": {"data": [{"image_id": "f0", "ocr_tokens": ["OPEN", "24h"]}]},
    }
    assert told(read("textcaps", files, images=["f0.jpg"], file="c.json")) == [
        ("f0.jpg", CAPTION, "A shop.")
    ]
    (row,) = read("textcaps", files, file="c.json", ocr="o.json")
    assert row.question == f"{CAPTION}\nOCR tokens: OPEN, 24h"


def test_captions_of_coco(read):
    files = {"c.json": {"images": [{"id": 3, "file_name": "3.jpg"}], "annotations": [
        {"id": 1, "image_id": 3, "caption": "One."}, {"id": 2, "image_id": 3, "caption": "Two."},
        {"id": 3, "image_id": 4, "caption": "Of no image."}]}}  # fmt: skip
    rows, problems = read("coco-captions", files, images=["3.jpg"], file="c.json", bad=1)
    assert told(rows) == [("3.jpg", CAPTION, "One."), ("3.jpg", CAPTION, "Two.")]
    assert problems[0].place == "annotation 3"


def test_karpathys_splits(read):
    files = {"d.json": {"images": [
        {"filename": "a.jpg", "filepath": "t", "split": "restval", "sentences": [{"raw": "A."}]},
        {"filename": "b.jpg", "filepath": "t", "split": "val", "sentences": [{"raw": "B."}]},
        {"filename": "c.jpg", "split": "train", "sentences": [{"raw": "C."}, {"raw": "D."}]},
        {"filename": "d.jpg"}]}}  # fmt: skip
    rows, _ = read("karpathy", files, images=["t/a.jpg", "c.jpg"], file="d.json", bad=1)
    assert [row.answer for row in rows] == ["A.", "C.", "D."]


def test_flickrs_own_file(read):
    text = "1.jpg#0\tA man.\n1.jpg#1\tA person.\n\nno tab\n"
    rows, problems = read("flickr30k", {"r.token": text}, images=["1.jpg"], file="r.token",
                          bad=1)  # fmt: skip
    assert [(row.id, row.answer) for row in rows] == [
        ("1.jpg#0", "A man."),
        ("1.jpg#1", "A person."),
    ]
    assert problems[0].place == "line 4"


# ---------------------------------------------------------------------- multiple choice


def test_scienceqa(read):
    problem = {"question": "Which?", "choices": ["ice", "fire"], "answer": 1, "hint": "Hot.",
               "image": "image.png", "subject": "natural science", "lecture": "Heat.",
               "solution": "Fire is hot.", "split": "train"}  # fmt: skip
    files = {
        "problems.json": {"5": problem, "6": problem | {"image": None, "hint": ""},
                          "7": problem | {"split": "test"}},
        "pid_splits.json": {"train": ["6", "5"], "test": ["7"]},
    }  # fmt: skip
    images = ["train/5/image.png"]
    both = {"problems": "problems.json", "splits": "pid_splits.json"}
    text_only, shown = read("scienceqa", files, images=images, **both)
    assert (text_only.images, text_only.question, text_only.answer) == ((), "Which?", "fire")
    assert shown.images[0].parts[-3:] == ("train", "5", "image.png")
    assert shown.question == "Context: Hot.\nWhich?"
    assert (shown.choices, shown.kind) == (("ice", "fire"), "natural science")
    assert told(read("scienceqa", files, problems="problems.json", with_image=True)) == told(
        [shown]
    )
    (row, _) = read("scienceqa", files, explain=True, hint=False, problems="problems.json")
    assert (row.question, row.answer) == ("Which?", "Heat.\nFire is hot.\nThe answer is B.")


def test_ai2d_leaves_the_test_diagrams_out(read):
    asked = {"imageName": "0.png", "questions": {"What is A?": {
        "abcLabel": True, "answerTexts": ["ear", "eye"], "correctAnswer": 1,
        "questionId": "0.png-0"}}}  # fmt: skip
    files = {"questions/0.png.json": asked, "questions/10.png.json": asked, "ids.csv": "10\n100\n"}
    split = {"questions": "questions", "test_ids": "ids.csv"}
    (row,) = read("ai2d", files, images=["0.png"], **split)
    assert (row.images[0].name, row.answer, row.choices) == ("0.png", "eye", ("ear", "eye"))
    assert told(read("ai2d", files, images=["10.png"], split="test", **split))[0][0] == "10.png"


# ---------------------------------------------------------------------- wrong files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "expected a JSON object"),
        ({"images": 3}, "under 'images': found 3; expected a list of objects"),
        ({}, "under 'images': found None"),
        ("{", "invalid JSON at"),
    ],
)
def test_a_file_of_another_layout_is_refused_by_name(read, content, message):
    with pytest.raises(InputError, match=f"c.json.*{message}"):
        read("coco-captions", {"c.json": content}, file="c.json")


def test_fields_of_another_type_are_bad_rows():
    made = layouts._made([{"a": None}], lambda entry: entry["a"] + 1, "row")
    ((_, problem),) = made
    assert isinstance(problem, Problem)
    assert "{'a': None}" in str(problem)


@pytest.mark.parametrize("name", ["rows", "karpathy", "flickr30k", "ocrvqa"])
def test_an_absent_file_is_named(name, tmp_path):
    with pytest.raises(InputError, match=r"none\.json"):
        list(LAYOUTS[name](tmp_path / "none.json"))
