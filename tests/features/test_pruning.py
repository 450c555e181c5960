"""What is removed from the caches, and what stays."""

import json
import os
import time

import numpy as np
import pytest

from crome.data.media import unpacked
from crome.data.mixture.build import build_mixture
from crome.errors import InputError
from crome.features.pruning import prune
from crome.features.verbs import info
from crome.fewshot.store import Store
from crome.storage import STAGING, cache_folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CROME_FEATURES", raising=False)
    return cache_folder()


def age(path, days):
    then = time.time() - days * 24 * 3600
    for inner in [*path.rglob("*"), path] if path.is_dir() else [path]:
        os.utime(inner, (then, then))


def mixture(tmp_path, name, picture):
    rows = tmp_path / f"{name}.jsonl"
    rows.write_text(json.dumps({"image": str(picture), "question": "q", "answer": "a"}))
    file = tmp_path / f"{name}.yaml"
    file.write_text(json.dumps({"sources": {name: {"file": rows.name}}}))
    build_mixture(file).stream()


def test_few_shot_features_go_too_an_encoder_at_a_time(cache):
    for name in ("old", "new"):
        Store(name).keep("a", np.zeros((1, 3), np.float32))
        age(cache / "fewshot" / name, 40)
    (cache / "fewshot" / "new" / f"{STAGING}b").touch()
    age(cache / "fewshot" / "new" / f"{STAGING}b", 2)
    assert Store("new").load("a", 1) is not None
    prune()
    assert [p.name for p in (cache / "fewshot").iterdir()] == ["new"]
    assert [p.name for p in (cache / "fewshot" / "new").iterdir()] == ["a.npy"]


def test_only_what_was_not_used_for_a_while_is_removed(cache, tmp_path):
    for name in ("old", "new"):
        (cache / "features" / name).mkdir(parents=True)
        (cache / "features" / name / "a.safetensors").write_bytes(b"x")
    (cache / "features" / "new" / f"{STAGING}x").touch()
    kept, gone = unpacked(b"one"), unpacked(b"two")
    mixture(tmp_path, "old", gone)
    for path in cache.glob("mixtures/*"):
        age(path, 40)
    mixture(tmp_path, "new", kept)
    age(cache / "features" / "old", 40)
    age(cache / "features" / "new" / f"{STAGING}x", 2)
    for picture in (kept, gone):
        age(picture, 40)
    (cache / "smollm2-135m-instruct").mkdir()
    before = sorted(cache.rglob("*"))
    prune(dry_run=True)
    assert sorted(cache.rglob("*")) == before
    prune()
    assert [p.name for p in (cache / "features").iterdir()] == ["new"]
    assert [p.name for p in (cache / "features" / "new").iterdir()] == ["a.safetensors"]
    assert (kept.is_file(), gone.is_file()) == (True, False)
    assert len(list(cache.glob("mixtures/rows-*[!k]"))) == 1
    mixture(tmp_path, "old", kept)  # and is made anew
    prune(days=0)
    assert not list(cache.glob("features/*"))
    assert not list(cache.glob("pictures/*/*"))
    assert (cache / "smollm2-135m-instruct").is_dir()


def test_a_folder_that_is_absent_is_said(tmp_path):
    for verb in (prune, info):
        with pytest.raises(InputError, match=r"no folder .*none; expected"):
            verb(folder=tmp_path / "none")
