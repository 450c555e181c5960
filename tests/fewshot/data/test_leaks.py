"""The same picture in two parts is found, also encoded anew."""

import shutil

import numpy as np
import pytest
from PIL import Image

from crome.fewshot.data.draws import Draw
from crome.fewshot.data.leaks import find_contradiction, find_leaks
from crome.fewshot.data.sets import Item


def test_equal_bytes_in_training_and_test_are_found(photos, tmp_path):
    copy = tmp_path / "copy.png"
    shutil.copy(photos / "red" / "0.png", copy)
    train, test = [Item(photos / "red" / "0.png", 0)], [Item(photos / "red" / "1.png", 0)]
    assert find_leaks(Draw(train, [], [*test, Item(copy, 0)])) == [(train[0].path, copy)]
    assert find_leaks(Draw(test, train, [Item(copy, 0)])) == [(train[0].path, copy)]  # validation
    assert find_leaks(Draw(train, [], test)) == []


def test_training_images_in_validation_and_two_labels_of_one_picture_are_found(photos):
    red = photos / "red" / "0.png"
    assert find_leaks(Draw([Item(red, 0)], [Item(red, 0)], [])) == [(red, red)]
    assert find_contradiction([Item(red, 0), Item(red, 1)]) == (red, red)
    assert find_contradiction([Item(red, 0), Item(red, 0)]) is None


def photo(seed, size=(60, 44)):
    """A smooth picture with some detail, as photographs are."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), float)
    return Image.fromarray((pixels + rng.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("name", "settings", "scale"),
    [
        ("a.jpg", {"quality": 75}, 1),
        ("a.jpg", {"quality": 95}, 1),
        ("a.webp", {"quality": 80}, 1),
        ("a.jpg", {"quality": 90}, 2),
        ("a.bmp", {}, 1),
        ("a.png", {}, 3),
    ],
)
def test_pictures_encoded_anew_are_found(tmp_path, name, settings, scale):
    for seed in range(6):
        original, folder = photo(seed), tmp_path / str(seed)
        folder.mkdir()
        original.save(folder / "original.png")
        size = (original.width * scale, original.height * scale)
        original.resize(size, Image.Resampling.BICUBIC).save(folder / name, **settings)
        train, copy = Item(folder / "original.png", 0), Item(folder / name, 0)
        assert find_leaks(Draw([train], [], [copy])) == [(train.path, copy.path)]


def test_different_pictures_are_no_leaks(photos, tmp_path):
    items = [Item(file, 0) for file in sorted(photos.rglob("*.png"))]  # noise on three colours
    assert find_leaks(Draw(items[:15], [], items[15:])) == []
    for seed in range(30):
        photo(seed).save(tmp_path / f"{seed}.png")
    items = [Item(tmp_path / f"{seed}.png", 0) for seed in range(30)]
    assert find_leaks(Draw(items[:10], items[10:20], items[20:])) == []
    for shade in (100, 101, 180):  # plain pictures say nothing: only equal files are copies
        Image.new("RGB", (20, 20), (shade,) * 3).save(tmp_path / f"plain{shade}.png")
    plain = [Item(tmp_path / f"plain{shade}.png", 0) for shade in (100, 101, 180)]
    assert find_leaks(Draw(plain[:1], [], plain[1:])) == []


def test_one_shape_in_two_colours_is_two_pictures(tmp_path):
    for name, colour in (("a", "#d04030"), ("b", "#408a30")):  # of one brightness
        picture = Image.new("RGB", (40, 40), "white")
        picture.paste(colour, (8, 12, 30, 34))
        picture.save(tmp_path / f"{name}.png")
    one, other = (Item(tmp_path / f"{name}.png", 0) for name in "ab")
    assert find_leaks(Draw([one], [], [other])) == []


def test_a_copy_of_validation_in_test_is_found_and_unreadable_files_are_no_leaks(tmp_path):
    photo(0).save(tmp_path / "a.png")
    photo(0).save(tmp_path / "b.jpg", quality=80)
    photo(1).save(tmp_path / "c.png")
    (tmp_path / "broken.png").write_text("no picture")
    train, val = Item(tmp_path / "c.png", 0), Item(tmp_path / "a.png", 0)
    test = [Item(tmp_path / "b.jpg", 0), Item(tmp_path / "broken.png", 0)]
    assert find_leaks(Draw([train], [val], test)) == [(val.path, test[0].path)]
    assert find_leaks(Draw(test[1:], [val], [train])) == []
