"""The plot's lines are where the values say."""

import numpy as np
import pytest
from PIL import Image

from crome import plot
from crome.plot import figure, line_plot

pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra plots)")
SETTINGS = {"title": "accuracy", "log_x": True, "log_y": False, "x_label": "shots"}


def test_lines_hold_the_values_and_gaps_are_left_out():
    curves = {"low": [10.0, 20.0, 30.0], "high": [60.0, 70.0, float("nan")]}
    (axes,) = figure(curves, [1, 2, 4], **SETTINGS).axes
    for line, values in zip(axes.lines, curves.values(), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), [1, 2, 4])
        np.testing.assert_array_equal(line.get_ydata(), values)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2", "4"]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
    assert axes.figure.legends[0].get_texts()[1].get_text() == "high"


def test_many_positions_are_neither_all_named_nor_marked():
    steps = list(range(5, 505, 5))
    (axes,) = figure({"a": steps}, steps, **SETTINGS | {"log_x": False}).axes
    assert len(axes.get_xticks()) < 20
    assert axes.lines[0].get_marker() in (None, "None")
    assert axes.get_xscale() == "linear"


def test_a_picture_is_written(tmp_path):
    line_plot({"a": [1.0, 10.0]}, [1, 2], tmp_path / "plot.png", title="", log_y=True)
    assert np.asarray(Image.open(tmp_path / "plot.png")).std() > 0


def test_nothing_to_draw_writes_nothing(tmp_path):
    line_plot({"a": [float("nan")]}, [1], tmp_path / "none.png", title="")
    assert not (tmp_path / "none.png").exists()


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    line_plot({"a": [1.0]}, [1], tmp_path / "plot.png", title="")
    assert "crome[plots]" in caplog.text
    assert not (tmp_path / "plot.png").exists()
