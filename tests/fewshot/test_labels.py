"""Rows of class features find their labels: by order, by ``classes=``, or by their own."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from crome.errors import InputError
from crome.fewshot import TipAdapterClassifier, XMAdapterClassifier, ZeroShotClassifier

NAMES = np.array(["delta", "bravo", "alpha", "charlie"])  # of the classes 0 to 3


def fit(text, p, **settings):
    return ZeroShotClassifier(text, **settings).fit(p.X, NAMES[p.y])


def test_a_table_with_labels_is_matched_by_them(problem):
    p = problem
    expected = fit(p.text[np.argsort(NAMES)], p).decision_function(p.Q)
    for order in ([0, 1, 2, 3], [3, 0, 2, 1]):
        table = pd.DataFrame(p.text[order], index=NAMES[order])
        model = fit(table, p)
        np.testing.assert_array_equal(model.decision_function(p.Q), expected)
        assert model.score(p.Q, NAMES[p.y_test]) > 0.8
        mapping = dict(zip(NAMES[order].tolist(), p.text[order], strict=True))
        np.testing.assert_array_equal(fit(mapping, p).decision_function(p.Q), expected)
        categories = pd.DataFrame(p.text[order], index=pd.CategoricalIndex(NAMES[order]))
        np.testing.assert_array_equal(fit(categories, p).decision_function(p.Q), expected)


def test_numbers_as_labels_are_matched_too(problem):
    p = problem
    expected = ZeroShotClassifier(p.text).fit(p.X, p.y).decision_function(p.Q)
    for order in ([2, 0, 3, 1], [3, 2, 1, 0]):
        table = pd.DataFrame(p.text).loc[order]
        model = ZeroShotClassifier(table).fit(p.X, p.y)
        np.testing.assert_array_equal(model.decision_function(p.Q), expected)
    ten = pd.DataFrame(p.text, index=[10, 20, 30, 40])
    model = ZeroShotClassifier(ten.loc[[30, 10, 40, 20]]).fit(p.X, 10 * (p.y + 1))
    np.testing.assert_array_equal(model.decision_function(p.Q), expected)


def test_a_table_numbered_from_zero_is_positional(problem):
    p = problem
    table = pd.DataFrame(p.text[np.argsort(NAMES)])
    assert fit(table, p).score(p.Q, NAMES[p.y_test]) > 0.8
    assert fit(pd.DataFrame(p.text), p, classes=NAMES).score(p.Q, NAMES[p.y_test]) > 0.8


def test_labels_and_classes_together_must_agree(problem):
    p = problem
    table = pd.DataFrame(p.text, index=NAMES)
    order = [2, 3, 0, 1]
    model = fit(table, p, classes=NAMES[order])
    assert model.score(p.Q, NAMES[p.y_test]) > 0.8
    with pytest.raises(
        InputError, match=r"class_features is labelled delta, bravo.*classes= names"
    ):
        fit(table, p, classes=["alpha", "bravo", "charlie", "echo"])
    with pytest.raises(InputError, match=r"labels \['alpha'\] are not in the index of class_feat"):
        fit(table.drop("alpha"), p)
    with pytest.raises(InputError, match="names 'alpha' more than once"):
        fit(table.rename(index={"delta": "alpha"}), p)


def test_a_labelled_class_needs_no_image(problem):
    p = problem
    table = pd.DataFrame(p.text, index=NAMES)
    seen = p.y != 1
    model = TipAdapterClassifier(table).fit(p.X[seen], NAMES[p.y[seen]])
    assert model.classes_.tolist() == sorted(NAMES)
    assert model.predict_proba(p.Q).shape == (100, 4)


def test_tables_of_images_and_labels_in_two_orders_are_refused(problem):
    p = problem
    index = [f"file {i}" for i in range(len(p.y))]
    X, y = pd.DataFrame(p.X, index=index), pd.Series(NAMES[p.y], index=index)
    model = ZeroShotClassifier(pd.DataFrame(p.text, index=NAMES))
    model.fit(X.to_numpy(), y)
    with pytest.raises(InputError, match="X and y have the same index in different orders"):
        model.fit(X, y.iloc[::-1])
    with pytest.raises(InputError, match="same index in different orders"):
        model.fit(X, y, X_val=X, y_val=y.iloc[::-1])


def test_text_of_another_encoder_is_warned_of(problem):
    p, rng = problem, np.random.default_rng(0)
    X, text = rng.normal(size=(40, 64)), rng.normal(size=(4, 16))  # wider, and unrelated
    y = np.arange(40) % 4
    with pytest.warns(UserWarning, match="which is chance: do both come from the same encoder"):
        XMAdapterClassifier(text).fit(X, y)
    wide = np.concatenate([p.X, rng.normal(size=(len(p.X), 9))], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        XMAdapterClassifier(p.text).fit(wide, p.y)  # image-only columns beside matching ones
        XMAdapterClassifier(text).fit(X[:, :16], y)  # as wide as the text: nothing to doubt


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 3}, r"classes= has the shape \(\); expected a list of labels"),
        ({"classes": "abcd"}, "classes= has the shape"),
        ({"classes": [[0, 1], [2, 3]]}, r"classes= has the shape \(2, 2\)"),
        ({"class_features": object()}, "class_features has no rows of numbers"),
    ],
)
def test_what_is_no_list_of_labels_or_rows_is_refused(problem, settings, message):
    p = problem
    with pytest.raises(InputError, match=message):
        ZeroShotClassifier(**{"class_features": p.text} | settings).fit(p.X, p.y)
    for name in ("sample_weight", "views"):
        with pytest.raises(InputError, match=f"{name} has"):
            ZeroShotClassifier(p.text).fit(p.X, p.y, **{name: {"a": 1}})


def test_new_classes_in_a_table_are_matched_by_its_labels(problem):
    p = problem
    kept = p.y < 2
    table = pd.DataFrame(p.text, index=NAMES)
    for order in (["charlie", "alpha"], ["alpha", "charlie"]):
        model = TipAdapterClassifier(table.loc[["delta", "bravo"]], alphas=[0.0])
        model.fit(p.X[kept], NAMES[p.y[kept]])
        model.add_images(p.X[~kept], NAMES[p.y[~kept]], table.loc[order])
        assert model.score(p.Q, NAMES[p.y_test]) > 0.8  # the text alone decides
    with pytest.raises(InputError, match="missing value None"):
        model.add_images(p.X[:2], [None, "alpha"])
    with pytest.raises(InputError, match=r"need class_features of shape \(1, 16\)"):
        model.add_images(p.X[:1], ["zulu"])


def test_class_features_of_other_kinds(problem):
    p = problem
    expected = fit(p.text[np.argsort(NAMES)], p).decision_function(p.Q)
    for given in (
        pd.Series(list(p.text), index=NAMES),
        {name: torch.tensor(row, requires_grad=True) for name, row in zip(NAMES, p.text)},  # noqa: B905
    ):
        np.testing.assert_array_equal(fit(given, p).decision_function(p.Q), expected)
    half = torch.tensor(p.text, requires_grad=True, dtype=torch.bfloat16)
    model = ZeroShotClassifier(half).fit(torch.tensor(p.X).bfloat16(), p.y.astype(object))
    assert model.score(p.Q, p.y_test) > 0.8
    with pytest.raises(InputError, match="several widths"):
        fit({name: row[: 3 + i] for i, (name, row) in enumerate(zip(NAMES, p.text))}, p)  # noqa: B905
