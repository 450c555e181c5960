"""The same picture in two parts is found, also encoded anew."""

import shutil

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
