"""Every classifier keeps scikit-learn's contract."""

import warnings

import numpy as np
import pytest
import torch
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

ALL = [
    ZeroShotClassifier,
    TipAdapterClassifier,
    XMAdapterClassifier,
    GDAClassifier,
    APEClassifier,
    LinearProbeClassifier,
]
FOLDS_DIFFER = {
    "check_sample_weight_equivalence_on_dense_data": "copies of an image fall into several folds"
}


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
    ],
    expected_failed_checks=lambda estimator: FOLDS_DIFFER,
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
        ({"betas": [0.0]}, "a value of betas is 0.0; expected a finite number above 0"),
        ({"betas": [float("nan")]}, "a value of betas is nan"),
        ({"betas": 4.0}, "betas is 4.0; expected a list of numbers, such as"),
        ({"betas": [[1.0, 2.0]]}, r"betas is \[\[1.0, 2.0\]\]; expected a list of numbers"),
        ({"betas": "many"}, "betas is 'many'; expected a list of numbers"),
        ({"alphas": []}, "the number of alphas is 0"),
        ({"alphas": 1.0}, "alphas is 1.0; expected a list of numbers"),
        ({"alphas": [-1.0]}, "a value of alphas is -1.0"),
        ({"logit_scale": float("nan")}, "logit_scale is nan; expected a finite number above 0"),
        ({"logit_scale": 0}, "logit_scale is 0"),
        ({"logit_scale": "100"}, "logit_scale is '100'"),
        ({"eta": float("inf")}, "eta is inf"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"batch_size": 2.5}, "batch_size is 2.5; expected a whole number of 1 or more"),
        ({"bottleneck": 0}, "bottleneck is 0"),
        ({"whiten": "yes"}, "whiten is 'yes'; expected True or False"),
        ({"init": ["text"]}, r"init=\['text'\]; expected text or random"),
        ({"random_state": -1}, "random_state is -1; expected a whole number from 0"),
        ({"random_state": "one"}, "random_state is 'one'"),
        ({"device": "gpu"}, "device is 'gpu', which cannot be used here"),
        ({"device": "cuda:99"}, "device is 'cuda:99', which cannot be used here"),
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


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (GDAClassifier, {"alphas": []}, "the number of alphas is 0"),
        (GDAClassifier, {"alphas": 2.0}, "alphas is 2.0"),
        (APEClassifier, {"betas": [0.0]}, "a value of betas is 0.0"),
        (APEClassifier, {"channels": 1.5}, "channels is 1.5; expected a number from 0 to 1, not 0"),
        (APEClassifier, {"similarity_share": -1}, "similarity_share is -1"),
        (LinearProbeClassifier, {"Cs": ()}, "the number of Cs is 0"),
        (LinearProbeClassifier, {"Cs": [0.0]}, "a value of Cs is 0.0"),
        (ZeroShotClassifier, {"logit_scale": float("inf")}, "logit_scale is inf"),
    ],
)
def test_settings_of_every_method_are_checked(problem, kind, settings, message):
    with pytest.raises(InputError, match=message):
        kind(problem.text, **settings).fit(problem.X, problem.y)


@pytest.mark.parametrize("shape", [(12, 0, 16), (12, 16), (11, 2, 16), (12, 2, 15)])
def test_views_of_another_shape_are_refused(problem, shape):
    with pytest.raises(InputError, match="views has shape"):
        TipAdapterClassifier(problem.text).fit(problem.X, problem.y, views=np.ones(shape))


@pytest.mark.parametrize("kind", ALL)
def test_any_random_state_of_scikit_learn_is_taken(problem, kind):
    p = problem
    if "random_state" not in kind().get_params():
        pytest.skip(f"{kind.__name__} draws nothing")
    of = lambda state: kind(p.text, random_state=state).fit(p.X, p.y)  # noqa: E731
    np.testing.assert_array_equal(of(np.int64(3)).predict_proba(p.Q), of(3).predict_proba(p.Q))
    drawn = of(np.random.RandomState(0))
    assert drawn.seed_ == np.random.RandomState(0).randint(2**31 - 1)
    again = of(drawn.seed_)
    np.testing.assert_array_equal(again.predict_proba(p.Q), drawn.predict_proba(p.Q))
    assert of(None).score(p.Q, p.y_test) > 0.5


@pytest.mark.parametrize("labels", [[1, "a"] * 6, ["a", None] * 6])
def test_labels_of_two_kinds_and_missing_ones_are_refused(problem, labels):
    with pytest.raises(ValueError, match=r"kinds int and str|missing value None|contains NaN"):
        TipAdapterClassifier(problem.text[:2]).fit(problem.X, np.array(labels, object))


@pytest.mark.parametrize("kind", ALL)
def test_a_weighted_image_counts_as_so_many_copies(problem, kind):
    p = problem
    weights = np.where(np.arange(len(p.y)) % 3 == 0, 3.0, 1.0)
    weights[4] = 0
    fixed = {"alphas": (1.0,), "betas": (2.0,), "Cs": (10.0,)}
    names = kind().get_params()
    settings = {name: value for name, value in fixed.items() if name in names}
    held_out = {"X_val": p.Q, "y_val": p.y_test}  # and no folds, in which copies would be split
    weighted = kind(p.text, **settings).fit(p.X, p.y, weights, **held_out)
    copies = np.repeat(np.arange(len(p.y)), weights.astype(int))
    repeated = kind(p.text, **settings).fit(p.X[copies], p.y[copies], **held_out)
    np.testing.assert_allclose(
        weighted.decision_function(p.Q), repeated.decision_function(p.Q), rtol=1e-4, atol=1e-5
    )
    plain = kind(p.text, **settings).fit(p.X, p.y, **held_out)
    if kind is not ZeroShotClassifier:
        assert not np.allclose(weighted.decision_function(p.Q), plain.decision_function(p.Q))


@pytest.mark.parametrize("weights", [np.zeros(12), -np.ones(12), np.ones(11), np.full(12, np.nan)])
def test_weights_that_weigh_nothing_are_refused(problem, weights):
    with pytest.raises(InputError, match="sample_weight has"):
        TipAdapterClassifier(problem.text).fit(problem.X, problem.y, weights)


@pytest.mark.parametrize("kind", ALL)
def test_everything_is_made_on_the_device_of_the_estimator(problem, kind):
    """Whatever is made without a device would land on ``meta``, and mixing devices is an error."""
    p, settings = problem, {}
    if "epochs" in kind().get_params():
        settings["epochs"] = 2
    seen = p.y != 1
    expected = kind(p.text, classes=range(4), device="cpu", **settings).fit(p.X[seen], p.y[seen])
    torch.set_default_device("meta")
    try:
        model = kind(p.text, classes=range(4), device="cpu", **settings).fit(p.X[seen], p.y[seen])
        proba = model.predict_proba(p.Q)
        whole = kind(p.text, device="cpu", **settings).fit(p.X, p.y)
        familiar = whole.familiarity(p.Q)
    finally:
        torch.set_default_device(None)
    np.testing.assert_array_equal(proba, expected.predict_proba(p.Q))
    assert familiar.shape == (len(p.Q),)


@pytest.mark.parametrize("kind", [TipAdapterClassifier, GDAClassifier])
def test_strangers_are_less_familiar(problem, kind):
    rng = np.random.default_rng(3)
    centres, labels = rng.normal(size=(10, 64)), np.repeat(np.arange(10), 8)
    draw = lambda y: centres[y] + rng.normal(size=(len(y), 64))  # noqa: E731
    model = kind(centres).fit(draw(labels), labels)
    usual, strange = model.familiarity(draw(labels)), model.familiarity(rng.normal(size=(200, 64)))
    assert ((usual > 0) & (usual <= 1)).all()
    # Of images like the training images about a share p is at p or less; of random ones, all.
    assert 0.0 < (usual <= 0.2).mean() < 0.35
    assert (strange <= 0.05).mean() > 0.95


def test_familiarity_needs_images_of_every_class(problem):
    p, seen = problem, problem.y != 1
    model = TipAdapterClassifier(p.text, classes=range(4)).fit(p.X[seen], p.y[seen])
    with pytest.raises(InputError, match="familiarity needs images of every class"):
        model.familiarity(p.Q)
    model.add_images(p.X[~seen], p.y[~seen])
    assert model.familiarity(p.Q).max() > 0.2


def test_tensors_are_taken_as_arrays_are(problem):
    p = problem
    model = TipAdapterClassifier(torch.from_numpy(p.text))
    model.fit(torch.from_numpy(p.X), torch.from_numpy(p.y), views=torch.from_numpy(p.X[:, None]))
    assert model.score(torch.from_numpy(p.Q), p.y_test) > 0.8


@pytest.mark.parametrize("size", [1e-200, 1e200])
@pytest.mark.parametrize("kind", ALL)
def test_the_size_of_features_does_not_matter(problem, kind, size):
    p = problem
    expected = kind(p.text).fit(p.X, p.y).predict(p.Q)
    found = kind(size * p.text).fit(size * p.X, p.y).predict(size * p.Q)
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(InputError, match="expected weights around 1"):
        kind(p.text).fit(p.X, p.y, sample_weight=np.full(len(p.y), size))


def test_a_device_without_values_and_a_flag_as_gamma_are_refused(problem):
    with pytest.raises(InputError, match="device is 'meta', which cannot be used here"):
        XMAdapterClassifier(problem.text, device="meta").fit(problem.X, problem.y)
    with pytest.raises(InputError, match="gamma=True; expected"):
        XMAdapterClassifier(problem.text, gamma=True).fit(problem.X, problem.y)
