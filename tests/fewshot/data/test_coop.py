"""Readers of the published layouts, each on a small folder in the real format."""

import json

import pytest

from crome.errors import InputError
from crome.fewshot.data.coop import BENCHMARKS, LAYOUTS, read_benchmark


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def write_split(root, layout):
    rows = {
        "train": [["b/2.jpg", 1, "second_class"], ["a/1.jpg", 0, "first"]],
        "val": [["a/3.jpg", 0, "first"]],
        "test": [["b/4.jpg", 1, "second_class"]],
    }
    folder = root / layout.folder
    for part in rows.values():
        for path, _, _ in part:
            touch(folder / layout.images / path)
    (folder / layout.split).write_text(json.dumps(rows))


@pytest.mark.parametrize("name", LAYOUTS)
def test_split_sets(tmp_path, name):
    write_split(tmp_path, LAYOUTS[name])
    data = read_benchmark(name, tmp_path)
    assert data.classes == ["first", "second class"]
    assert [item.label for item in data.train] == [1, 0]
    assert [len(data.val), len(data.test)] == [1, 1]
    assert data.test[0].path.is_file()
    assert all("{}" in template for template in data.templates)


def test_all_fifteen_sets_have_a_reader():
    assert len(BENCHMARKS) == 15


def test_aircraft(tmp_path):
    root = tmp_path / "fgvc_aircraft"
    root.mkdir()
    (root / "variants.txt").write_text("707-320\nA300 B4\n")
    for part in ("train", "val", "test"):
        (root / f"images_variant_{part}.txt").write_text("0034309 A300 B4\n0034958 707-320\n")
    data = read_benchmark("fgvc_aircraft", tmp_path)
    assert [item.label for item in data.train] == [1, 0]
    assert data.train[0].path == root / "images" / "0034309.jpg"
    (root / "images_variant_val.txt").write_text("0034309 Concorde\n")
    with pytest.raises(InputError, match="line 1: 'Concorde'"):
        read_benchmark("fgvc_aircraft", tmp_path)


CLASSNAMES = "n01440764 tench\nn03773504 missile\nn04008634 missile\n"


def test_imagenet_tells_equal_names_apart(tmp_path):
    root = tmp_path / "imagenet"
    for part in ("train", "val"):
        for wnid in ("n01440764", "n03773504", "n04008634"):
            touch(root / "images" / part / wnid / "x.JPEG")
    (root / "classnames.txt").write_text(CLASSNAMES)
    data = read_benchmark("imagenet", tmp_path)
    assert data.classes == ["tench", "missile", "missile"]
    assert [item.label for item in data.train] == [0, 1, 2]
    assert len(data.templates) == 7


@pytest.mark.parametrize(
    ("name", "folder", "images"),
    [
        ("imagenet_sketch", "imagenet-sketch", "images"),
        ("imagenet_a", "imagenet-adversarial", "imagenet-a"),
        ("imagenet_r", "imagenet-rendition", "imagenet-r"),
    ],
)
def test_shift_sets_keep_the_ids_they_have(tmp_path, name, folder, images):
    root = tmp_path / folder
    touch(root / images / "n04008634" / "x.jpg")
    touch(root / images / "README.txt")
    (root / "classnames.txt").write_text(CLASSNAMES)
    data = read_benchmark(name, tmp_path)
    assert (data.ids, data.classes) == (["n04008634"], ["missile"])
    assert [item.label for item in data.test] == [0]


def test_imagenetv2_folders_are_line_numbers(tmp_path):
    root = tmp_path / "imagenetv2"
    for label in (0, 2):
        touch(root / "imagenetv2-matched-frequency-format-val" / str(label) / "x.jpeg")
    (root / "classnames.txt").write_text(CLASSNAMES)
    data = read_benchmark("imagenetv2", tmp_path)
    assert [item.label for item in data.test] == [0, 2]
    assert data.ids[2] == "n04008634"


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"split_zhou_DescribableTextures\.json is missing"):
        read_benchmark("dtd", tmp_path)
    with pytest.raises(InputError, match="expected one of imagenet, caltech101"):
        read_benchmark("cifar", tmp_path)


def test_malformed_split_is_refused(tmp_path):
    folder = tmp_path / "dtd"
    folder.mkdir()
    (folder / "split_zhou_DescribableTextures.json").write_text('{"train": []}')
    with pytest.raises(InputError, match="is not a split file"):
        read_benchmark("dtd", tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", '{"train": 3}', '{"train": [[1, 0, "a"]], "val": [], "test": []}',
     '{"train": [["a.jpg", "x", "a"]], "val": [], "test": []}', "[" * 100_000, "\x00"],
)  # fmt: skip
def test_a_damaged_split_is_named(tmp_path, text):
    layout = LAYOUTS["caltech101"]
    write_split(tmp_path, layout)
    (tmp_path / layout.folder / layout.split).write_text(text)
    with pytest.raises(InputError, match="is not a split file"):
        read_benchmark("caltech101", tmp_path)
