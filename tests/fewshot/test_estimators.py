"""Every classifier keeps scikit-learn's contract."""

import warnings

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from crome.errors import InputError
from crome.fewshot import (
    APEClassifier,
    GDAClassifier,
    LinearProbeClassifier,
    TipAdapterClassifier,
    XMAdapterClassifier,
    ZeroShotClassifier,
)


@parametrize_with_checks(
    [
        ZeroShotClassifier(),
        TipAdapterClassifier(),
        TipAdapterClassifier(epochs=5),
        XMAdapterClassifier(epochs=5),
        GDAClassifier(),
        APEClassifier(),
        XMAdapterClassifier(),
        LinearProbeClassifier(),
    ]
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": "magic"}, "gamma='magic'; expected learned, query or a number from 0 to 1"),
        ({"gamma": 1.5}, "gamma=1.5"),
        ({"init": "magic"}, "init='magic'; expected text or random"),
        ({"selection": "magic"}, "selection='magic'; expected log_loss or accuracy"),
        ({"betas": ()}, "the number of betas is 0"),
        ({"epochs": -1}, "epochs is -1"),
        ({"classes": [0, 1, 2, 2]}, "classes= names 2 more than once"),
    ],
)
def test_settings_out_of_range_are_refused(problem, settings, message):
    with pytest.raises(InputError, match=message):
        XMAdapterClassifier(problem.text, **settings).fit(problem.X, problem.y)


def test_class_features_in_another_order_are_warned_of(problem):
    with pytest.warns(UserWarning, match="class_features may be in another order"):
        ZeroShotClassifier(problem.text[[1, 2, 3, 0]]).fit(problem.X, problem.y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ZeroShotClassifier(problem.text).fit(problem.X, problem.y)


def test_validation_labels_are_checked_and_those_without_shots_select_nothing(problem):
    model = XMAdapterClassifier(problem.text, classes=range(problem.n))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        model.fit(problem.X, problem.y, X_val=problem.Q[:5], y_val=problem.y_test[:4])
    shots, unseen = problem.y != 2, problem.y_test == 2
    model.fit(
        problem.X[shots], problem.y[shots], X_val=problem.Q[unseen], y_val=problem.y_test[unseen]
    )
    assert len(model.predict(problem.Q)) == len(problem.Q)


def test_added_images_are_checked_before_anything_changes(problem):
    model = XMAdapterClassifier(problem.text).fit(problem.X, problem.y)
    for y in (problem.y[:-1], problem.y.astype(str)):
        with pytest.raises(ValueError, match=r"inconsistent|cannot join"):
            model.add_images(problem.X, y)
    assert len(model.keys_) == len(problem.X)
