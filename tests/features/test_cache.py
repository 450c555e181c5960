"""Kept features: the same losses and answers as live, for every kind of row, or a refusal."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crome.data.collator import Collator
from crome.errors import InputError
from crome.features import names, verbs
from crome.features.cache import VisualCache
from crome.features.names import picture_key
from crome.features.verbs import Caching, all_views, enable, fill, prepare
from crome.images import View
from crome.model.answering import answer, rank
from crome.model.lengths import Room
from crome.rows import Row


@pytest.fixture
def files(pictures, tmp_path):
    paths = []
    for number, picture in enumerate(pictures):
        paths.append(tmp_path / f"{number}.png")
        picture.save(paths[-1])
    return paths


@pytest.fixture
def data(files):
    return [
        Row((files[0],), "What is the colour?", "blue", "a"),
        Row((files[0],), "How many triangles are there?", "12", "b"),
        Row((files[1],), "Is there one star?", "yes, there is", "c"),
        Row((), "Is there a circle?", "no", "d"),
        Row((files[2], files[0]), "How?", "2", "e"),
    ]


def cached(pair, rows, folder, **settings):
    """Lets a pair keep features of rows."""
    pair.processor = enable(
        pair.model.requires_grad_(False), pair.processor, Caching(folder=folder, **settings)
    )
    prepare(pair.model, pair.processor, rows)


def losses(pair, rows):
    return pair.model(**pair.placed(dict(Collator(pair.processor, Room(None))(rows)))).token_losses


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("language", "settings", "questions"),
    [
        ("llama", {}, True),
        ("llama", {}, False),
        ("llama", {"branches": ["query"]}, True),
        ("llama", {"branches": ["patch"]}, True),
        ("llama", {"patch_feature_layer": -1, "drop_prefix_tokens": False}, False),
        ("mistral", {}, True),
        ("t5", {}, True),
    ],
)
def test_cached_and_live_are_equal(build, data, tmp_path, language, settings, questions):
    """Losses, answers and rankings; a batch without pictures on disk goes live and is equal too."""
    pair = build(language=language, **settings)
    options = [["blue", "a red star"]] * len(data)
    live = [losses(pair, data[:3]), losses(pair, data)]
    said = answer(pair.model, pair.processor, data, max_new_tokens=5)
    ranked = rank(pair.model, pair.processor, data, options)
    pair.processor = enable(pair.model, pair.processor, Caching(folder=tmp_path / "c"))
    if "query" in pair.model.config.branches:
        pair.model.qformer.requires_grad_(not questions)
        pair.model.query_tokens.requires_grad_(False)
    prepare(pair.model, pair.processor, data)
    batch = Collator(pair.processor, Room(None))(data)
    assert "pixel_values" not in batch
    pair.model.vision_model.register_forward_hook(lambda *_: pytest.fail("the encoder ran"))
    if questions and "query" in pair.model.config.branches:
        pair.model.qformer.register_forward_hook(lambda *_: pytest.fail("the Q-Former ran"))
    # Computed in other batches: fp32 sums in another order.
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(losses(pair, data[:3]), live[0], **close)
    torch.testing.assert_close(losses(pair, data), live[1], **close)
    assert answer(pair.model, pair.processor, data, max_new_tokens=5) == said
    for mine, theirs in zip(rank(pair.model, pair.processor, data, options), ranked, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


def test_a_batch_with_something_new_goes_live(build, data, files, tmp_path):
    pair = build()
    cached(pair, data, tmp_path / "c")
    for new in (
        replace(data[0], images=(files[3],)),
        replace(data[0], question="Another question?"),
        replace(data[0], images=(View(files[0], 1),)),
    ):
        assert "pixel_values" in Collator(pair.processor, Room(None))([*data, new])


def test_the_same_bytes_elsewhere_are_the_same_picture(build, data, files, tmp_path):
    copy = tmp_path / "copy.png"
    copy.write_bytes(files[0].read_bytes())
    assert picture_key(copy) == picture_key(files[0]) != picture_key(files[1])
    assert picture_key(View(copy, 2)) != picture_key(View(copy, 1))
    pair = build()
    cached(pair, data, tmp_path / "c")
    assert "features" in Collator(pair.processor, Room(None))([replace(data[0], images=(copy,))])


def test_pictures_with_equal_indices_and_other_palettes_are_two():
    indices = np.arange(16, dtype=np.uint8).reshape(4, 4)
    red, blue = Image.fromarray(indices), Image.fromarray(indices)
    red.putpalette([n for i in range(16) for n in (i * 16, 0, 0)])
    blue.putpalette([n for i in range(16) for n in (0, 0, i * 16)])
    assert red.tobytes() == blue.tobytes()
    assert picture_key(red) != picture_key(blue)
    clear = red.copy()
    clear.info["transparency"] = 3
    assert picture_key(clear) != picture_key(red)
    assert picture_key(red) == picture_key(red.convert("RGB"))  # the same to an encoder


def test_pictures_in_memory_are_named_by_their_pixels(build, data, pictures, tmp_path):
    pair = build()
    shown = [replace(row, images=(pictures[0].copy(),)) for row in data[:3]]
    cached(pair, shown, tmp_path / "c")
    assert len(pair.processor.cache.images) == 1
    assert Collator(pair.processor, Room(None))(shown)["image_index"].tolist() == [[0], [0], [0]]


def test_a_second_filling_computes_only_what_is_new(build, data, tmp_path):
    pair, passes = build(), []
    pair.model.vision_model.register_forward_hook(
        lambda module, args, kwargs, out: passes.append(len(kwargs["pixel_values"])),
        with_kwargs=True,
    )
    cache = VisualCache(pair.model, pair.processor, tmp_path)
    shown = [row for row in data if row.images]
    assert fill(cache, pair.model, pair.processor, shown) == 4
    assert passes == [3]
    assert fill(cache, pair.model, pair.processor, shown) == 0
    asked = [*shown, replace(shown[0], question="Another question?")]
    assert fill(cache, pair.model, pair.processor, asked) == 1
    assert passes == [3]  # its picture was there
    assert (len(cache.images), len(cache.questions)) == (3, 6)


def test_another_encoder_or_preprocessing_or_qformer_has_its_own_folder(build, tmp_path):
    pair = build()
    folders = lambda: {  # noqa: E731
        store.folder
        for store in vars(VisualCache(pair.model, pair.processor, tmp_path)).values()
        if hasattr(store, "folder")
    }
    before = folders()
    assert len(before) == 2
    with torch.no_grad():
        pair.model.query_tokens += 1
    assert len(folders() & before) == 1  # pictures do not depend on it
    pair.processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    assert not folders() & before
    pair.processor.image_processor.image_mean = build().processor.image_processor.image_mean
    with torch.no_grad():
        next(pair.model.vision_model.parameters()).add_(1)
    assert not folders() & before


@pytest.mark.parametrize(
    ("which", "name"),
    [("images", "queries"), ("images", "patches"), ("questions", "outputs")],
)
def test_wrong_features_are_found_by_the_live_check(build, data, tmp_path, which, name):
    """Each kind of what is kept, also what training does not read while questions are kept."""
    pair = build()
    cache = VisualCache(pair.model, pair.processor, tmp_path)
    fill(cache, pair.model, pair.processor, [row for row in data if row.images])
    assert cache.verify(pair.model, pair.processor, data) == 4
    store = getattr(cache, which)
    (shard,) = store._read
    others = store.rows(store.keys()[1:] + store.keys()[:1])[name]  # every row another's
    store._sums[shard] = {}  # as if they had been computed so
    store._shard(shard)[name].copy_(others)
    with pytest.raises(InputError, match=f"{store.folder} does not hold .*: {name} of row a"):
        cache.verify(pair.model, pair.processor, data)


def test_the_live_check_allows_what_another_batch_rounds_to(build, data, tmp_path):
    """The Q-Former computes in float32, from features of an encoder in bfloat16."""
    pair = build()
    pair.model.vision_model.bfloat16()
    cache = VisualCache(pair.model, pair.processor, tmp_path)
    shown = [row for row in data if row.images]
    fill(cache, pair.model, pair.processor, shown)
    for store in (cache.images, cache.questions):
        (shard,) = store._read
        store._sums[shard] = {}
        for tensor in store._shard(shard).values():
            tensor.mul_(1.004)  # one unit in the last place of bfloat16
    assert cache.verify(pair.model, pair.processor, data) == 4


def test_a_cache_that_is_too_small_is_said_and_done_without(build, data, tmp_path, capsys):
    pair = build()
    cached(pair, data, tmp_path / "c", limit_gb=1e-6)
    assert pair.processor.cache is None
    assert "over its limit of" in " ".join(capsys.readouterr().err.split())
    assert "pixel_values" in Collator(pair.processor, Room(None))(data)
    assert not list(tmp_path.glob("c/*/*.safetensors"))


def test_views_are_cached_each(build, data, tmp_path):
    pair = build()
    shown = [row for row in all_views(data, 2) if row.images]
    assert len(shown) == 8
    live = losses(pair, shown)
    cached(pair, shown, tmp_path / "c")
    assert len(pair.processor.cache.images) == 6
    torch.testing.assert_close(losses(pair, shown), live, rtol=1e-5, atol=1e-5)
    whole = losses(pair, [row for row in data if row.images])
    assert not torch.allclose(whole, live[: len(whole)])


def test_loader_processes_read_the_cache(build, data, tmp_path):
    pair = build()
    cached(pair, data, tmp_path / "c")
    loader = torch.utils.data.DataLoader(
        data, batch_size=3, num_workers=1, collate_fn=Collator(pair.processor, Room(None))
    )
    for batch, start in zip(loader, (0, 3), strict=True):
        expected = Collator(pair.processor, Room(None))(data[start : start + 3])
        assert torch.equal(batch["features"][2], expected["features"][2])


def test_a_picture_that_cannot_be_read_is_named_or_passed_over(build, data, files, tmp_path):
    pair = build()
    pair.processor = enable(
        pair.model.requires_grad_(False), pair.processor, Caching(folder=tmp_path / "c")
    )
    files[1].write_bytes(b"no picture")
    gone = replace(data[0], images=(tmp_path / "gone.png",))
    prepare(pair.model, pair.processor, [*data, gone], skip_unreadable=True)
    assert len(pair.processor.cache.images) == 2
    for rows, name in ((data, "1.png"), ([gone], "gone.png")):
        with pytest.raises(InputError, match=name):
            prepare(pair.model, pair.processor, rows)


def test_an_error_in_a_loader_process_is_one_line(build, data, files, tmp_path, monkeypatch):
    pair = build()
    monkeypatch.setattr(verbs, "load", lambda *_, **__: (pair.model, pair.processor))
    monkeypatch.setattr(verbs, "read_rows", lambda *_, **__: data)
    files[1].write_bytes(b"no picture")  # after the rows were read
    with pytest.raises(InputError, match=r"1\.png") as error:
        verbs.build(tmp_path / "rows.jsonl", folder=tmp_path / "c", workers=1)
    assert len(str(error.value).splitlines()) == 1
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize("change", ["trains", "trained"])
def test_what_a_changing_qformer_reads_is_not_kept(build, data, tmp_path, change):
    pair = build()
    before = losses(pair, data)
    cached(pair, data, tmp_path / "c")
    assert pair.processor.cache.questions is not None
    if change == "trains":
        pair.model.query_tokens.requires_grad_(True)
    else:
        torch.nn.init.normal_(pair.model.query_tokens)
    prepare(pair.model, pair.processor, data)
    assert pair.processor.cache.questions is None
    batch = Collator(pair.processor, Room(None))(data)
    assert batch["features"][2] is None
    same = torch.allclose(losses(pair, data), before, rtol=1e-5, atol=1e-5)
    assert same == (change == "trains")


def test_the_users_cache_folder(monkeypatch, tmp_path):
    assert names.default_folder() == Path(os.environ["CROME_FEATURES"])
    monkeypatch.delenv("CROME_FEATURES")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert names.default_folder() == tmp_path / "crome" / "features"
