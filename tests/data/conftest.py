"""Pictures that the tests of rows and of their validator share."""

import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    """A folder with two good pictures."""
    for name, color in (("a.png", "red"), ("b.jpg", "blue")):
        Image.new("RGB", (40, 30), color).save(tmp_path / name)
    return tmp_path
