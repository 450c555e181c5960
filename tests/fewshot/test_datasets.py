"""Folders and CSV files of labelled images, the shots drawn from them, and leaks."""

import shutil

import pytest
from crome.fewshot.datasets import (
    Draw,
    ImageSet,
    Item,
    draw_shots,
    find_contradiction,
    find_leaks,
    labels_of,
    read_draw,
    read_images,
    write_draw,
)

from crome.errors import InputError


def make_set(tmp_path, sizes, val=0, test=0):
    """Items of files that need not exist: ``sizes`` training images per class."""
    items = lambda part, counts: [  # noqa: E731
        Item(tmp_path / f"{part}-{c}-{i}.png", c) for c, n in enumerate(counts) for i in range(n)
    ]
    n = len(sizes)
    names = [f"class {c}" for c in range(n)]
    return ImageSet(
        "made", names, items("train", sizes), items("val", [val] * n), items("test", [test] * n)
    )


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


@pytest.mark.parametrize("val", ["few", "none"])
def test_draw_is_disjoint_balanced_and_repeatable(tmp_path, val):
    data = make_set(tmp_path, [12, 12, 12])
    draw = draw_shots(data, 3, seed=5, val=val)
    files = [item.path for item in (*draw.train, *draw.val, *draw.test)]
    assert sorted(files) == sorted(item.path for item in data.train)  # each image exactly once
    assert labels_of(draw.train).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len(draw.val) == (9 if val == "few" else 0)
    assert draw.digest == draw_shots(data, 3, seed=5, val=val).digest
    assert draw.digest != draw_shots(data, 3, seed=6, val=val).digest


def test_validation_and_test_parts_are_used_where_they_exist(tmp_path):
    data = make_set(tmp_path, [20, 20], val=9, test=7)
    few, full = draw_shots(data, 16, 1), draw_shots(data, 16, 1, val="full")
    assert [len(few.val), len(full.val)] == [8, 18]  # min(16, 4) per class, or all
    assert {item.path for item in few.val} <= {item.path for item in data.val}
    assert few.test == full.test == data.test


def test_small_classes_keep_an_image_for_validation_and_test(tmp_path):
    draw = draw_shots(make_set(tmp_path, [3, 30]), 16, 1)
    counts = [[labels_of(p).tolist().count(c) for c in (0, 1)] for p in (draw.train, draw.val)]
    assert counts == [[1, 16], [1, 4]]
    assert labels_of(draw.test).tolist().count(0) == 1


def test_impossible_draws_are_refused(tmp_path):
    data = make_set(tmp_path, [5, 0])
    with pytest.raises(InputError, match="no training image of 'class 1'"):
        draw_shots(data, 2, 1)
    data = make_set(tmp_path, [5, 3])
    with pytest.raises(InputError, match="'class 1' has 3 training images, fewer than shots=4"):
        draw_shots(data, 4, 1, short="refuse")
    with pytest.raises(InputError, match="shots=0; expected at least 1"):
        draw_shots(data, 0, 1)
    with pytest.raises(InputError, match="val='full', and made has no validation part"):
        draw_shots(data, 1, 1, val="full")


def test_test_images_per_class_are_bounded(tmp_path):
    draw = draw_shots(make_set(tmp_path, [20, 20]), 2, 1, test_per_class=5)
    assert labels_of(draw.test).tolist() == [0] * 5 + [1] * 5


def test_equal_bytes_in_training_and_test_are_found(photos, tmp_path):
    copy = tmp_path / "copy.png"
    shutil.copy(photos / "red" / "0.png", copy)
    train, test = [Item(photos / "red" / "0.png", 0)], [Item(photos / "red" / "1.png", 0)]
    assert find_leaks(Draw(train, [], [*test, Item(copy, 0)])) == [(train[0].path, copy)]
    assert find_leaks(Draw(test, train, [Item(copy, 0)])) == [(train[0].path, copy)]  # validation
    assert find_leaks(Draw(train, [], test)) == []


def test_draw_file_round_trip(tmp_path):
    data = make_set(tmp_path, [6, 6])
    draw = draw_shots(data, 2, 1)
    write_draw(draw, data, tmp_path / "draw.json")
    assert read_draw(tmp_path / "draw.json", data) == draw
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(InputError, match=r"bad\.json is not a draw"):
        read_draw(tmp_path / "bad.json", data)


def test_the_packaged_sample_unpacks_once(tmp_path):
    from crome.fewshot.sample import CLASSES, unpack_sample

    folder = unpack_sample(tmp_path)
    data = read_images(folder)
    assert data.classes == sorted(CLASSES)
    assert [len(data.train), len(data.test)] == [160, 1000]
    first = data.train[0].path
    first.write_bytes(b"mine")
    unpack_sample(tmp_path)
    assert first.read_bytes() == b"mine"


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


def test_draw_of_another_set_is_refused(tmp_path):
    data = make_set(tmp_path, [6, 6])
    write_draw(draw_shots(data, 2, 1), data, tmp_path / "draw.json")
    data.classes = ["class 0", "other"]
    with pytest.raises(InputError, match="the draw is of another set"):
        read_draw(tmp_path / "draw.json", data)


def test_training_images_in_validation_and_two_labels_of_one_picture_are_found(photos):
    red = photos / "red" / "0.png"
    assert find_leaks(Draw([Item(red, 0)], [Item(red, 0)], [])) == [(red, red)]
    assert find_contradiction([Item(red, 0), Item(red, 1)]) == (red, red)
    assert find_contradiction([Item(red, 0), Item(red, 0)]) is None
