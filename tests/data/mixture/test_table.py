"""Rows on disk."""

from pathlib import Path

import pytest

from crome.data.mixture.table import RowTable, TableWriter
from crome.errors import InputError
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


def test_a_table_that_is_damaged_in_the_middle_is_named(tmp_path):
    """A seal looks at the ends of a file alone."""
    writer = TableWriter(tmp_path)
    for number in range(40):
        writer.write([Row((), f"question {number} {i}", "a" * 80, f"{i}") for i in range(50)])
    writer.close()
    file = tmp_path / "rows.arrow"
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40_000] = b"\xff" * 40_000
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"rows\.arrow is damaged .*it is made anew"):
        list(RowTable(tmp_path))
