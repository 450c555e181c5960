"""Tables: CSV, Parquet that is damaged, data sets of the hub."""

import random
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from crome.data.entries import entries
from crome.data.opening import open_stream
from crome.data.problems import Problem
from crome.data.reader import read_rows
from crome.data.tables import hub_name
from crome.errors import InputError, JobError


def test_csv_has_rows_with_choices_and_conversations(folder):
    file = folder / "rows.csv"
    file.write_text(
        '\ufeffimage,question,answer,choices\na.png,"What, now?",red,"[""red"", ""blue""]"\n'
        ',"Two\nlines?",7,\n',
    )
    one, two = read_rows(file)
    assert (one.question, one.choices, one.images) == (
        "What, now?", ("red", "blue"), (folder / "a.png",)
    )  # fmt: skip
    assert (two.question, two.answer, two.images) == ("Two\nlines?", "7", ())


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ";"), ("a.csv", "\t"), ("a.TSV", "\t")])
def test_separators(folder, name, mark):
    (folder / name).write_text(f"question{mark}answer\nq{mark}a\n")
    assert [(r.question, r.answer) for r in read_rows(folder / name)] == [("q", "a")]


def test_tables_as_spreadsheets_write_them(folder):
    """A line that names the separator, quoted names with others in them, spaces, answers that are
    lists or objects."""
    file = folder / "a.csv"
    for text in (
        'sep=;\nimage;question;answer\na.png;q;"x, y"\n',
        'sep=,\r\nimage,question,answer\r\na.png,q,"x, y"\r\n',
        'image, question ,answer\na.png,q,"x, y"\n',
        '"image";"question";"answer";"a,b,c,d"\na.png;q;x, y;n\n',
    ):
        file.write_text(text)
        assert [(r.question, r.answer) for r in read_rows(file)] == [("q", "x, y")]
    file.write_text('question,answer\n[1],"[10, 20]"\nq,"{""total"": 12}"\nq,"[""a"", ""b""]"\n')
    one, two, three = read_rows(file)
    assert (one.question, one.answer) == ("[1]", "[10, 20]")
    assert two.answer == '{"total": 12}'
    assert (three.answer, three.answers) == ("a", ("b",))
    file.write_text("question,answer,answer\na,b,c\n")
    with pytest.raises(InputError, match="the column 'answer' twice"):
        list(entries(file))


PNG = {"bytes": b"\x89PNG\r\n\x1a\nand more", "path": "x.png"}


@pytest.mark.parametrize(("value", "count"), [
    (PNG, 1), ([PNG, PNG], 2), (PNG["bytes"], 1), ([PNG["bytes"], PNG["bytes"]], 2),
    (pyarrow.array(["a.png"]).dictionary_encode(), 1),
    (pyarrow.array(["a.png"], "large_string"), 1),
])  # fmt: skip
def test_pictures_in_columns_of_every_type(folder, value, count):
    file = folder / "a.parquet"
    shown = value if isinstance(value, pyarrow.Array) else pyarrow.array([value])
    table = pyarrow.table({"image": shown, "question": ["q"], "answer": ["a"]})
    pyarrow.parquet.write_table(table, file)
    assert [len(row.images) for row in read_rows(file)] == [count]
    pyarrow.parquet.write_table(table.rename_columns(["scan", "question", "answer"]), file)
    with pytest.raises(InputError, match="image: found the key 'scan'"):
        read_rows(file)


def test_what_is_wrong_with_a_table_is_named(folder):
    file = folder / "a.csv"
    file.write_text("question,answer\nq\nq,a,b\nq,a\n")
    one, two, three = entries(file)
    assert one[1] == Problem("line 2", "row", "fewer cells", "2 cells, as the header has")
    assert two[1] == Problem("line 3", "row", "more cells", "2 cells, as the header has")
    assert three == ("line 4", {"question": "q", "answer": "a"})
    file.write_bytes(b"question,answer\n\xff,a\n")
    with pytest.raises(InputError, match="found the byte 0xff; expected UTF-8"):
        list(entries(file))
    file.write_text('question,answer\n"q,a\n')
    with pytest.raises(InputError, match="cannot be read as a table"):
        list(entries(file))
    file.write_text("question,answer\n")
    with pytest.raises(InputError, match="no usable rows"):
        read_rows(file)


def test_damaged_parquet_is_named_and_never_a_traceback(tmp_path):
    rows = [{"question": f"q{n}" * 20, "answer": "a", "image": {"bytes": b"x" * n}}
            for n in range(300)]  # fmt: skip
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    whole = file.read_bytes()
    draw = random.Random(0)
    for damage in range(60):
        content = bytearray(whole)
        if damage % 2:
            del content[draw.randrange(len(whole)) :]
        else:
            for _ in range(20):
                content[draw.randrange(4, len(whole))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
        try:
            list(entries(file))
        except InputError as error:
            assert str(file) in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017


def test_names_of_hub_data_sets(tmp_path, monkeypatch):
    assert hub_name(Path("org/name")).group("id", "config", "split") == ("org/name", None, None)
    assert hub_name(Path("org/name:test"))["split"] == "test"
    assert hub_name(Path("o/n:en:test")).group("config", "split") == ("en", "test")
    assert hub_name(Path("org/rows.jsonl")) is None
    assert hub_name(Path("rows")) is None
    monkeypatch.chdir(tmp_path)
    Path("org").mkdir()
    assert hub_name(Path("org/name")) is None  # a file that is absent


def test_a_hub_data_set_is_read(monkeypatch, tmp_path):
    asked = []

    def load(name, config, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_list([{"question": "q", "answer": "a"}])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert [row.question for row in read_rows(Path("org/name"))] == ["q"]
    read_rows(Path("org/name:en:test"))
    assert asked == [("org/name", None, "train"), ("org/name", "en", "test")]


@pytest.mark.parametrize(
    ("raised", "error", "told"),
    [
        (ConnectionError("no route"), JobError, "hub, .*, cannot be reached: no route"),
        (FileNotFoundError("no such"), InputError, "no data file org/name, .*: no such"),
        (ValueError("Unknown split.\nmore"), InputError, "hub data set: Unknown split"),
    ],
)
def test_a_hub_data_set_that_cannot_be_had(monkeypatch, tmp_path, raised, error, told):
    def load(*_, **__):
        raise raised

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(error, match=told):
        list(entries(Path("org/name")))


def test_a_hub_data_set_trains_under_a_fingerprint_of_its_rows(monkeypatch, tmp_path):
    rows = [{"question": "q", "answer": "a"}]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(rows))
    first = open_stream(Path("org/name")).fingerprint
    assert open_stream(Path("org/name")).fingerprint == first
    rows[0]["answer"] = "b"
    assert open_stream(Path("org/name")).fingerprint != first
