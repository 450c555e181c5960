"""Precision, recall, F1 and confusion equal scikit-learn's."""

import json

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, top_k_accuracy_score

from crome.fewshot.metrics import class_report


def test_scores_equal_scikit_learns():
    rng, names = np.random.default_rng(0), [f"class {i}" for i in range(7)]
    probabilities = rng.dirichlet(np.ones(7), 60)
    y = rng.integers(0, 6, 60)  # the last class has no image
    report = class_report(probabilities, y, names)
    guessed, labels = probabilities.argmax(1), list(range(7))
    np.testing.assert_array_equal(report.confusion, confusion_matrix(y, guessed, labels=labels))
    expected = precision_recall_fscore_support(y, guessed, labels=labels, zero_division=np.nan)
    for place, score in enumerate(report.classes):
        for found, wanted in zip((score.precision, score.recall, score.f1), expected, strict=False):
            if found is None:
                assert np.isnan(wanted[place])
            else:
                assert found == pytest.approx(wanted[place])
        assert score.support == expected[3][place]
    for k in (1, 3, 5):
        wanted = top_k_accuracy_score(y, probabilities, k=k, labels=labels)
        assert report.top[k] == pytest.approx(wanted)
    assert report.right == (guessed == y).sum()
    json.dumps(report.as_json(), allow_nan=False)


def test_a_class_that_is_never_met_has_no_scores():
    report = class_report(
        np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]]), np.array([0, 0]), ["a", "b", "c"]
    )
    a, b, c = report.classes
    assert (a.precision, a.recall, a.support, a.taken_for) == (1.0, 0.5, 2, ("b", 1))
    assert (b.precision, b.recall, b.support) == (0.0, None, 0)
    assert (c.precision, c.recall, c.f1) == (None, None, None)
    assert report.macro_f1 == pytest.approx(2 / 3)
    assert report.top == {1: 0.5}
