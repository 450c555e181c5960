"""The store on disk: exact rows, two writers, kill -9, mismatches, limits, speed of reading."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from crome.errors import InputError, JobError
from crome.features import store as features
from crome.features.store import IDENTITY, PART, FeatureStore, folder_bytes

IDENTITY_HERE = {"encoder": "here", "layers": [-1, -2]}


def some(keys, dtype=torch.bfloat16):
    return {
        "queries": torch.stack([torch.full((2, 3), float(key)) for key in keys]).to(dtype),
        "patches": torch.stack([torch.full((4,), -float(key)) for key in keys]).to(dtype),
    }


def write(folder, keys, limit=None):
    store = FeatureStore(folder, IDENTITY_HERE)
    with store.writer(limit) as writer:
        writer.add(keys, some(keys))
    return store


def test_rows_come_back_as_they_were_written(tmp_path):
    store = write(tmp_path, ["1", "2", "3"])
    rows = FeatureStore(tmp_path, IDENTITY_HERE).rows(["3", "1", "3"])
    for name, expected in some(["3", "1", "3"]).items():
        assert rows[name].dtype == torch.bfloat16
        assert torch.equal(rows[name], expected)
    assert list(store.rows(["2"], names=["patches"])) == ["patches"]
    assert (len(store), "2" in store, "4" in store) == (3, True, False)
    with pytest.raises(KeyError):
        store.rows(["4"])


def test_a_small_shard_size_makes_several_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "SHARD_BYTES", 40)
    store = FeatureStore(tmp_path, IDENTITY_HERE)
    with store.writer() as writer:
        for key in "12345":
            writer.add([key], some([key]))
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    assert torch.equal(store.rows(list("54321"))["queries"], some(list("54321"))["queries"])


def test_two_writers_share_a_folder(tmp_path):
    """Both open before either writes; one key is written by both."""
    one, two = (FeatureStore(tmp_path, IDENTITY_HERE) for _ in range(2))
    with one.writer() as first, two.writer() as second:
        first.add(["1", "2"], some(["1", "2"]))
        second.add(["2", "3"], some(["2", "3"]))
    one.refresh()
    assert sorted(one.keys()) == ["1", "2", "3"]
    assert torch.equal(one.rows(["1", "2", "3"])["patches"], some(["1", "2", "3"])["patches"])


def test_a_writer_killed_at_any_time_leaves_whole_shards(tmp_path):
    code = f"""
        import sys, torch
        from pathlib import Path
        from crome.features import store as features
        features.SHARD_BYTES = 1 << 16
        store = features.FeatureStore(Path({str(tmp_path)!r}), {IDENTITY_HERE!r})
        with store.writer() as writer:
            for i in range(10**6):
                writer.add([str(i)], {{"x": torch.full((1, 4096), float(i))}})
    """
    paths = [str(Path(features.__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], env=environment)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*.safetensors"))) < 5:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    store = FeatureStore(tmp_path, IDENTITY_HERE)
    assert len(store) >= 20
    for key in store.keys():
        assert (store.rows([key])["x"] == float(key)).all()


def test_parts_of_killed_writers_are_removed_and_those_of_living_ones_are_not(tmp_path):
    tmp_path.joinpath(f"{PART}old").write_text("")
    tmp_path.joinpath(f"{PART}new").write_text("")
    os.utime(tmp_path / f"{PART}old", (0, 0))
    write(tmp_path, ["1"])
    assert [p.name for p in tmp_path.glob(f"{PART}*")] == [f"{PART}new"]


def test_features_of_something_else_are_refused(tmp_path):
    write(tmp_path / "here", ["1"])
    with pytest.raises(InputError, match="encoder is 'here' there and 'other' here"):
        FeatureStore(tmp_path / "here", IDENTITY_HERE | {"encoder": "other"})
    write(tmp_path / "there", ["2"])
    other = FeatureStore(tmp_path / "other", {"encoder": "other"})
    with other.writer() as writer:
        writer.add(["3"], some(["3"]))
    (shard,) = (tmp_path / "other").glob("*.safetensors")
    shard.rename(tmp_path / "there" / shard.name)
    with pytest.raises(InputError, match="features of something else than its folder says"):
        FeatureStore(tmp_path / "there", IDENTITY_HERE)


@pytest.mark.parametrize("keep", [0, 5, 100])
def test_a_cut_shard_is_named(tmp_path, keep):
    write(tmp_path, ["1"])
    (shard,) = tmp_path.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(InputError, match=f"{shard.name} is no whole shard"):
        FeatureStore(tmp_path, IDENTITY_HERE)


def test_an_unreadable_identity_is_named(tmp_path):
    write(tmp_path, ["1"])
    (tmp_path / IDENTITY).write_text("{")
    with pytest.raises(InputError, match=r"identity\.json cannot be read"):
        FeatureStore(tmp_path, IDENTITY_HERE)


def test_a_limit_and_a_full_disk_end_with_a_message_and_keep_what_is_there(tmp_path, monkeypatch):
    folder = tmp_path / "images"
    store = write(folder, ["1"])
    with pytest.raises(JobError, match=r"would grow over its limit of .*limit_gb"):
        write(folder, ["2"], limit=folder_bytes(tmp_path) + 5)
    monkeypatch.setattr(features, "DISK_RESERVE", 1 << 60)
    with pytest.raises(JobError, match="is full but for a reserve"):
        write(folder, ["2"])
    assert torch.equal(FeatureStore(folder, IDENTITY_HERE).rows(["1"])["queries"],
                       store.rows(["1"])["queries"])  # fmt: skip
    assert not list(folder.glob(f"{PART}*"))


def test_an_interrupted_block_writes_no_half_batch(tmp_path):
    store = FeatureStore(tmp_path, IDENTITY_HERE)
    with pytest.raises(KeyboardInterrupt), store.writer() as writer:  # noqa: PT012
        writer.add(["1"], some(["1"]))
        raise KeyboardInterrupt
    assert not len(FeatureStore(tmp_path, IDENTITY_HERE))
