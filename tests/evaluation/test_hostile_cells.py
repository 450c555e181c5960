"""Any cell of any benchmark's record, and any reply: a number or a refusal in one line."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from crome.errors import InputError
from crome.evaluation.predictions import Prediction, read_predictions
from crome.evaluation.scoring import as_report, score_answers
from crome.evaluation.tasks import TASKS, get_task, read_records

CELLS = (
    None, math.nan, math.inf, -1, 0, 1.5, 10**30, True, "", " ", "nan", "[", "[]", "['a', 'b']",
    "{'A': 'x'}", "\ud800", "a\tb\nc", "<image>", [], {}, [None], [[1]], [{}], {"bytes": None},
    {"A": None}, ["x"] * 40, "x" * 3000,
)  # fmt: skip
REPLIES = (
    "", " ", "A", "(", "**", "\\boxed{", "<think>", "</think>", "\ud800", "nan", "inf", "[/b]",
    "是", "A" * 3000, "The answer is " * 300, "1e999", "0/0", "yes no", "\x00",
)  # fmt: skip
CHOICE = {"question": "Which?", "image": "a.png"}
RECORDS: dict[str, dict[str, Any]] = {
    "mmmu": CHOICE | {"id": "validation_Art_1", "options": ["x", "y"], "answer": "B",
                      "question_type": "multiple-choice", "image_1": "a.png"},
    "mme": {"category": "OCR", "question_id": "OCR/1.jpg", "question": "?", "answer": "Yes",
            "image": "a.png"},
    "mmbench": CHOICE | {"index": 1, "A": "x", "B": "y", "answer": "A", "hint": "h",
                         "category": "c", "l2-category": "d"},
    "mm-vet": CHOICE | {"question_id": "v1", "answer": "x", "capability": "rec,ocr"},
    "hallusionbench": {
        "category": "VD", "subcategory": "c", "visual_input": "1", "set_id": "0", "figure_id": "1",
        "question_id": "0", "question": "?", "gt_answer": "1", "gt_answer_details": "d",
        "filename": "./a.png"},
    "llava-w": CHOICE | {"question_id": 1, "category": "conv", "caption": "c", "gpt_answer": "g"},
    "seed-image": CHOICE | {"question_id": "1", "question_type_id": 3, "choice_a": "x",
                            "choice_b": "y", "answer": "A"},
    "scienceqa": CHOICE | {"id": "1", "choices": ["x", "y"], "answer": 1, "hint": "h",
                           "subject": "natural science", "grade": "grade2", "split": "test"},
    "ai2d": CHOICE | {"question_id": 1, "options": ["x", "y"], "answer": "1"},
    "vqav2": CHOICE | {"question_id": 1, "answers": ["x"] * 10, "answer_type": "other",
                       "multiple_choice_answer": "x"},
    "captions": {"id": 1, "captions": ["x", "y"], "image": "a.png"},
    "pope": {"question_id": 1, "text": "?", "label": "yes", "image": "a", "category": "random"},
    "textvqa": CHOICE | {"question_id": 1, "answers": ["x"] * 10, "image_id": "a"},
    "gqa": CHOICE | {"id": "1", "answer": "x", "types": {"structural": "s", "semantic": "t"}},
    "chartqa": {"query": "?", "label": "5%", "imgname": "a.png", "type": "human"},
    "docvqa": CHOICE | {"questionId": 1, "answers": ["x", "y"], "question_types": ["form"]},
    "mmstar": CHOICE | {"index": 1, "question": "Q?\nOptions: A: x, B: y", "answer": "A",
                        "category": "c", "l2_category": "d"},
    "mathvista": CHOICE | {"pid": "1", "question_type": "free_form", "answer_type": "float",
                           "answer": "1.2", "precision": 1, "choices": None, "query": "q",
                           "metadata": {"task": "t"}},
    "realworldqa": CHOICE | {"question": "Q?\nA. x\nB. y", "answer": "A"},
    "rows": {"id": "1", "question": "?", "answer": "x", "choices": ["x", "y"], "kind": "k",
             "answers": ["z"]},
}  # fmt: skip
SAME = {"seed-all": "seed-image", "scienceqa-img": "scienceqa", "infovqa": "docvqa"}


def one_line(refusal: InputError, place: str = "") -> None:
    assert "\n" not in str(refusal).strip()
    assert place in str(refusal)


def use(name: str, source: Path, replies: tuple[str, ...] = ("A",)) -> None:
    """Reads, asks in every style and scores by every protocol, as far as a record allows."""
    task = get_task(name)
    try:
        records = read_records(task, str(source))
        for style in ("llava", "instructblip", "rank", "official"):
            for record in records:
                task.question(record, style)
    except InputError as refusal:
        one_line(refusal)
        return
    for protocol, chosen in task.protocols.items():
        if chosen.mode != "generate" or name == "captions":  # captions need a package of their own
            continue
        for reply in replies:
            said = {r["id"]: Prediction(r["id"], response=reply) for r in records}
            try:
                scores, baselines = score_answers(task, records, said, protocol)
            except InputError:
                continue
            report = as_report(task, records, scores, baselines, {})
            json.dumps(report, allow_nan=False).encode("ascii")
            for metric in scores.metrics.values():
                assert math.isfinite(metric.value)


def test_every_benchmark_is_here() -> None:
    assert set(RECORDS) | set(SAME) == set(TASKS)


@pytest.mark.parametrize("name", RECORDS)
def test_any_cell(tmp_path: Path, name: str) -> None:
    source = tmp_path / "records.jsonl"
    record = RECORDS[name]
    source.write_text(json.dumps(record) + "\n")
    read_records(get_task(name), str(source))  # the record itself is good
    for field in record:
        for cell in CELLS:
            source.write_text(json.dumps(record | {field: cell}) + "\n")
            use(name, source)
        source.write_text(json.dumps({k: v for k, v in record.items() if k != field}) + "\n")
        use(name, source)


@pytest.mark.parametrize("name", RECORDS)
def test_any_reply(tmp_path: Path, name: str) -> None:
    source = tmp_path / "records.jsonl"
    pair = [RECORDS[name]] * (2 if name == "mme" else 1)
    source.write_text("".join(json.dumps(record) + "\n" for record in pair))
    use(name, source, REPLIES)


@pytest.mark.parametrize("name", RECORDS)
def test_rows_of_no_layout(tmp_path: Path, name: str) -> None:
    for content in ("1\n", '"x"\n', "[]\n", "{}\n", "null\n", "\x00\xff", "[" * 5000, ""):
        for suffix in ("jsonl", "json", "csv", "tsv", "parquet", "xlsx"):
            source = tmp_path / f"x.{suffix}"
            source.write_bytes(content.encode("latin-1"))
            use(name, source)


@pytest.mark.parametrize("field", ["id", "response", "prompt", "losses", "generation", "pictures"])
def test_any_cell_of_a_prediction(tmp_path: Path, field: str) -> None:
    file = tmp_path / "p.jsonl"
    row = {"id": "1", "prompt": "p", "response": "A", "generation": {}, "checkpoint": "c"}
    for cell in CELLS:
        file.write_text(json.dumps(row | {field: cell}) + "\n")
        try:
            (prediction,) = read_predictions(file)
        except InputError as refusal:
            one_line(refusal, "p.jsonl:1")
        else:
            assert isinstance(prediction.id, str)
            assert isinstance(prediction.response, str)
