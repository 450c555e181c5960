import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crome.errors import InputError
from crome.evaluation.predictions import (
    Prediction,
    PredictionWriter,
    align,
    read_predictions,
)

NASTY = (
    "one\ttab\nline break\r\nand \u2028 a separator, \x00 a zero, \U0001f40c, \ud800 half a pair"
)


def prediction(identity: str, response: str = "yes") -> Prediction:
    return Prediction(identity, "Is it?", response, (1.5, 0.25), {"num_beams": 1}, "sha256:ab")


def test_line_holds_the_contract(tmp_path: Path) -> None:
    row = json.loads(prediction("a").line())
    assert row == {
        "id": "a",
        "prompt": "Is it?",
        "response": "yes",
        "losses": [1.5, 0.25],
        "generation": {"num_beams": 1},
        "checkpoint": "sha256:ab",
    }
    assert "losses" not in json.loads(Prediction("a").line())


def test_nasty_responses_survive(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    with PredictionWriter(path) as writer:
        writer.write(prediction("a", NASTY))
        writer.write(prediction("b"))
    assert [p.response for p in read_predictions(path)] == [NASTY, "yes"]


def test_killed_at_any_byte_and_resumed_gives_the_same_file(tmp_path: Path) -> None:
    rows = [prediction("a", NASTY), prediction("b"), prediction("c", "")]
    whole = b"".join(row.line() for row in rows)
    path = tmp_path / "predictions.jsonl"
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        with PredictionWriter(path) as writer:
            for row in rows:
                if row.id not in writer.done:
                    writer.write(row)
        assert path.read_bytes() == whole


# Writes each line in pieces with pauses between them, so that a kill finds it in the middle of one.
CHILD = """
import sys, time
from crome.evaluation.predictions import Prediction, PredictionWriter

class InPieces:
    def __init__(self, file):
        self.file, self.flush, self.close = file, file.flush, file.close
    def write(self, line):
        for start in range(0, len(line), 9):
            self.file.write(line[start : start + 9])
            self.file.flush()
            time.sleep(0.0005)

with PredictionWriter(sys.argv[1]) as writer:
    writer._file = InPieces(writer._file)
    for k in range(12):
        if str(k) not in writer.done:
            writer.write(Prediction(str(k), "What?", "yes " * k))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_process_killed_six_times_gives_the_file_of_one_that_was_not(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    torn = 0
    for size in (1, 100, 250, 500, 750, 1000):
        process = subprocess.Popen([sys.executable, "-c", CHILD, str(path)])
        while not path.exists() or path.stat().st_size < size:
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        torn += not path.read_bytes().endswith(b"\n")
    assert torn
    subprocess.run([sys.executable, "-c", CHILD, str(path)], check=True)
    rows = (Prediction(str(k), "What?", "yes " * k) for k in range(12))
    assert path.read_bytes() == b"".join(row.line() for row in rows)


def test_each_line_is_on_disk_when_write_returns(tmp_path: Path) -> None:
    path = tmp_path / "new" / "predictions.jsonl"
    writer = PredictionWriter(path)
    writer.write(prediction("a"))
    assert path.read_bytes() == prediction("a").line()
    writer.close()


def test_no_row_twice(tmp_path: Path) -> None:
    with PredictionWriter(tmp_path / "p.jsonl") as writer:
        writer.write(prediction("a"))
        with pytest.raises(InputError, match="'a' has been predicted already"):
            writer.write(prediction("a"))


def test_a_file_with_repetitions_is_not_resumed(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(prediction("a").line() * 2)
    with pytest.raises(InputError, match="1 ids stand there more than once \\(a\\)"):
        PredictionWriter(path)


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (Prediction("b", generation={"num_beams": 5}, checkpoint="sha256:ab"), "num_beams"),
        (Prediction("b", generation={"num_beams": 1}, checkpoint="sha256:cd"), "checkpoint"),
    ],
)
def test_resuming_with_other_settings_is_refused(
    tmp_path: Path, other: Prediction, name: str
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(prediction("a").line())
    with PredictionWriter(path) as writer, pytest.raises(InputError, match=f"started with {name}"):
        writer.write(other)


def test_reads_what_other_projects_write(tmp_path: Path) -> None:
    lines = tmp_path / "answers.jsonl"
    lines.write_text('{"question_id": 7, "text": "B"}\n\n{"index": 8, "prediction": "C"}\n')
    assert [(p.id, p.response) for p in read_predictions(lines)] == [("7", "B"), ("8", "C")]
    table = tmp_path / "answers.json"
    table.write_text('{"v1_0": "a slug"}')
    assert read_predictions(table) == [Prediction("v1_0", response="a slug")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"id": "a", "response": "x"}\n{"id": "b", "resp', r"p\.jsonl:2: not JSON .*interrupted"),
        ('["a", "x"]\n', "expected a JSON object, found list"),
        ('{"response": "x"}\n', "no field id or question_id or index"),
        ('{"id": "a"}\n', "no field response or text"),
        ('{"id": "a", "response": null}\n', "must be a text, found None"),
        ('{"id": "a", "response": 3}\n', "must be a text, found 3"),
        ('{"id": "a", "response": "x", "losses": [1, "2"]}\n', "losses must be a list of numbers"),
        ('{"id": "a", "response": "x", "generation": "greedy"}\n', "generation must be an object"),
        ('{"id": "a", "response": "x", "losses": [NaN]}\n', "losses must be a list of numbers"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_predictions(path)


def test_tables_are_read_and_spreadsheets_named(tmp_path: Path) -> None:
    for name, mark in (("a.tsv", "\t"), ("a.csv", ",")):
        (tmp_path / name).write_text(f'\ufeffindex{mark}prediction\r\n7{mark}"a\nb"\r\n')
        assert read_predictions(tmp_path / name) == [Prediction("7", response="a\nb")]
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"a\.xlsx: (not a workbook|reading spreadsheets needs)"):
        read_predictions(tmp_path / "a.xlsx")


def test_lines_in_a_json_file_are_told_their_name(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"id": 1, "text": "a"}\n{"id": 2, "text": "b"}\n')
    with pytest.raises(InputError, match=r"is named \.jsonl"):
        read_predictions(tmp_path / "a.json")


def test_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such predictions file"):
        read_predictions(tmp_path / "p.jsonl")


def test_align_names_missing_unknown_and_duplicate_ids() -> None:
    found = [prediction("a"), prediction("a", "no"), prediction("x")]
    with pytest.raises(InputError, match=r"1 missing \(b\); 1 unknown \(x\); 1 duplicate \(a\)"):
        align(["a", "b"], found)
    by_id, counts = align(["a", "b"], found, "report")
    assert {key: p.response for key, p in by_id.items()} == {"a": "no"}
    assert counts == {"missing": 1, "unknown": 1, "duplicate": 1}


def test_align_gives_the_order_of_the_records() -> None:
    by_id, counts = align(["b", "a"], [prediction("a"), prediction("b")])
    assert list(by_id) == ["b", "a"]
    assert counts == {}


def test_align_names_only_the_first_few() -> None:
    with pytest.raises(InputError, match=r"9 missing \(0, 1, 2, 3, 4, …\)"):
        align([str(k) for k in range(9)], [])


def test_a_second_writer_is_refused_until_the_first_is_done(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    with PredictionWriter(path) as writer:
        writer.write(prediction("a"))
        with pytest.raises(InputError, match="being written by another process"):
            PredictionWriter(path)
        writer.write(prediction("b"))
    with PredictionWriter(path) as writer:
        assert writer.done == {"a", "b"}
    path.write_bytes(b"not JSON\n")
    for _ in range(2):  # a file that cannot be read is not left locked
        with pytest.raises(InputError, match="not JSON"):
            PredictionWriter(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.json", '{"1": {"response": "red", "score": 2}}'),
        ("p.json", '{"data": [{"id": 1, "response": "red"}]}'),
        ("p.json", '{"model": "x", "predictions": [{"id": 1, "prediction": "red"}]}'),
        ("p.jsonl", '{"ID": 1, "Response": "red"}\n'),
        ("p.csv", "Index,Question,Prediction\n1,Which?,red\n"),
    ],
)
def test_layouts_that_people_have(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_predictions(tmp_path / name) == [Prediction("1", response="red")]
