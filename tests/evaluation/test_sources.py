import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from crome.errors import InputError
from crome.evaluation.cells import images_in
from crome.evaluation.sources import (
    folder_of,
    json_object,
    need,
    read_rows,
    records_from,
)


def test_json_lines_list_and_object(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"x": "a\\nb"}\n\n{"x": 2}\n')
    (tmp_path / "b.json").write_text('[{"x": 1}]')
    (tmp_path / "c.json").write_text('{"k": {"x": 1}}')
    (tmp_path / "d.json").write_text('{"info": {}, "questions": [{"x": 1}]}')
    assert read_rows(str(tmp_path / "a.jsonl")) == [{"x": "a\nb"}, {"x": 2}]
    assert read_rows(str(tmp_path / "b.json")) == [{"x": 1}]
    assert read_rows(str(tmp_path / "c.json")) == [{"id": "k", "x": 1}]
    assert read_rows(str(tmp_path / "d.json")) == [{"x": 1}]


def test_tables_with_quoted_cells_and_long_ones(tmp_path: Path) -> None:
    image = "A" * 300_000  # over the csv module's own limit of 131,072
    file = tmp_path / "a.tsv"
    file.write_text(f'\ufeffindex\tquestion\timage\n1\t"two\nlines\tand a tab"\t{image}\n')
    assert read_rows(str(file)) == [
        {"index": "1", "question": "two\nlines\tand a tab", "image": image}
    ]


def test_parquet_keeps_images_encoded(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    table = datasets.Dataset.from_dict(
        {"question": ["q"], "image": [Image.new("RGB", (2, 2))]},
        features=datasets.Features(
            {"question": datasets.Value("string"), "image": datasets.Image()}
        ),
    )
    (tmp_path / "hub").mkdir()
    table.to_parquet(str(tmp_path / "hub/test-00000-of-00001.parquet"))
    table.save_to_disk(str(tmp_path / "saved"))
    for source in ("hub", "hub/test-00000-of-00001.parquet", "saved"):
        (row,) = read_rows(str(tmp_path / source))
        (image,) = images_in(row["image"])
        assert isinstance(image, bytes)
        assert image.startswith(b"\x89PNG")


def test_images_in_takes_paths_bytes_lists_and_nothing() -> None:
    assert images_in("a.png", None, "", {"bytes": b"x", "path": "b"}, [{"path": "c.png"}]) == (
        "a.png",
        b"x",
        "c.png",
    )


@pytest.mark.parametrize("source", ["absent.json", "owner/name", "folder/absent.jsonl"])
def test_nothing_there(source: str) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        read_rows(source)


def test_unknown_kind_empty_folder_and_broken_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.jsonl").write_text('{"x": 1}\n{"x"')
    (tmp_path / "c.json").write_text('["x"]')
    (tmp_path / "d.json").write_text("[]")
    with pytest.raises(InputError, match=r"expected \.json"):
        read_rows(str(tmp_path / "a.txt"))
    with pytest.raises(InputError, match="no parquet files"):
        read_rows(str(tmp_path))
    with pytest.raises(InputError, match=r"b\.jsonl:2: not JSON"):
        read_rows(str(tmp_path / "b.jsonl"))
    with pytest.raises(InputError, match="expected an object per record"):
        read_rows(str(tmp_path / "c.json"))
    with pytest.raises(InputError, match="expected a JSON object, found list"):
        json_object(tmp_path / "d.json")


def test_records_drop_repetitions_and_refuse_contradictions() -> None:
    row = {"id": "a", "answer": "A"}

    def records(*rows: dict) -> list[dict]:
        return records_from("file", lambda row, number: row, lambda source: rows)

    assert records(row, dict(row)) == [row]
    with pytest.raises(InputError, match="two different records have the id 'a'"):
        records(row, {"id": "a", "answer": "B"})
    with pytest.raises(InputError, match="holds no records"):
        records()
    with pytest.raises(InputError, match="file, record 1: it lacks id; it has answer"):
        records_from("file", lambda row, number: {"id": row["id"]}, lambda source: [{"answer": 1}])


def test_need_names_what_is_absent() -> None:
    with pytest.raises(InputError, match="lacks answer; it has question"):
        need({"question": "q"}, ("question", "answer"), "file")


def test_json_is_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(json.dumps([{"x": "é"}], ensure_ascii=False).encode())
    assert read_rows(str(tmp_path / "a.json")) == [{"x": "é"}]


def test_a_folder_with_several_splits_wants_one_named(tmp_path: Path) -> None:
    """As cloned from the hub, subject by subject, and as `save_to_disk` writes a DatasetDict."""
    for subject in ("Art", "Music"):
        for split in ("dev", "validation"):
            (tmp_path / "hub" / subject).mkdir(parents=True, exist_ok=True)
            table = Dataset.from_list([{"id": f"{split}_{subject}_1"}])
            table.to_parquet(str(tmp_path / f"hub/{subject}/{split}-00000-of-00001.parquet"))
    (tmp_path / "hub" / "test").mkdir()
    Dataset.from_list([{"id": "t"}]).to_parquet(str(tmp_path / "hub/test/0000.parquet"))
    DatasetDict({s: Dataset.from_list([{"id": s}]) for s in ("a", "b")}).save_to_disk(
        str(tmp_path / "saved")
    )
    rows = read_rows(f"{tmp_path}/hub:validation")
    assert [row["id"] for row in rows] == ["validation_Art_1", "validation_Music_1"]
    assert read_rows(f"{tmp_path}/hub:test") == [{"id": "t"}]
    assert read_rows(f"{tmp_path}/saved:b") == [{"id": "b"}]
    assert folder_of(f"{tmp_path}/saved:b") == tmp_path / "saved"
    assert folder_of(f"{tmp_path}/rows.jsonl") == tmp_path
    for source in (f"{tmp_path}/hub", f"{tmp_path}/hub:train"):
        with pytest.raises(InputError, match="holds dev, validation, test: name one behind it"):
            read_rows(source)
    with pytest.raises(InputError, match="holds a, b"):
        read_rows(f"{tmp_path}/saved")
