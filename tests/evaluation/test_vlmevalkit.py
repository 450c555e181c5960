import csv
from pathlib import Path

from crome.evaluation.predictions import Prediction
from crome.evaluation.task import columns
from crome.evaluation.tasks.hallusionbench import HALLUSIONBENCH
from crome.evaluation.tasks.mme import MME
from crome.evaluation.toolkits.vlmevalkit import write_tsv


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_multiple_choice_rows_survive_tabs_and_line_breaks(tmp_path: Path) -> None:
    records = [
        {"id": "1", "question": 'a\t"b"\nc', "options": {"A": "x", "B": "y"}, "answer": "B"},
        {"id": "2", "question": "q", "options": {"A": "x", "B": "y", "C": "z"}, "answer": None},
    ]
    said = {"1": Prediction("1", response="B\tor\nA")}
    path = tmp_path / "out.tsv"
    assert write_tsv(path, records, said, columns) == 2
    first, second = table(path)
    assert list(first) == ["index", "question", "answer", "A", "B", "C", "prediction"]
    assert (first["question"], first["prediction"]) == ('a\t"b"\nc', "B\tor\nA")
    assert (second["C"], second["answer"], second["prediction"]) == ("z", "", "")


def test_columns_leave_out_what_is_not_text() -> None:
    record = {"id": "1", "question": "q", "answer": ["a", "b"], "options": {}, "images": (b"x",)}
    assert columns(record) == {"index": "1", "question": "q"}


def test_mme_pairs_by_image_path() -> None:
    record = {
        "id": "OCR/1.jpg/1",
        "subtask": "OCR",
        "image": "OCR/1.jpg",
        "question": "q",
        "answer": "yes",
    }
    assert MME.cells is not None
    cells = MME.cells(record)
    assert (cells["category"], cells["image_path"], cells["answer"]) == ("OCR", "OCR/1.jpg", "Yes")


def test_hallusionbench_has_image_records_with_a_telling_index(tmp_path: Path) -> None:
    where = {
        "category": "VS",
        "subcategory": "map",
        "visual_input": "2",
        "set_id": "3",
        "figure_id": "4",
        "question_id": "5",
    }
    seen = where | {"id": "a", "question": "q", "answer": "no", "text_only": False}
    assert HALLUSIONBENCH.cells is not None
    path = tmp_path / "out.tsv"
    written = write_tsv(path, [seen, seen | {"text_only": True}], {}, HALLUSIONBENCH.cells)
    assert written == 1
    (row,) = table(path)
    assert row["index"].split("_")[3:] == ["3", "4", "5"]
    assert row["l2-category"] == "map"
