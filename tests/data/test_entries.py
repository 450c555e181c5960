"""Entries of files: lists read in pieces, places of errors, problems counted."""

import bz2
import json
import lzma

import datasets
import pytest

from crome.data import entries as entries_module
from crome.data.entries import entries, read_json
from crome.data.problems import Problem, Problems
from crome.errors import InputError

LIST = [{"a": "ü€" * n, "b": [n, {"c": None}], "d": -1.5e3} for n in range(50)]


@pytest.mark.parametrize("chunk", [1, 7, 64, 2**20])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_is_the_same_in_any_pieces(tmp_path, monkeypatch, chunk, indent):
    monkeypatch.setattr(entries_module, "CHUNK", chunk)
    file = tmp_path / "a.json"
    file.write_text(" " + json.dumps(LIST, indent=indent, ensure_ascii=False) + "\n", "utf-8")
    found = list(entries(file))
    assert [entry for _, entry in found] == LIST
    assert [place for place, _ in found][:2] == ["row 1", "row 2"]


@pytest.mark.parametrize("chunk", [1, 8, 2**20])
@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('[{"a": 1},\n {"a" 2}]', "line 2, column 7"),
        ('[{"a": 1}\n{"a": 2}]', "line 2, column 1"),
        ('[{"a": 1}, {"a": "', "column 18"),
        ('[\n\n{"a": 1}', "line 3, column 9"),
        ("[1] 2", "column 5"),
        ("[1,]", "column 4"),
    ],
)
def test_where_a_list_is_broken(tmp_path, monkeypatch, text, place, chunk):
    monkeypatch.setattr(entries_module, "CHUNK", chunk)
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(InputError, match=rf"invalid JSON at {place} \("):
        list(entries(file))


def test_numbers_and_nestings_without_bounds(tmp_path):
    for text in ("[" + "9" * 5000 + "]", "[" * 100_000, "[]" + "]" * 10, '["\\ud800"]'):
        file = tmp_path / "a.json"
        file.write_text(text)
        if "ud800" in text:
            assert list(entries(file)) == [("row 1", "\ud800")]
        else:
            with pytest.raises(InputError, match="JSON"):
                list(entries(file))


def test_bytes_that_are_not_utf8_end_a_list(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(b'["\xff"]')
    with pytest.raises(InputError, match="found the byte 0xff; expected UTF-8"):
        list(entries(file))


def test_a_long_list_is_not_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(entries_module, "CHUNK", 1000)
    file = tmp_path / "a.json"
    file.write_text("[" + ",".join(['{"a": "%s"}' % ("x" * 100)] * 1000) + "]")
    longest = 0
    with file.open() as opened:
        text = entries_module.ListText(file, opened)
        text.skip("[")
        while not text.skip("]"):
            text.skip(",")
            text.value()
            longest = max(longest, len(text.text))
    assert longest < 2500


def test_millions_of_problems_are_counted_and_few_kept():
    problems = Problems(keep=2)
    for number in range(5):
        problems.add(Problem(f"line {number}", f"turns[{number}]", "3", "a text"))
    assert len(problems) == 5
    assert [p.place for p in problems.first] == ["line 0", "line 1"]
    assert problems.summary() == "5 × turns is not a text"


def test_whole_files(tmp_path):
    with pytest.raises(InputError, match=r"no file .*x\.json"):
        read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(InputError, match=r"x\.json, row: found invalid JSON at column 2"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("rows.xlsx", b"PK\x03\x04\0", "a spreadsheet; unpack it, or save it as CSV"),
        ("a.jsonl", '{"a": 1}\n'.encode("utf-16"), "UTF-16; save it as UTF-8"),
        ("a.jsonl", '{"a": 1}\n'.encode("utf-32"), "UTF-32; save it as UTF-8"),
        ("a.jsonl.bz2", bz2.compress(b'{"a": 1}'), "compressed; unpack it with bunzip2"),
        ("a.jsonl.xz", lzma.compress(b'{"a": 1}'), "compressed; unpack it with unxz"),
        ("a.json", b'[{"a": 1, "b": {"c": 1, "c": 2}}]', "the key 'c' is there twice"),
        ("a.7z", b"7z\xbc\xaf\x27\x1c", "compressed; unpack it with 7z"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        ("a.csv", b"<!DOCTYPE html>", "a web page"),
        ("a.jsonl.gz", b"\x1f\x8b\x08\0\0", "compressed"),
        ("a.png", b"\x89PNG\r\n\x1a\n\0\0", "no text .*; expected JSON lines"),
        ("a.json", b'{\n "datum": [{"a": 1}]\n}', "over several lines; expected one a line"),
        ("a.parquet", b"PAR1 and no more", "cannot be read as Parquet: .*[^.][.]$"),
    ],
)
def test_files_of_another_form_are_named_once(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=told):
        list(entries(tmp_path / name))


def test_a_saved_dataset_is_read(tmp_path):
    rows = [{"question": "q", "answer": "a", "id": None}, {"question": "r", "answer": "b", "id": 3}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "train")
    read = list(entries(tmp_path / "train"))
    assert read == [("row 1", {"question": "q", "answer": "a"}), ("row 2", rows[1])]
    (tmp_path / "dataset_dict.json").touch()
    with pytest.raises(InputError, match=r"several splits; name one of .*/train\."):
        list(entries(tmp_path))
    with pytest.raises(InputError, match="is a folder; expected JSON lines"):
        list(entries(tmp_path.parent))
    next((tmp_path / "train").glob("*.arrow")).write_bytes(b"cut")
    with pytest.raises(InputError, match="train cannot be read as a saved dataset"):
        list(entries(tmp_path / "train"))


@pytest.mark.parametrize("indent", [None, 1])
def test_the_list_under_a_key(tmp_path, indent):
    file = tmp_path / "a.json"
    rows = [{"question": "q", "answer": "a"}, {"question": "r", "answer": "b"}]
    given = {"version": 1, "info": {"data": [0]}, "data": rows, "end": [1]}
    file.write_text(json.dumps(given, indent=indent))
    assert list(entries(file)) == [("row 1", rows[0]), ("row 2", rows[1])]
    file.write_text(json.dumps(rows[0]) + "\n" + json.dumps({"data": 1}))  # lines
    assert [place for place, _ in entries(file)] == ["line 1", "line 2"]
