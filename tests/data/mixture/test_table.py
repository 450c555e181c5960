"""Rows on disk."""

from pathlib import Path

from crome.data.mixture.table import RowTable, TableWriter
from crome.rows import Place, Row


def test_every_field_of_a_row_comes_back(tmp_path):
    rows = [
        Row((Path("a.png"),), "q", "a", "1", ("a", "b"), (("x", "y"),), "kind",
            videos=(Path("v.mp4"), (Path("f.png"),), (Path("f.png"), Path("g.png"))),
            audios=(Path("s.wav"),), places=(Place("image", 1, 3),), system="Be brief.",
            answers=("b", "c")),
        Row((), "q", "a", "2"),
    ]  # fmt: skip
    writer = TableWriter(tmp_path)
    writer.write(rows)
    writer.close()
    table = RowTable(tmp_path)
    assert list(table) == rows
    assert table.image_keys()[0] != 0
    assert table.image_keys()[1] == 0


def test_other_media_and_other_systems_are_no_duplicates(tmp_path):
    writer = TableWriter(tmp_path)
    plain = Row((), "q", "a", "1")
    heard = Row((), "q", "a", "2", audios=(Path("s.wav"),))
    told = Row((), "q", "a", "3", system="Be brief.")
    writer.write([plain, heard, told])
    assert len(set(writer.texts)) == 3
