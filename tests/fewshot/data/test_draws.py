"""Shots drawn from sets: disjoint, repeatable, without copies."""

import shutil

import pytest

from crome.errors import InputError
from crome.fewshot.data.draws import draw_shots, read_draw, with_label_noise, write_draw
from crome.fewshot.data.reading import read_images
from crome.fewshot.data.sets import ImageSet, Item, labels_of


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


def test_draw_file_round_trip(tmp_path):
    data = make_set(tmp_path, [6, 6])
    draw = draw_shots(data, 2, 1)
    write_draw(draw, data, tmp_path / "draw.json")
    assert read_draw(tmp_path / "draw.json", data) == draw
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(InputError, match=r"bad\.json is not a draw"):
        read_draw(tmp_path / "bad.json", data)


def test_draw_of_another_set_is_refused(tmp_path):
    data = make_set(tmp_path, [6, 6])
    write_draw(draw_shots(data, 2, 1), data, tmp_path / "draw.json")
    data.classes = ["class 0", "other"]
    with pytest.raises(InputError, match="the draw is of another set"):
        read_draw(tmp_path / "draw.json", data)


def test_a_picture_under_two_names_is_one_shot(photos, tmp_path):
    root = tmp_path / "data"
    for colour in ("red", "green"):
        (root / colour).mkdir(parents=True)
        for place in range(3):
            for copy in "abc":
                name = f"{copy}{place}.png"
                shutil.copy(photos / colour / f"{place}.png", root / colour / name)
    data = read_images(root)
    for seed in range(5):
        draw = draw_shots(data, 3, seed, val="none")
        for label in (0, 1):
            contents = {i.path.read_bytes() for i in draw.train if i.label == label}
            assert len(contents) == [i.label for i in draw.train].count(label)


def test_the_name_of_a_draw_follows_the_contents(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "data")
    data = read_images(tmp_path / "data")
    before = draw_shots(data, 2, 1).digest
    shutil.copytree(photos, tmp_path / "moved" / "data")
    moved = read_images(tmp_path / "moved" / "data")
    assert draw_shots(moved, 2, 1).digest == before
    shutil.copy(photos / "red" / "0.png", draw_shots(data, 2, 1).train[0].path)
    assert draw_shots(data, 2, 1).digest != before


def test_wrong_labels_are_as_many_as_asked_for(tmp_path):
    draw = draw_shots(make_set(tmp_path, [20] * 5), 10, 1)
    noisy = with_label_noise(draw, 0.3, 5, seed=3)
    wrong = labels_of(noisy.train) != labels_of(draw.train)
    assert wrong.sum() == 15
    assert set(labels_of(noisy.train)) == set(range(5))
    assert [i.path for i in noisy.train] == [i.path for i in draw.train]
    assert (noisy.val, noisy.test) == (draw.val, draw.test)
    assert with_label_noise(draw, 0.3, 5, seed=3) == noisy
    assert with_label_noise(draw, 0.0, 5, seed=3) == draw
    with pytest.raises(InputError, match="label_noise is 1; expected a number from 0"):
        with_label_noise(draw, 1, 5, seed=3)


@pytest.mark.parametrize("label", ["0.5", "true", '"0"'])
def test_a_label_of_a_draw_that_is_no_index_is_refused(photos, tmp_path, label):
    file = tmp_path / "draw.json"
    file.write_text(f'\ufeff{{"train": [["x.png", {label}, "green"]], "val": [], "test": []}}')
    with pytest.raises(InputError, match="the draw is of another set"):
        read_draw(file, read_images(photos))
