"""The plot's lines are where the values say."""

import numpy as np
from PIL import Image

from crome.plot import COLOURS, line_plot


def pixels_of(file, colour):
    image = np.asarray(Image.open(file))
    rgb = tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return np.argwhere((image == rgb).all(2))


def test_higher_values_are_higher_and_gaps_are_left_out(tmp_path):
    curves = {"low": [10.0, 20.0, 30.0], "high": [60.0, 70.0, float("nan")]}
    line_plot(curves, [1, 2, 4], tmp_path / "plot.png", title="accuracy")
    low, high = (pixels_of(tmp_path / "plot.png", colour) for colour in COLOURS[:2])
    line = lambda found: found[found[:, 1] < 660]  # noqa: E731 - left of the labels
    assert line(low)[:, 0].min() > line(high)[:, 0].max()
    assert line(high)[:, 1].max() < line(low)[:, 1].max()  # it ends at the second position


def test_logarithmic_axis_spaces_powers_evenly(tmp_path):
    line_plot({"a": [1.0, 10.0, 100.0]}, [1, 2, 4], tmp_path / "log.png", title="", log_y=True)
    rows, columns = pixels_of(tmp_path / "log.png", COLOURS[0]).T
    straight = np.corrcoef(rows[columns < 660], columns[columns < 660])[0, 1]
    assert straight < -0.99  # a straight line; drawn marks widen it


def test_a_plain_axis_spaces_steps_evenly_and_names_a_few(tmp_path):
    steps = range(5, 505, 5)
    line_plot({"a": list(steps)}, steps, tmp_path / "plain.png", title="", log_x=False)
    rows, columns = pixels_of(tmp_path / "plain.png", COLOURS[0]).T
    straight = np.corrcoef(rows[columns < 660], columns[columns < 660])[0, 1]
    assert straight < -0.99


def test_nothing_to_draw_writes_nothing(tmp_path):
    line_plot({"a": [float("nan")]}, [1], tmp_path / "none.png", title="")
    assert not (tmp_path / "none.png").exists()
