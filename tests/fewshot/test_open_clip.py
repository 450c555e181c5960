"""Pictures pass through open_clip's own transform; a small stand-in has its interface."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from crome.fewshot import class_features, image_features, load_encoder, view_features

SIZE = 12


class Model(torch.nn.Module):
    """Random weights with the attributes that open_clip's models have."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image = torch.nn.Linear(3 * SIZE * SIZE, 8)
        self.text = torch.nn.Embedding(100, 8)
        self.logit_scale = torch.nn.Parameter(torch.tensor(np.log(50.0), dtype=torch.float32))

    def encode_image(self, pixels):
        return self.image(pixels.flatten(1))

    def encode_text(self, tokens):
        return self.text(tokens).mean(1)


def transform_of(settings):
    """What open_clip does in its three ways of resizing, with Pillow alone."""

    def transform(image):
        size, mode = settings["size"], settings["resize_mode"]
        resample = Image.Resampling[settings["interpolation"].upper()]
        if mode == "squash":
            image = image.resize((size, size), resample)
        elif min(image.size) != size or mode == "longest":
            scale = size / (min if mode == "shortest" else max)(image.size)
            image = image.resize([max(1, round(side * scale)) for side in image.size], resample)
        if mode == "shortest":
            left, top = ((side - size) // 2 for side in image.size)
            image = image.crop((left, top, left + size, top + size))
        padded = Image.new("RGB", (size, size))
        padded.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
        pixels = torch.from_numpy(np.asarray(padded).copy()).permute(2, 0, 1) / 255
        mean, std = (torch.tensor(settings[name]).view(3, 1, 1) for name in ("mean", "std"))
        return (pixels - mean) / std

    return transform


def tokenize(texts):
    return torch.tensor([[len(text) % 100, 7] for text in texts])


@pytest.fixture
def load(monkeypatch):
    def prepare(**changes):
        settings = {
            "size": SIZE, "mode": "RGB", "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4),
            "interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0,
        } | changes  # fmt: skip
        stand_in = SimpleNamespace(
            __spec__=SimpleNamespace(),
            create_model_and_transforms=lambda name, pretrained: (
                Model(), None, transform_of(settings),
            ),
            get_tokenizer=lambda name: tokenize,
            get_model_preprocess_cfg=lambda model: settings,
        )  # fmt: skip
        monkeypatch.setitem(sys.modules, "open_clip", stand_in)
        monkeypatch.setattr("crome.fewshot.encoders.open_clip.find_spec", lambda name: stand_in)
        return load_encoder("open_clip:RN50/openai"), transform_of(settings)

    return prepare


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pictures_pass_through_the_transform_of_the_model(load, mode, interpolation):
    towers, transform = load(resize_mode=mode, interpolation=interpolation)
    rng = np.random.default_rng(0)
    for size in ((30, 18), (18, 40), (12, 12), (5, 9)):
        image = Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), np.uint8))
        with torch.inference_mode():
            own = towers.model.encode_image(transform(image)[None])
        np.testing.assert_allclose(image_features(towers, image), own, atol=1e-6)
        assert view_features(towers, image, 2).shape == (1, 2, 8)


def test_only_what_was_read_rightly_before_keeps_its_name(load):
    usual, _ = load()
    squashed, _ = load(resize_mode="squash")
    assert len(usual.formerly) == 1
    assert squashed.formerly == ()
    assert squashed.fingerprint != usual.fingerprint
    assert usual.logit_scale == pytest.approx(50)
    assert class_features(usual, ["a", "bb"]).shape == (2, 8)
