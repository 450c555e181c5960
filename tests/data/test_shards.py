"""Shards as they stream by: tars and Parquet, what is left out, order by seed."""

import io
import itertools
import json
import logging
import pickle
import struct
import tarfile

import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from torch.utils.data import IterableDataset

from crome.data.opening import open_stream
from crome.data.shards import ShardStream
from crome.data.views import Views
from crome.errors import InputError, JobError


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


def tar_of(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def drawn(kind, red):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (red, 0, 0)).save(file, kind)
    return file.getvalue()


def asks(number):
    return {"question": f"{number}?", "answer": "a", "image": f"elsewhere/{number}.jpg"}


def test_samples_of_all_kinds_in_one_tar(tmp_path):
    """Any picture format, endings in capitals or with a dot, captions, several pictures."""
    tar_of(tmp_path / "a.tar", [
        ("x/0.json", asks(0)), ("x/0.tif", drawn("TIFF", 10)),
        ("x/1.json", asks(1)), ("x/1.bmp", drawn("BMP", 20)),
        ("x/2.JSON", asks(2)), ("x/2.PNG", drawn("PNG", 30)),
        ("x/3.json", asks(3) | {"question": "<image>3<image>?"}),
        ("x/3.v1.png", drawn("PNG", 40)), ("x/3.v2.png", drawn("PNG", 50)),
        ("x/4.txt", b"a caption"), ("x/4.gif", drawn("GIF", 60)),
        ("x/5.json", {"question": "text?", "answer": "a"}),
    ])  # fmt: skip
    rows = {row.id: row for row in ShardStream([str(tmp_path / "a.tar")], 6)}
    reds = {name: [i.getpixel((0, 0))[0] for i in row.images] for name, row in rows.items()}
    assert reds == {"x/0": [10], "x/1": [20], "x/2": [30], "x/3": [40, 50], "x/4": [60], "x/5": []}
    assert rows["x/4"].answer == "a caption"
    assert [place.offset for place in rows["x/3"].places] == [0, 1]


@pytest.mark.parametrize("broken", [
    b"", b"no picture", drawn("PNG", 1)[:-30], b"<svg/>",
    drawn("BMP", 1)[:18] + struct.pack("<ii", 60_000, 60_000) + drawn("BMP", 1)[26:],
])  # fmt: skip
def test_a_broken_picture_costs_its_sample_alone(tmp_path, broken):
    """The last of them says that it has 3,600 megapixels."""
    tar_of(tmp_path / "a.tar", [("0.json", asks(0)), ("0.png", broken), ("1.json", asks(1)),
                                ("1.png", drawn("PNG", 10))])  # fmt: skip
    stream = ShardStream([str(tmp_path / "a.tar")], 1)
    assert [row.question for row in stream] == ["1?"]
    assert "sample 0, sample: found its picture" in str(stream.problems.first[0])


def test_what_a_sample_of_shards_would_lose_is_counted(tmp_path, caplog):
    tar_of(tmp_path / "a.tar", [
        ("0.json", asks(0)), ("0.mp4", b"film"),
        ("1.json", {"question": "<image>1?", "answer": "a"}),
        ("2.json", asks(2)),
        ("3.json", {"question": "q", "answer": "a"}),
        ("4.json", [1]),
        ("5.json", asks(5)), ("5.png", b"no picture"),
        ("6.cls", b"3"),
        ("7.json", b'{"question": "q", "question": "r", "answer": "a"}'),
        ("8.json", asks(8) | {"image": None}), ("8.txt", b""), ("8.json", asks(9)),
    ])  # fmt: skip
    rows = ShardStream([str(tmp_path / "a.tar")], 2)
    assert sorted(row.id for row in rows) == ["3", "8"]
    assert len(rows.problems) >= 6


def test_a_tar_that_was_made_into_parquet(tmp_path):
    columns = {"__key__": ["a"], "jpg": [{"bytes": png(9), "path": "a.jpg"}],
               "json": [{"question": "Q?", "answer": "a"}]}  # fmt: skip
    features = Features(__key__=Value("string"), jpg=ImageFeature(),
                        json={"question": Value("string"), "answer": Value("string")})  # fmt: skip
    Dataset.from_dict(columns, features).to_parquet(tmp_path / "a.parquet")
    (row,) = ShardStream([str(tmp_path / "a.parquet")], 1)
    assert row.images[0].getpixel((0, 0)) == (9, 0, 0)


def test_a_cut_tar_and_damaged_parquet_end_in_one_line(tmp_path):
    tar_of(tmp_path / "a.tar", [("0.json", asks(0)), ("0.png", drawn("PNG", 1) + bytes(20_000))])
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:3000])
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    for name in ("a.tar", "a.parquet"):
        with pytest.raises((JobError, InputError), match="shards"):
            list(ShardStream([str(tmp_path / name)], 1))


def test_the_first_rows_can_be_looked_at(shards):
    """As `crome plan` does."""
    stream = ShardStream(shards, 11, buffer=4)
    assert stream[2] is stream[2]
    assert [stream[i].id for i in range(5)] == [row.id for row in itertools.islice(stream, 5)]


def test_views_of_a_stream(shards):
    stream = ShardStream(shards, 11, buffer=4)
    views = Views(stream, 3, epoch=11, seed=1)
    assert isinstance(views, IterableDataset)
    assert len(views) == 11
    shown = list(pickle.loads(pickle.dumps(views)))
    assert [row.id for row in shown] == [row.id for row in stream]
    assert len({row.images[0].size for row in shown}) > 1
    talk = {row.id: row for row in shown if "0001" in row.id}
    assert talk["0001/0"].images[0] is talk["0001/1"].images[0]
    assert [row.images[0].size for row in views] == [row.images[0].size for row in shown]


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
