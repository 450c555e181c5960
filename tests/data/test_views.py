"""Views: the same number shows the same pixels; an epoch shows one view of a picture."""

import numpy as np
import pytest
from PIL import Image

from crome.data.views import Views
from crome.images import View, load_image, show
from crome.rows import Row


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_a_number_is_a_view(picture):
    whole = load_image(picture)
    assert list(load_image(View(picture, 0)).getdata()) == list(whole.getdata())
    views = [load_image(View(picture, number)) for number in range(1, 9)]
    assert len({(view.size, view.tobytes()) for view in views}) == 8
    assert views[3].tobytes() == show(whole, 4).tobytes()
    for view in views:
        assert 0.4 * 1200 <= view.width * view.height <= 1200  # cut at the picture's border


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (3, 2)])
def test_the_smallest_pictures_have_views(size):
    for number in range(1, 20):
        assert min(show(Image.new("RGB", size), number).size) >= 1


def test_questions_on_a_picture_share_a_view_and_epochs_do_not(picture):
    rows = [Row((picture,), "?", "!", str(i)) for i in range(3)] * 60
    stream = Views(rows, count=4, epoch=3)
    assert len(stream) == 180
    numbers = [stream[i].images[0].number for i in range(180)]
    assert all(len(set(numbers[i : i + 3])) == 1 for i in range(0, 180, 3))
    assert set(numbers) == {1, 2, 3, 4}
    assert numbers == [Views(rows, count=4, epoch=3)[i].images[0].number for i in range(180)]


def test_as_many_epochs_as_views_show_all_of_them(picture):
    stream = Views([Row((picture,), "?", "!", "0")] * 16, count=8, epoch=1)
    for start in range(9):
        assert {stream[start + i].images[0].number for i in range(8)} == set(range(1, 9))
