"""Shards as they stream by: tars and Parquet, what is left out, order by seed."""

import io
import itertools
import json
import logging
import tarfile

import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from crome.data.mixture.prepare import open_stream
from crome.data.shards import ShardStream
from crome.errors import InputError


def png(red: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (red, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def shards(tmp_path):
    """Two tars of six samples each; one picture and one entry are broken."""
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for n in range(6):
                number = shard * 6 + n
                entry = {"question": f"{number}?", "answer": "a"}
                if number == 1:
                    entry = {"conversations": [
                        {"from": "human", "value": "<image>1?"}, {"from": "gpt", "value": "a"},
                        {"from": "human", "value": "more?"}, {"from": "gpt", "value": "b"},
                    ]}  # fmt: skip
                if number == 4:
                    entry = {"question": ""}
                picture = b"no picture" if number == 7 else png(number)
                for ending, content in (("json", json.dumps(entry).encode()), ("png", picture)):
                    info = tarfile.TarInfo(f"{number:04d}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return [str(tmp_path / "*.tar")]


GOOD = [f"{n}?" for n in range(12) if n not in (4, 7)] + ["more?"]


def test_a_tar_streams_as_rows(shards, caplog):
    with caplog.at_level(logging.WARNING):
        rows = list(ShardStream(shards, rows=11, epochs=2, buffer=4))
    assert len(rows) == 22
    assert sorted(row.question for row in rows[:11]) == sorted(GOOD)
    for row in rows:
        if row.question != "more?":
            assert row.images[0].getpixel((0, 0)) == (int(row.question[:-1]), 0, 0)
            assert row.id.startswith(f"{int(row.question[:-1]):04d}")
        else:
            assert row.history == (("1?", "a"),)
    assert "samples left out: 1 × sample is not a readable sample" in caplog.text
    assert "question is not a text" in caplog.text


def test_the_order_depends_on_the_seed(shards):
    asked = [[row.question for row in ShardStream(shards, 11, 2, seed, 4)] for seed in (0, 0, 1)]
    assert asked[0] == asked[1] != asked[2]
    assert asked[0][:11] != asked[0][11:]  # another order each time


def test_parquet_with_pictures_and_without(tmp_path):
    columns = {"image": [{"bytes": png(9), "path": None}, None], "question": ["Q?", "T?"],
               "answer": ["a", "b"]}  # fmt: skip
    features = Features(image=ImageFeature(), question=Value("string"), answer=Value("string"))
    Dataset.from_dict(columns, features).to_parquet(tmp_path / "a.parquet")
    rows = {row.question: row for row in ShardStream([str(tmp_path / "a.parquet")], 2)}
    assert rows["Q?"].images[0].getpixel((0, 0)) == (9, 0, 0)
    assert rows["T?"].images == ()


def test_a_file_of_settings(shards, tmp_path):
    path = tmp_path / "shards.yaml"
    path.write_text("shards: '*.tar'\nrows: 11\nbuffer: 4\n")
    stream = open_stream(path, epochs=3)
    assert len(stream) == 33
    assert len(list(itertools.islice(stream, 4))) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shards: '*.tar'", "rows: found None; expected a whole number"),
        ("shards: '*.tar'\nrows: 3\nbufer: 3", "unknown key 'bufer', meant 'buffer'"),
        ("shards: []\nrows: 3", "shards: found \\[\\]"),
        ("shards: '*.zip'\nrows: 3", r"ending in '\.zip'; expected all in one of \.tar"),
    ],
)
def test_mistakes_in_it_are_named(tmp_path, text, message):
    path = tmp_path / "shards.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        open_stream(path)


def test_absent_shards_are_named(tmp_path):
    with pytest.raises(InputError, match=r"no shards .*none-\*\.tar"):
        next(iter(ShardStream([str(tmp_path / "none-*.tar")], 3)))
