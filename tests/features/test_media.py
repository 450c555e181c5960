"""Kept media of attached models: as live, without pixels, by set, and refused when wrong."""

import pytest
import torch
from PIL import Image

from crome.attached import AttachedProcessor
from crome.attached.keeping import SMALL
from crome.errors import InputError
from crome.features.media import CachedMediaProcessor, MediaCache, media_key
from crome.features.verbs import Caching, all_views, enable, fill, prepare
from crome.rows import Row

FAMILIES = ["llava", "qwen3_vl", "smolvlm", "llava_next", "gemma3"]


@pytest.fixture
def shown(tmp_path):
    """Rows on two pictures of different sizes, one row on both, and one on none."""
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    Image.effect_noise((60, 44), 80).convert("RGB").save(paths[0])
    Image.effect_noise((110, 60), 80).convert("RGB").save(paths[1])
    return [
        Row((paths[0],), "what is it?", "red", "1"), Row((paths[1],), "is it red?", "no", "2"),
        Row((paths[0],), "why?", "so", "3"), Row(tuple(paths), "which?", "both", "4"),
        Row((), "hello", "you", "5"),
    ]  # fmt: skip


@pytest.fixture
def one(case, request):
    made = case(getattr(request, "param", "llava"))
    made.draw()
    return made


@pytest.mark.parametrize("one", FAMILIES, indirect=True)
def test_kept_media_are_as_live_and_come_without_pixels(one, shown, tmp_path):
    cached = enable(one.model, one.processor, Caching(folder=tmp_path / "kept"))
    assert isinstance(cached, CachedMediaProcessor)
    prepare(one.model, cached, shown)
    batch = cached.encode(shown, answers=True)
    live = one.processor.encode(shown, answers=True)
    assert all(x.numel() <= SMALL for media in batch["media"] for x in media.values())
    assert torch.equal(batch["input_ids"], live["input_ids"])
    assert batch["media_index"].tolist() == [0, 1, 0, 2, -1]
    with torch.no_grad():
        found, expected = one.model(**batch), one.model(**live)
    assert torch.equal(found.token_losses, expected.token_losses)


def test_views_of_pictures_are_kept_each(one, shown, tmp_path):
    viewed = [row for row in all_views(shown[:2], 2) if row.images]
    cached = enable(one.model, one.processor, Caching(folder=tmp_path / "kept"))
    prepare(one.model, cached, viewed)
    assert len(cached.cache) == len(viewed) == 4
    batch = cached.encode(viewed, answers=True)
    live = one.processor.encode(viewed, answers=True)
    with torch.no_grad():
        assert torch.equal(one.model(**batch).token_losses, one.model(**live).token_losses)


def test_a_batch_that_is_kept_in_part_is_as_live(one, shown, tmp_path):
    cache = MediaCache(one.model, one.processor, tmp_path / "kept")
    fill(cache, one.model, one.processor, shown[:1])
    assert len(cache) == 1
    batch = CachedMediaProcessor(one.processor, cache).encode(shown, answers=True)
    assert [f is None for f in batch["features"]] == [False, True, True]
    live = one.processor.encode(shown, answers=True)
    with torch.no_grad():
        assert torch.equal(one.model(**batch).token_losses, one.model(**live).token_losses)


def test_answers_are_the_same_from_kept_media(one, shown, tmp_path):
    cached = enable(one.model, one.processor, Caching(folder=tmp_path / "kept"))
    prepare(one.model, cached, shown)
    settings = {"max_new_tokens": 4, "do_sample": False, **one.processor.generation_kwargs}
    found = one.model.generate(**cached.encode(shown), **settings)
    assert torch.equal(found, one.model.generate(**one.processor.encode(shown), **settings))


def test_what_is_there_is_not_computed_again(one, shown, tmp_path):
    cache = MediaCache(one.model, one.processor, tmp_path / "kept")
    assert fill(cache, one.model, one.processor, shown) == 3
    assert fill(cache, one.model, one.processor, shown) == 0
    again = MediaCache(one.model, one.processor, tmp_path / "kept")
    assert len(again) == 3
    assert again.verify(one.model, one.processor, shown, 3) == 3


def test_other_features_than_now_are_refused(one, shown, tmp_path):
    cache = MediaCache(one.model, one.processor, tmp_path / "kept")
    fill(cache, one.model, one.processor, shown)
    weight = next(p for n, p in one.vlm.named_parameters() if "projector" in n and p.ndim > 1)
    weight.data += 0.5
    with pytest.raises(InputError, match="does not hold what the model gives now"):
        cache.verify(one.model, one.processor, shown)
    weight.data -= 0.5


def test_the_order_of_pictures_is_part_of_a_sets_name(one, shown):
    media = one.processor.media_of(shown[3])
    turned = media._replace(images=media.images[::-1])
    assert media_key(media) != media_key(turned)


def test_the_plain_processor_is_given_back(one, tmp_path):
    cached = enable(one.model, one.processor, Caching(folder=tmp_path))
    assert isinstance(enable(one.model, cached, Caching(use=False)), AttachedProcessor)
