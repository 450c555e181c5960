"""Logistic regression is scikit-learn's, with C from held-out images."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from crome.fewshot import LinearProbeClassifier


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("n", [2, 4])
def test_equals_scikit_learn_on_unit_rows(problem, n):
    p = problem
    X, y = p.X[p.y < n], p.y[p.y < n]
    model = LinearProbeClassifier(Cs=(10.0,)).fit(X, y)
    theirs = LogisticRegression(C=10.0, max_iter=300).fit(unit(X), y)
    np.testing.assert_allclose(
        model.decision_function(p.Q), theirs.decision_function(unit(p.Q)), atol=1e-6
    )


def test_penalty_with_the_best_held_out_accuracy_is_taken(problem):
    p = problem
    held = {"X_val": p.Q, "y_val": p.y_test}
    alone = {C: LinearProbeClassifier(Cs=(C,)).fit(p.X, p.y, **held) for C in (1e-6, 10.0)}
    both = LinearProbeClassifier(Cs=(1e-6, 10.0)).fit(p.X, p.y, **held)
    best = max(alone, key=lambda C: alone[C].validation_accuracy_)
    assert best == both.C_


def test_text_makes_no_difference(problem):
    p = problem
    with_text = LinearProbeClassifier(p.text).fit(p.X, p.y).decision_function(p.Q)
    np.testing.assert_allclose(
        with_text, LinearProbeClassifier().fit(p.X, p.y).decision_function(p.Q), atol=1e-6
    )
