"""Gaussian discriminant analysis equals the published estimate, written out."""

import numpy as np

from crome.fewshot import GDAClassifier


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_evidence_equals_the_published_formula(problem):
    p, width = problem, 16
    model = GDAClassifier(p.text, alphas=(1.0,)).fit(p.X, p.y)
    rows = unit(p.X)
    means = np.stack([rows[p.y == c].mean(0) for c in range(p.n)])
    rest = rows - means[p.y]
    scatter = rest.T @ rest
    ridge = scatter + np.trace(scatter) / (len(rows) - 1) * np.eye(width)
    precision = width * np.linalg.inv(ridge)
    offsets = -0.5 * np.einsum("nc,cd,nd->n", means, precision, means)
    expected = 100 * unit(p.Q) @ unit(p.text).T + unit(p.Q) @ precision @ means.T + offsets
    np.testing.assert_allclose(model.decision_function(p.Q), expected, atol=1e-8)


def test_every_view_counts_as_an_image(problem):
    p, rng = problem, np.random.default_rng(1)
    views = p.X[:, None] + 0.3 * rng.normal(size=(len(p.y), 4, 16))
    seen = GDAClassifier(p.text, alphas=(1.0,)).fit(p.X, p.y, views=views)
    images = GDAClassifier(p.text, alphas=(1.0,)).fit(views.reshape(-1, 16), p.y.repeat(4))
    np.testing.assert_allclose(seen.weights_, images.weights_)


def test_one_image_per_class_is_nearest_mean(problem):
    p = problem
    model = GDAClassifier().fit(p.X[::3], p.y[::3])
    distance = np.linalg.norm(unit(p.Q)[:, None] - unit(p.X[::3])[None], axis=2)
    np.testing.assert_array_equal(model.predict(p.Q), distance.argmin(1))
    assert np.isnan(model.validation_accuracy_)


def test_weight_is_chosen_on_validation_images(problem):
    p = problem
    weak = np.random.default_rng(0).normal(size=p.text.shape)  # text that says nothing
    model = GDAClassifier(weak).fit(p.X, p.y, X_val=p.Q[::2], y_val=p.y_test[::2])
    assert model.score(p.Q[1::2], p.y_test[1::2]) > 0.85
    assert model.validation_accuracy_ > 0.85
