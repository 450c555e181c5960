"""Classifiers fitted on uploads: a real fit on an encoder of mean colours."""

import numpy as np
import pytest
import torch
from PIL import Image

from crome.errors import InputError
from crome.fewshot.encoders.preprocessing import Preprocessing
from crome.fewshot.methods.zero_shot import ZeroShotClassifier
from crome.fewshot.saving import save_classifier
from crome.serving import classifiers as module
from crome.serving.classifiers import MAX_CLASSES, MAX_FITTED, Classifiers
from crome.serving.errors import TakenError, UnknownError

WORDS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}


class Colours:
    """Pictures and words of colours in one space."""

    name, fingerprint, logit_scale = "colours", "colours-1", 10.0
    preprocessing = Preprocessing(8, False, (0.5,) * 3, (0.5,) * 3)

    def encode_images(self, pixels):
        return torch.nn.functional.normalize(pixels.mean((2, 3)), dim=1)

    def encode_texts(self, texts):
        return torch.tensor([next(v for k, v in WORDS.items() if k in text) for text in texts])


@pytest.fixture
def classifiers(monkeypatch):
    monkeypatch.setattr(module, "_load_encoder", lambda name, dtype: Colours())
    return Classifiers("colours")


def drawn(number=4):
    """Labels and pictures of a colour each, a little off."""
    rng, labels, images = np.random.default_rng(0), [], []
    for name, colour in WORDS.items():
        for _ in range(number):
            pixel = np.clip(255 * np.array(colour) + rng.normal(0, 30, 3), 0, 255).astype(np.uint8)
            labels.append(name)
            images.append(Image.fromarray(np.broadcast_to(pixel, (12, 12, 3)).copy()))
    return labels, images


@pytest.mark.parametrize("method", [None, "zero-shot", "tip-adapter"])
def test_fit_then_classify(classifiers, method):
    labels, images = drawn()
    told = classifiers.fit("colours", [f" {label}" for label in labels], images, "alice", method)
    assert told.classes == ["blue", "green", "red"]
    found = classifiers.classify("colours", images, "alice", 2)
    assert [row[0][0] for row in found] == labels
    assert all(len(row) == 2 and row[0][1] > row[1][1] for row in found)
    assert [c.name for c in classifiers.visible("alice")] == ["colours"]
    assert classifiers.visible("bob") == []
    with pytest.raises(UnknownError):
        classifiers.classify("colours", images, "bob", 1)


def test_a_file_is_asked_in_the_precision_of_its_fit(monkeypatch, tmp_path):
    loaded = []

    def load(name, dtype):
        encoder = Colours()
        encoder.dtype = dtype or "float32"
        loaded.append((name, dtype))
        return encoder

    monkeypatch.setattr(module, "_load_encoder", load)
    text = np.array([WORDS["red"], WORDS["blue"]], dtype=np.float32)
    model = ZeroShotClassifier(text, classes=[0, 1]).fit(text, np.array([0, 1]))
    for dtype in ("bfloat16", "float32"):
        extra = {"encoder": "colours", "dtype": dtype, "class_names": ["red", "blue"]}
        save_classifier(model, tmp_path / f"{dtype}.safetensors", extra)
    classifiers = Classifiers("colours")
    for dtype in ("bfloat16", "float32"):
        classifiers.load(dtype, tmp_path / f"{dtype}.safetensors")
    fitted = classifiers.fit("fitted", *drawn(), "alice", "zero-shot")
    assert [classifiers.find(n, "alice").dtype for n in ("bfloat16", "float32")] == [
        "bfloat16", "float32",
    ]  # fmt: skip
    assert fitted.dtype == "float32"
    assert loaded[:2] == [("colours", "bfloat16"), ("colours", "float32")]
    same = classifiers._encoder("colours"), classifiers._encoder("colours", "float32")
    assert same[0] is same[1]


def test_a_file_is_offered_to_everybody(classifiers, tmp_path):
    text = np.array([WORDS["red"], WORDS["blue"]], dtype=np.float32)
    model = ZeroShotClassifier(text, classes=[0, 1]).fit(text, np.array([0, 1]))
    extra = {"encoder": "colours", "fingerprint": "colours-1", "class_names": ["red", "blue"],
             "method": "zero-shot"}  # fmt: skip
    save_classifier(model, tmp_path / "c.safetensors", extra)
    classifiers.load("shared", tmp_path / "c.safetensors")
    _, images = drawn()
    for tenant in ("alice", "bob"):
        assert classifiers.classify("shared", images[:1], tenant, 1)[0][0][0] == "red"
    # One's own goes before everybody's.
    classifiers.fit("shared", *drawn(), "bob", "zero-shot")
    assert classifiers.find("shared", "bob").classes == ["blue", "green", "red"]
    assert classifiers.find("shared", "alice").classes == ["red", "blue"]
    save_classifier(model, tmp_path / "c.safetensors", extra | {"fingerprint": "colours-2"})
    with pytest.raises(InputError, match="other weights"):
        classifiers.load("other", tmp_path / "c.safetensors")


def test_a_file_saved_from_python_names_its_classes_itself(classifiers, tmp_path):
    text = np.array([WORDS["red"], WORDS["blue"]], dtype=np.float32)
    y = np.array(["warm", "cold"])
    model = ZeroShotClassifier(text, classes=y).fit(text, y)
    save_classifier(model, tmp_path / "bare.safetensors")
    with pytest.raises(InputError, match="does not say which encoder"):
        classifiers.load("bare", tmp_path / "bare.safetensors")
    save_classifier(model, tmp_path / "c.safetensors", {"encoder": "colours"})
    classifiers.load("own", tmp_path / "c.safetensors")
    _, images = drawn()
    assert classifiers.classify("own", images[-1:], "alice", 1)[0][0][0] in ("warm", "cold")
    assert sorted(classifiers.find("own", "alice").classes) == ["cold", "warm"]


def test_what_cannot_be_fitted_is_said(classifiers):
    labels, images = drawn(1)

    def fit(name="x", labels=labels, images=images, method="zero-shot", tenant="alice"):
        return classifiers.fit(name, labels, images, tenant, method)

    for settings, match in [
        ({"labels": labels[:2]}, "a label for each"),
        ({"labels": ["a"] * 3}, "1 classes"),
        ({"labels": ["a", "b", " "]}, "no name"),
        ({"labels": ["a", "b", "c" * 201]}, "more than 200"),
        ({"labels": [str(i) for i in range(MAX_CLASSES + 1)],
          "images": images[:1] * (MAX_CLASSES + 1)}, "classes; expected"),
        ({"labels": ["a"] * 1001, "images": images[:1] * 1001}, "at most 1000"),
        ({"method": "magic"}, "expected one of"),
        ({"name": "../x"}, "unfit"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=match):
            fit(**settings)
    fit()
    with pytest.raises(TakenError):
        fit()
    for number in range(MAX_FITTED - 1):
        fit(f"x{number}")
    with pytest.raises(InputError, match="kept already"):
        fit("one-more")
    fit("x1", tenant="bob")  # whose places are his own
    classifiers.remove("x")
    fit("one-more")


def test_what_was_fitted_is_there_after_a_restart(classifiers, tmp_path, caplog):
    """For those who fitted it, with the same answers; what is damaged or removed is not."""
    kept = Classifiers("colours", tmp_path / "kept")
    labels, images = drawn()
    for name, tenant in (("mine", "alice"), ("gone", "alice"), ("open", "")):
        kept.fit(name, labels, images, tenant)
    expected = kept.classify("mine", images, "alice", 3)
    assert kept.remove_own("gone", "alice")
    (tmp_path / "kept" / "alice" / "broken.safetensors").write_bytes(b"nothing")
    again = Classifiers("colours", tmp_path / "kept")
    again.load_kept()
    assert [c.name for c in again.visible("alice")] == ["mine"]
    assert [c.name for c in again.visible("")] == ["open"]
    assert again.classify("mine", images, "alice", 3) == expected
    assert again.find("mine", "alice").about == kept.find("mine", "alice").about
    assert "broken.safetensors is not offered" in caplog.text
    again.remove("mine")
    assert not list((tmp_path / "kept").glob("*/mine.*"))
