"""Folders and tables of labelled images."""

import shutil

import pytest

from crome.errors import InputError
from crome.fewshot.data.reading import read_images
from crome.fewshot.data.sets import labels_of


def test_folder_per_class(photos):
    data = read_images(photos)
    assert data.classes == ["green", "red", "sea_blue"]
    assert [len(data.train), len(data.val), len(data.test)] == [30, 0, 0]
    assert data.train[0].path == photos / "green" / "0.png"


def test_parts_above_the_classes(photos, tmp_path):
    for part in ("Train", "valid", "test"):
        shutil.copytree(photos, tmp_path / part)
    data = read_images(tmp_path)
    assert [len(data.train), len(data.val), len(data.test)] == [30, 30, 30]


def test_csv_with_strings_in_any_order(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "images")
    file = tmp_path / "labels.csv"
    file.write_text(
        "label,split,image\nsea,train,images/sea_blue/0.png\nred,,images/red/0.png\n"
        "red,test,images/red/1.png\n"
    )
    data = read_images(file)
    assert data.classes == ["red", "sea"]
    assert labels_of(data.train).tolist() == [1, 0]
    assert [item.label for item in data.test] == [0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.png,x\n", r"columns \['file', 'label'\]; expected image and label"),
        ("image,label\na.png,\n", "line 2: image='a.png', label=''"),
        ("image,label,split\na.png,x,later\n", "split='later'; expected"),
        ("image,label\nmissing.png,x\n", "line 2: no image .*missing.png"),
        ("image,label\n", r"holds 0 class\(es\); expected at least 2"),
    ],
)
def test_bad_csv_is_refused_by_line(tmp_path, text, message):
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_images(tmp_path / "bad.csv")


def test_bad_folders_are_refused_by_name(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "data")
    (tmp_path / "data" / "violet").mkdir()
    with pytest.raises(InputError, match=r"violet has no images; add some or remove the folder"):
        read_images(tmp_path / "data")
    with pytest.raises(InputError, match="no folder or CSV file at"):
        read_images(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"holds 0 class\(es\)"):
        read_images(photos / "red")


def test_hidden_files_are_no_images_and_odd_names_are(photos, tmp_path):
    folder = tmp_path / "größe 日本 🎈" / "a b" / "deeper"
    folder.mkdir(parents=True)
    shutil.copytree(photos / "red", folder.parent.parent / "red")
    shutil.copy(photos / "red" / "0.png", folder / "[1] 'é'.PnG")
    (folder / "._0.png").write_bytes(b"resource fork")
    (folder / ".DS_Store").write_bytes(b"")
    (folder / ".checkpoints").mkdir()
    (folder / ".checkpoints" / "0.png").write_bytes(b"hidden")
    data = read_images(tmp_path / "größe 日本 🎈")
    assert data.classes == ["a b", "red"]
    assert [item.path.name for item in data.train if item.label == 0] == ["[1] 'é'.PnG"]


def test_a_folder_beside_the_parts_is_refused(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "train")
    (tmp_path / "extra").mkdir()
    with pytest.raises(InputError, match="beside them the folder extra, which is neither train"):
        read_images(tmp_path)


def test_csv_that_is_no_text_is_refused_and_spaces_are_not(photos, tmp_path):
    with pytest.raises(InputError, match="is not a CSV file in UTF-8"):
        read_images(photos / "red" / "0.png")
    rows = f"image, label\n{photos}/red/0.png, red\n{photos}/green/0.png, green\n"
    (tmp_path / "spaces.csv").write_text(rows)
    assert read_images(tmp_path / "spaces.csv").classes == ["green", "red"]
