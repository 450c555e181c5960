"""Text alone, or nearest centroid without text."""

import numpy as np
import pytest

from crome.errors import InputError
from crome.fewshot import ZeroShotClassifier


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_logits_are_scaled_cosines_and_need_no_training(problem):
    p = problem
    model = ZeroShotClassifier(p.text, logit_scale=20.0).fit(p.X[::3], p.y[::3])
    np.testing.assert_allclose(model.decision_function(p.Q), 20 * unit(p.Q) @ unit(p.text).T)


def test_without_text_it_is_the_nearest_centroid(problem):
    p = problem
    model = ZeroShotClassifier().fit(p.X, p.y)
    centroids = unit(np.stack([unit(p.X)[p.y == c].mean(0) for c in range(p.n)]))
    np.testing.assert_array_equal(model.predict(p.Q), (unit(p.Q) @ centroids.T).argmax(1))


def test_rows_follow_sorted_labels_or_the_order_given(problem):
    p, names = problem, np.array(["d", "b", "a", "c"])
    given = ZeroShotClassifier(p.text, classes=names).fit(p.X, names[p.y])
    alphabetical = ZeroShotClassifier(p.text[np.argsort(names)]).fit(p.X, names[p.y])
    np.testing.assert_array_equal(given.predict(p.Q), alphabetical.predict(p.Q))
    assert given.classes_.tolist() == ["a", "b", "c", "d"]


def test_image_columns_after_the_joint_ones_are_not_compared_with_text(problem):
    p = problem
    wide = lambda X: np.concatenate([X, np.full((len(X), 5), 7.0)], 1)  # noqa: E731
    narrow = ZeroShotClassifier(p.text).fit(p.X, p.y).decision_function(p.Q)
    np.testing.assert_allclose(
        ZeroShotClassifier(p.text).fit(wide(p.X), p.y).decision_function(wide(p.Q)), narrow
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {"class_features": p.text[:3]}, "3 rows, and there are 4 classes: 0, 1, 2, 3"),
        (lambda p: {"class_features": np.ones((4, 99))}, "99 columns and X only 16: they must"),
        (lambda p: {"classes": [0, 1, 2]}, r"labels \[3\] are not in classes="),
        (lambda p: {"class_features": p.text * np.nan}, "contains NaN"),
    ],
)
def test_what_does_not_match_is_refused(problem, change, message):
    p = problem
    settings = {"class_features": p.text} | change(p)
    with pytest.raises(ValueError, match=message):
        ZeroShotClassifier(**settings).fit(p.X, p.y)


def test_bad_samples_are_refused(problem):
    p = problem
    model = ZeroShotClassifier(p.text).fit(p.X, p.y)
    with pytest.raises(ValueError, match="contains NaN"):
        model.predict(p.Q * np.nan)
    with pytest.raises(ValueError, match="contains NaN"):
        ZeroShotClassifier(p.text).fit(p.X * np.nan, p.y)
    with pytest.raises(InputError, match="X_val and y_val belong together"):
        ZeroShotClassifier(p.text).fit(p.X, p.y, X_val=p.Q)
    with pytest.raises(InputError, match=r"labels \[8\] are not among 0, 1, 2, 3"):
        ZeroShotClassifier(p.text).fit(p.X, p.y, X_val=p.Q, y_val=np.full(len(p.Q), 8))
