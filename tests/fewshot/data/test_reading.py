"""Folders and tables of labelled images."""

import shutil
from pathlib import Path

import pytest

from crome.errors import InputError
from crome.fewshot.data.reading import read_images
from crome.fewshot.data.sets import Item, labels_of


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


def write_rows(file, *rows, header="image,label"):
    file.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return file


def test_labels_that_look_the_same_are_the_same(photos, tmp_path):
    composed, combining = "caf\u00e9", "cafe\u0301"
    labels = ["box", "box ", " box", "box\u00a0", "\u200bbox", composed, combining, "tea  pot"]
    labels += ["tea pot", "1", "1.0", "1.00", "2.5"]
    rows = [f'{photos}/red/{i % 10}.png,"{label}"' for i, label in enumerate(labels)]
    data = read_images(write_rows(tmp_path / "a.csv", *rows))
    assert data.classes == ["1", "2.5", "box", composed, "tea pot"]
    assert labels_of(data.train).tolist() == [2] * 5 + [3, 3, 4, 4, 0, 0, 0, 1]


def test_folders_of_one_name_in_two_forms_are_one_class(photos, tmp_path):
    for name, colour in (("caf\u00e9", "red"), ("cafe\u0301", "green"), ("tea", "sea_blue")):
        shutil.copytree(photos / colour, tmp_path / "data" / name)
    data = read_images(tmp_path / "data")
    assert data.classes == ["caf\u00e9", "tea"]
    assert len(data.train) == 30


def test_names_that_differ_in_case_only_are_two_classes_and_warned_of(photos, tmp_path):
    file = write_rows(tmp_path / "a.csv", f"{photos}/red/0.png,Box", f"{photos}/red/1.png,box")
    with pytest.warns(UserWarning, match="'Box' and 'box', which differ in case only"):
        assert read_images(file).classes == ["Box", "box"]


def test_a_picture_that_is_listed_twice_counts_once(photos, tmp_path):
    red, green = f"{photos}/red/0.png,red", f"{photos}/green/0.png,green"
    data = read_images(write_rows(tmp_path / "a.csv", red, green, red, red))
    assert labels_of(data.train).tolist() == [1, 0]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_of_other_delimiters_and_headers(photos, tmp_path, delimiter):
    rows = [[f"{photos}/{c}/0.png", c, "Train"] for c in ("red", "green")]
    file = write_rows(
        tmp_path / "A.CSV",
        *map(delimiter.join, rows),
        delimiter * 2,
        header=delimiter.join(["\ufeffImage", " LABEL ", "Split"]),
    )
    assert read_images(file).classes == ["green", "red"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["RED,5,A,x"], "line 2 has more cells than the header"),
        (["RED"], "line 2: image='.*', label=''"),
        (["RED,   "], "line 2: image="),
        (["  ,red"], r"line 2: image='\s*', label='red'"),
        (["RED\0x,red"], "line 2: no image|not a CSV file"),
    ],
)
def test_odd_cells_are_refused_by_line(photos, tmp_path, rows, message):
    rows = [row.replace("RED", f"{photos}/red/0.png") for row in rows]
    with pytest.raises(InputError, match=message):
        read_images(write_rows(tmp_path / "a.csv", *rows, f"{photos}/green/0.png,green"))


def test_pictures_of_any_ending_are_found_and_other_files_named(photos, tmp_path):
    for colour in ("red", "green"):
        shutil.copytree(photos / colour, tmp_path / "data" / colour)
    folder = tmp_path / "data" / "red"
    for place, name in enumerate(["a", "b.jfif", "c.IMG", "d.jpeg.png.download"]):
        shutil.copy(photos / "red" / f"{place}.png", folder / name)
    for name in ("notes.txt", "Thumbs.db", "desktop.ini"):
        (folder / name).write_text("no picture")
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.warns(UserWarning, match=r"2 file\(s\) under .* are no pictures .*notes\.txt"):
        data = read_images(tmp_path / "data")
    assert len(data.train) == 24


def test_linked_folders_are_followed_once(photos, tmp_path):
    root = tmp_path / "data"
    (root / "red" / "more").mkdir(parents=True)
    shutil.copytree(photos / "green", root / "green")
    (root / "red" / "more" / "linked").symlink_to(photos / "red")
    (root / "red" / "more" / "back").symlink_to(root / "red")
    (root / "sea").symlink_to(photos / "sea_blue")
    data = read_images(root)
    assert data.classes == ["green", "red", "sea"]
    assert [labels_of(data.train).tolist().count(c) for c in range(3)] == [10, 10, 10]


def test_the_name_of_a_set_is_the_whole_name_of_its_folder(photos, tmp_path, monkeypatch):
    for name in ("pets-v1.0", "pets-v1.1"):
        shutil.copytree(photos, tmp_path / name)
        assert read_images(tmp_path / name).name == name
        monkeypatch.chdir(tmp_path / name)
        assert read_images(Path()).name == name


def test_a_path_that_is_too_long_is_no_image(photos, tmp_path):
    file = write_rows(tmp_path / "a.csv", "x" * 5000 + ",red", f"{photos}/green/0.png,green")
    with pytest.raises(InputError, match="line 2: no image"):
        read_images(file)


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        ("\n\nimage,label", "{a},x\n{b},y"),
        ("image;label;a note, with, many, commas", "{a};x;1\n{b};y;2"),
        ("note,label,image", "1,x,{a}\n2,y,{b}"),
        ("image\tlabel", "{a}\tx\u200e\n{b}\ty\n{a}\tx"),
    ],
    ids=["empty lines", "commas in a column", "another order", "direction mark"],
)
def test_headers_that_people_write(photos, tmp_path, header, rows):
    a, b = sorted(photos.glob("*/*.png"))[:2]
    file = tmp_path / "table.csv"
    file.write_text(f"{header}\n{rows.format(a=a, b=b)}\n", encoding="utf-8")
    data = read_images(file)
    assert data.classes == ["x", "y"]
    assert data.train == [Item(a, 0), Item(b, 1)]
    file.write_text("image,label,label\na,b,c\n")
    with pytest.raises(InputError, match="optionally split, once each"):
        read_images(file)


@pytest.mark.parametrize("names", [("Training_Set", "dev", "test images"), ("train", "valid", "T")])
def test_names_of_parts(photos, tmp_path, names):
    for name in names[: 3 if names[2] != "T" else 2]:
        for kind in ("red", "green"):
            target = tmp_path / "set" / name / kind
            target.mkdir(parents=True)
            shutil.copy(next((photos / kind).glob("*.png")), target / "a.png")
    (tmp_path / "set" / "__MACOSX").mkdir()
    data = read_images(tmp_path / "set")
    assert data.classes == ["green", "red"]
    assert (len(data.train), len(data.val)) == (2, 2)
    assert len(data.test) == (2 if names[2] != "T" else 0)


def test_pictures_in_no_class_and_links_to_nothing_are_told(photos, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(photos, root)
    shutil.copy(next(photos.glob("*/*.png")), root / "loose.png")
    (root / "red" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.warns(UserWarning, match="left out") as caught:
        data = read_images(root)
    messages = " ".join(str(warning.message) for warning in caught)
    assert "in no class folder, and are left out, such as loose.png" in messages
    assert "no pictures that can be read and are left out, such as" in messages
    assert "gone.png" in messages
    assert len(data.train) == len(read_images(photos).train)
