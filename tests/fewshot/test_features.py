"""Features of pictures as people have them, kept on disk, and of class names."""

import pickle
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

from crome.errors import InputError, JobError
from crome.fewshot import (
    ImageFeatures,
    XMAdapterClassifier,
    class_features,
    image_features,
    load_encoder,
    view_features,
)
from crome.fewshot.encoders.preprocessing import Preprocessing
from crome.fewshot.pictures import content_hash, picture_hash


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


def test_each_content_is_encoded_once(photos, tmp_path):
    towers, files = Counting(), sorted(photos.rglob("*.png"))[:5]
    copy = tmp_path / "copy.png"
    copy.write_bytes(files[0].read_bytes())
    first = image_features(towers, [*files, copy], cache_dir=tmp_path / "c")
    assert towers.seen == 5
    again = image_features(Counting(), [copy, files[1]], cache_dir=tmp_path / "c")
    np.testing.assert_array_equal(again, first[[5, 1]])
    towers.fingerprint = "counting-2"  # other weights: nothing of the old is used
    image_features(towers, files, cache_dir=tmp_path / "c")
    assert towers.seen == 10


def test_views_depend_on_the_content_alone(photos, tmp_path):
    files = sorted(photos.rglob("*.png"))[:4]
    one = view_features(Counting(), files, 3, cache_dir=tmp_path / "a")
    other = view_features(Counting(), files[::-1], 3, cache_dir=tmp_path / "b")
    np.testing.assert_array_equal(one, other[::-1])
    assert len(np.unique(one[0].round(6), axis=0)) == 3


def test_default_cache_is_the_users(monkeypatch, tmp_path, photos):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    image_features(Counting(), [photos / "red" / "0.png"])
    digest = content_hash(photos / "red" / "0.png")
    assert (tmp_path / "mine" / "crome" / "fewshot" / "counting-1" / f"{digest}.npy").is_file()


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
    with pytest.raises(JobError, match="could not write"):
        image_features(Counting(), [photos / "red" / "0.png"], cache_dir=tmp_path / "file")


def test_every_kind_of_picture_gives_the_same_features(photos, tmp_path):
    files = sorted((photos / "red").glob("*.png"))[:3]
    expected = image_features(Counting(), files)
    opened = [Image.open(file).convert("RGB") for file in files]
    arrays = [np.asarray(picture) for picture in opened]
    for images in (
        [str(file) for file in files],
        tuple(files),
        np.array([str(file) for file in files]),
        np.array(files, object).reshape(-1, 1),
        pd.Series([str(file) for file in files]),
        pd.DataFrame({"image": files}),
        (file for file in files),
        opened,
        arrays,
        np.stack(arrays),
        map(Image.fromarray, arrays),
        [files[0], opened[1], arrays[2]],
    ):
        np.testing.assert_allclose(image_features(Counting(), images), expected, rtol=1e-6)


def test_one_picture_is_one_row(photos):
    file = photos / "red" / "0.png"
    picture = Image.open(file).convert("RGB")
    expected = image_features(Counting(), [file])
    for image in (file, str(file), picture, np.asarray(picture)):
        found = image_features(Counting(), image)
        assert found.shape == (1, 3)
        np.testing.assert_allclose(found, expected)
    grey = np.asarray(picture.convert("L"))
    assert image_features(Counting(), grey).shape == (1, 3)
    assert image_features(Counting(), grey[..., None]).shape == (1, 3)
    assert class_features(Counting(), "cat").shape == (1, 3)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([3], "found int in place of a picture; expected a path, a picture of Pillow, or an"),
        ([None], "found NoneType in place of a picture"),
        (7, "found int in place of a picture"),
        (b"bytes", "found bytes in place of a picture"),
        ({"a": 1}, "found dict in place of a picture"),
        ([""], "a path is empty"),
        ([np.zeros((4, 4, 3))], r"an array of float64, \(4, 4, 3\)"),
        ([np.zeros((4, 4, 7), np.uint8)], r"an array of uint8, \(4, 4, 7\)"),
        ([np.zeros((0, 4, 3), np.uint8)], r"an array of uint8, \(0, 4, 3\)"),
        ([], "no images to encode"),
        (iter(()), "no images to encode"),
    ],
)
def test_what_is_no_picture_is_named(images, message):
    with pytest.raises(InputError, match=message):
        image_features(Counting(), images)


def test_pictures_in_memory_are_not_kept_on_disk(photos, tmp_path):
    picture = Image.open(photos / "red" / "0.png").convert("RGB")
    towers = Counting()
    for _ in range(2):
        image_features(towers, [picture, picture], cache_dir=tmp_path / "c")
    assert towers.seen == 2  # once a call: equal pictures of a call are one
    assert not (tmp_path / "c").exists()


def test_every_unreadable_picture_is_named_at_once(photos, tmp_path):
    bad = []
    for name in ("a", "b"):
        bad.append(tmp_path / f"{name}.png")
        bad[-1].write_bytes(b"\x89PNG\r\n broken")
    files = [bad[0], photos / "red" / "0.png", bad[1], tmp_path / "gone.png"]
    with pytest.raises(InputError, match="3 pictures cannot be read") as told:
        image_features(Counting(), files)
    assert all(name in str(told.value) for name in ("a.png", "b.png", "gone.png"))
    towers = Counting()
    image_features(towers, files[1])
    assert towers.seen == 0  # the good one was encoded and kept


def test_a_spoilt_file_of_features_is_made_again(photos, tmp_path):
    file = photos / "red" / "0.png"
    first = image_features(Counting(), file, cache_dir=tmp_path)
    (kept,) = tmp_path.rglob("*.npy")
    whole = kept.read_bytes()
    flipped = whole[:-12] + bytes([whole[-12] ^ 1]) + whole[-11:]
    contents = [b"", whole[:-5], whole[:-9], whole[:60], flipped, whole[:-20] + bytes(20)]
    contents += [b"nonsense", b"PK\x03\x04 no zip", saved(np.ones((1, 3))), saved(np.float32(1))]
    contents += [saved(np.full((1, 3), np.nan, np.float32)), whole.replace(b"(1, 3)", b"(9, 9)")]
    for content in contents:
        kept.write_bytes(content)
        towers = Counting()
        np.testing.assert_array_equal(image_features(towers, file, cache_dir=tmp_path), first)
        assert towers.seen == 1
        assert kept.read_bytes() == whole
    kept.write_bytes(saved(first))  # of an earlier version, without a checksum
    towers = Counting()
    np.testing.assert_array_equal(image_features(towers, file, cache_dir=tmp_path), first)
    assert towers.seen == 0


def saved(array):
    file = BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_pictures_in_memory_differ_by_what_they_show():
    """Palettes and orientations are part of a picture, and not of its pixels' numbers."""
    indices = Image.new("P", (8, 6), 1)
    coloured = []
    for colour in ((255, 0, 0), (0, 0, 255)):
        picture = indices.copy()
        picture.putpalette([0, 0, 0, *colour])
        coloured.append(picture)
    towers = Counting()
    found = image_features(towers, coloured)
    assert towers.seen == 2
    assert not np.allclose(found[0], found[1])
    np.testing.assert_allclose(found, image_features(towers, [p.convert("RGB") for p in coloured]))
    turned = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8) * 5).convert("RGB")
    plain = turned.copy()
    turned.getexif()[0x0112] = 6
    assert picture_hash(turned) != picture_hash(plain)


def test_a_replaced_file_is_another_picture(photos, tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes((photos / "red" / "0.png").read_bytes())
    first = image_features(Counting(), file)
    file.write_bytes((photos / "green" / "0.png").read_bytes())
    assert not np.allclose(image_features(Counting(), file), first)


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"batch_size": 1.5}])
def test_batch_sizes_are_checked(photos, settings):
    with pytest.raises(InputError, match="batch_size is"):
        image_features(Counting(), photos / "red" / "0.png", **settings)
    with pytest.raises(InputError, match="views is 0"):
        view_features(Counting(), photos / "red" / "0.png", 0)


def test_batches_do_not_change_features(photos):
    files = sorted(photos.rglob("*.png"))
    pictures = [Image.open(file).convert("RGB") for file in files]
    expected = image_features(Counting(), files)
    for size in (1, 3, 100):
        found = image_features(Counting(), pictures, batch_size=size)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_features_of_two_encoders_are_not_compared(photos, clip, siglip):
    files = sorted(photos.rglob("*.png"))
    y = [file.parent.name for file in files]
    one, other = load_encoder(clip), load_encoder(siglip)
    X, text = image_features(one, files), class_features(other, sorted(set(y)))
    assert X.encoder == one.fingerprint
    assert X[:2].encoder == one.fingerprint
    assert not hasattr(X * 2, "encoder")  # what is computed is a plain array
    assert type(X.mean()) is np.float32
    with pytest.raises(InputError, match=r"are of different encoders, clip\S* and siglip"):
        XMAdapterClassifier(text).fit(X, y)
    with pytest.raises(InputError, match="of different encoders"):
        XMAdapterClassifier(class_features(one, sorted(set(y)))).fit(
            X, y, X_val=image_features(other, files), y_val=y
        )
    XMAdapterClassifier(class_features(one, sorted(set(y)))).fit(X, y)


def test_a_pipeline_learns_from_files(photos, clip):
    files = [str(file) for file in sorted(photos.rglob("*.png"))]
    y = [file.split("/")[-2] for file in files]
    encoder = load_encoder(clip)
    text = class_features(encoder, sorted(set(y)))
    pipeline = make_pipeline(ImageFeatures(encoder), XMAdapterClassifier(text))
    assert pipeline.fit(files[::2], y[::2]).score(files[1::2], y[1::2]) == 1.0
    assert cross_val_score(pipeline, files, y, cv=3).min() == 1.0
    named = clone(ImageFeatures(clip, device="cpu", dtype="float32"))
    np.testing.assert_array_equal(named.fit_transform(files[:2]), encoder_rows(encoder, files[:2]))
    again = pickle.loads(pickle.dumps(named))
    assert not hasattr(again, "encoder_")  # weights are loaded, not pickled
    np.testing.assert_array_equal(again.transform(files[:2]), encoder_rows(encoder, files[:2]))
    assert named.get_feature_names_out()[0] == "imagefeatures0"


def encoder_rows(encoder, files):
    return np.asarray(image_features(encoder, files))


def test_class_features_without_names_are_refused():
    with pytest.raises(InputError, match="no class names"):
        class_features(Counting(), [])
    with pytest.raises(InputError, match="no templates"):
        class_features(Counting(), ["cat"], [])
    np.testing.assert_array_equal(
        class_features(Counting(), ["cat"], "a {}"), class_features(Counting(), ["cat"], ["a {}"])
    )
