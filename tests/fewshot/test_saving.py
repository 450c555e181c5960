"""Saved classifiers predict the same, hold no pickle, and refuse what they are not."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from crome.errors import InputError, JobError
from crome.fewshot.methods import METHODS
from crome.fewshot.saving import load_classifier, save_classifier


@pytest.mark.parametrize("method", METHODS)
def test_loaded_equals_saved(problem, tmp_path, method):
    p, names = problem, np.array(["d", "b", "a", "c"])
    model = METHODS[method](p.text, classes=names).fit(p.X, names[p.y])
    save_classifier(model, tmp_path / "m.safetensors", {"encoder": "bridge"})
    loaded, extra = load_classifier(tmp_path / "m.safetensors")
    assert extra == {"encoder": "bridge"}
    assert type(loaded) is type(model)
    np.testing.assert_array_equal(loaded.predict_proba(p.Q), model.predict_proba(p.Q))
    np.testing.assert_array_equal(loaded.predict(p.Q), model.predict(p.Q))


def test_loaded_can_grow(problem, tmp_path):
    p = problem
    model = METHODS["xmadapter"](p.text, classes=range(4)).fit(p.X[p.y != 1], p.y[p.y != 1])
    save_classifier(model, tmp_path / "m.safetensors")
    loaded, _ = load_classifier(tmp_path / "m.safetensors")
    for one in (model, loaded):
        one.add_images(p.X[p.y == 1], p.y[p.y == 1])
    np.testing.assert_array_equal(loaded.predict_proba(p.Q), model.predict_proba(p.Q))


def test_other_files_are_refused(tmp_path):
    save_file({"x": np.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    about = {"crome": json.dumps({"format": "crome-fewshot-99"})}
    save_file({"x": np.zeros(1)}, tmp_path / "newer.safetensors", about)
    for name, message in (
        ("other", "has the format None"),
        ("newer", "has the format 'crome-fewshot-99', expected"),
        ("text", "cannot read a classifier"),
        ("absent", "cannot read a classifier"),
    ):
        with pytest.raises(InputError, match=message):
            load_classifier(tmp_path / f"{name}.safetensors")


def test_a_folder_that_cannot_be_written_is_named(problem, tmp_path):
    p = problem
    (tmp_path / "file").touch()
    with pytest.raises(JobError, match="cannot write"):
        save_classifier(METHODS["gda"](p.text).fit(p.X, p.y), tmp_path / "file" / "m.safetensors")


def test_class_features_of_other_kinds_are_saved(problem, tmp_path):
    import pandas as pd
    import torch

    for text in (pd.DataFrame(problem.text), torch.from_numpy(problem.text)):
        model = METHODS["gda"](text).fit(problem.X, problem.y)
        save_classifier(model, tmp_path / "c.safetensors")
        loaded, _ = load_classifier(tmp_path / "c.safetensors")
        np.testing.assert_array_equal(
            loaded.predict_proba(problem.Q), model.predict_proba(problem.Q)
        )
