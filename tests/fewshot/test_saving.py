"""Saved classifiers predict the same, hold no pickle, and refuse what they are not."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
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


@pytest.mark.parametrize("method", METHODS)
def test_files_of_version_0_1_predict_as_they_did(method):
    folder = Path(__file__).parent / "saved"
    if method == "tip-adapter":
        method = "tip-adapter-f"  # the same class, trained
    model, extra = load_classifier(folder / f"{method}.safetensors")
    with np.load(folder / "expected.npz") as expected:
        found = model.predict_proba(expected["Q"])
        np.testing.assert_allclose(found, expected[method], atol=2e-5)
    assert extra["class_names"] == ["a", "b", "c", "d"]
    with pytest.raises(InputError, match="by a version without familiarity; fit again"):
        model.familiarity(np.zeros((1, 16), np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classifier": "search"}, "the classifier 'search' is none of APEClassifier, GDA"),
        ({"classifier": "load_classifier"}, "the classifier 'load_classifier' is none of"),
        ({"classifier": "ImageFeatures"}, "the classifier 'ImageFeatures' is none of"),
        ({"classifier": ["GDAClassifier"]}, "TypeError"),
        ({"classifier": None}, "the classifier None is none of"),
        ({"params": None}, "TypeError"),
        ({"params": {"unknown": 1}}, "unexpected keyword argument 'unknown'"),
        ({"state": []}, "no attribute 'classes_'|has no attribute"),
        ({"state": {"__class__": 1}}, "'__class__' is no part of a fitted classifier"),
        ({"state": {"predict": 1}}, "'predict' is no part of a fitted classifier"),
        ({"extra": 3}, "TypeError"),
    ],
)
def test_metadata_that_is_no_classifiers_is_refused(problem, tmp_path, change, message):
    p, file = problem, tmp_path / "m.safetensors"
    save_classifier(METHODS["gda"](p.text).fit(p.X, p.y), file)
    with safe_open(file, "numpy") as stored:
        about = json.loads(stored.metadata()["crome"])
        arrays = {key: stored.get_tensor(key) for key in stored.keys()}
    save_file({} if "state" in change else arrays, file, {"crome": json.dumps(about | change)})
    with pytest.raises(InputError, match="is no classifier that this version knows") as told:
        load_classifier(file)
    assert re.search(message, str(told.value))


@pytest.mark.parametrize("missing", ["classifier", "params", "state", "extra"])
def test_missing_metadata_is_refused(problem, tmp_path, missing):
    p, file = problem, tmp_path / "m.safetensors"
    save_classifier(METHODS["gda"](p.text).fit(p.X, p.y), file)
    with safe_open(file, "numpy") as stored:
        about = json.loads(stored.metadata()["crome"])
        arrays = {key: stored.get_tensor(key) for key in stored.keys()}
    del about[missing]
    for metadata in (json.dumps(about), "nonsense", "[]", "3"):
        save_file(arrays, file, {"crome": metadata})
        with pytest.raises(InputError, match=r"m\.safetensors"):
            load_classifier(file)


def test_settings_of_every_kind_are_saved(problem, tmp_path):
    p, file = problem, tmp_path / "m.safetensors"
    for state in (np.int64(3), np.random.RandomState(0), None):
        model = METHODS["xmadapter"](p.text, random_state=state, betas=np.array([2.0, 4.0]))
        save_classifier(model.fit(p.X, p.y), file, {"rows": np.arange(3)})
        loaded, extra = load_classifier(file)
        np.testing.assert_array_equal(loaded.predict_proba(p.Q), model.predict_proba(p.Q))
        assert loaded.seed_ == model.seed_
        assert extra["rows"].tolist() == [0, 1, 2]


def test_a_failed_save_leaves_the_file_before(problem, tmp_path, monkeypatch):
    p, file = problem, tmp_path / "m.safetensors"
    model = METHODS["gda"](p.text).fit(p.X, p.y)
    save_classifier(model, file)
    before = file.read_bytes()

    def fail(*arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr("crome.fewshot.saving.save_file", fail)
    with pytest.raises(JobError, match="no space left"):
        save_classifier(model, file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_weights_of_images_are_saved(problem, tmp_path):
    p, file = problem, tmp_path / "m.safetensors"
    for name in METHODS:
        model = METHODS[name](p.text).fit(p.X, p.y, np.linspace(0.5, 2, len(p.y)))
        save_classifier(model, file)
        loaded, _ = load_classifier(file)
        np.testing.assert_array_equal(loaded.predict_proba(p.Q), model.predict_proba(p.Q))


@pytest.mark.parametrize("part", ["weights_", "classes_", "seen_", "text_", "n_features_in_"])
def test_files_with_a_part_missing_or_of_another_shape_are_refused(problem, tmp_path, part):
    p, file = problem, tmp_path / "m.safetensors"
    model = METHODS["gda"](p.text).fit(p.X, p.y)
    value = getattr(model, part)
    for changed in (None, np.zeros((3, 7)) if part != "n_features_in_" else 10**15):
        if changed is None:
            delattr(model, part)
        else:
            setattr(model, part, changed)
        save_classifier(model, file)
        with pytest.raises(InputError, match="is no classifier that this version knows"):
            load_classifier(file)
        setattr(model, part, value)
    save_classifier(model, file)
    load_classifier(file)
