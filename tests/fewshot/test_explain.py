"""Explanations add up, name the right cached images, and are drawn."""

import numpy as np
import pytest
from PIL import Image

from crome.errors import InputError
from crome.fewshot import GDAClassifier, TipAdapterClassifier, XMAdapterClassifier
from crome.fewshot.drawing import draw_explanations
from crome.fewshot.explain import explain


@pytest.mark.parametrize("kind", [TipAdapterClassifier, XMAdapterClassifier])
def test_text_and_images_add_up_to_the_log_odds(problem, kind):
    p = problem
    model = kind(p.text).fit(p.X, p.y)
    probabilities = np.sort(model.predict_proba(p.Q[:9]), 1)
    for what, row in zip(explain(model, p.Q[:9], 2), probabilities, strict=True):
        log_odds = np.log(row[-1] / row[-2])
        assert what.text_margin + what.image_margin == pytest.approx(log_odds)
        assert what.probability == pytest.approx(row[-1])


def test_neighbours_are_the_most_alike_images_of_the_predicted_class(problem):
    p = problem
    model = TipAdapterClassifier(p.text).fit(p.X, p.y)
    unit = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)  # noqa: E731
    affinity = unit(p.Q) @ unit(p.X).T
    for row, what in enumerate(explain(model, p.Q[:9], 2)):
        mine = np.flatnonzero(p.y == what.label)
        expected = mine[affinity[row, mine].argsort()[::-1][:2]]
        assert [index for index, _ in what.neighbours] == expected.tolist()
        assert what.neighbours[0][1] == pytest.approx(affinity[row, expected[0]])


def test_class_without_images_has_no_neighbours(problem):
    p = problem
    model = TipAdapterClassifier(p.text, classes=range(4), alphas=(0.01,)).fit(
        p.X[p.y != 1], p.y[p.y != 1]
    )
    (what,) = [w for w in explain(model, p.Q[p.y_test == 1]) if w.label == 1][:1]
    assert what.neighbours == ()


def test_methods_without_a_cache_are_refused(problem):
    model = GDAClassifier(problem.text).fit(problem.X, problem.y)
    with pytest.raises(InputError, match="GDAClassifier keeps no images"):
        explain(model, problem.Q)


def test_picture_has_a_row_per_image_and_shows_lost_files_grey(problem, tmp_path):
    p = problem
    model = TipAdapterClassifier(p.text).fit(p.X, p.y)
    found = explain(model, p.Q[:2], 3)
    red, blue = Image.new("RGB", (40, 20), "red"), Image.new("RGB", (20, 40), "blue")
    cached = [blue if i != found[0].neighbours[0][0] else tmp_path / "lost.png" for i in range(12)]
    draw_explanations(found, [red, red], cached, ["a", "b", "c", "d"], tmp_path / "out.png")
    pixels = np.asarray(Image.open(tmp_path / "out.png"))
    colours = {tuple(c) for c in pixels.reshape(-1, 3)[::7].tolist()}
    assert {(255, 0, 0), (0, 0, 255), (0xDD, 0xDD, 0xDD)} <= colours
