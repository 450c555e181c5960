"""The store on disk: exact rows, two writers, kill -9, mismatches, limits, speed of reading."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from crome.errors import InputError, JobError
from crome.features import store as features
from crome.features.store import IDENTITY, FeatureStore
from crome.storage import STAGING, folder_bytes

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
    for name in ("old", "new"):
        tmp_path.joinpath(f"{STAGING}{name}").write_text("")
    os.utime(tmp_path / f"{STAGING}old", (0, 0))
    write(tmp_path, ["1"])
    assert [p.name for p in tmp_path.glob(f"{STAGING}*")] == [f"{STAGING}new"]


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


def cut(shard, keep):
    shard.write_bytes(shard.read_bytes()[:keep])


def odd(shard, metadata):
    save_file({"x": torch.zeros(2, 2)}, shard, metadata)


@pytest.mark.parametrize(
    "damage",
    [
        lambda shard: cut(shard, 0),
        lambda shard: cut(shard, 5),
        lambda shard: cut(shard, 100),
        lambda shard: cut(shard, -1),
        lambda shard: odd(shard, None),
        lambda shard: odd(shard, {"keys": "["}),
        lambda shard: odd(shard, {"keys": "null"}),
        lambda shard: odd(shard, {"keys": '["1"]', "identity": "{}"}),
        lambda shard: odd(shard, {"keys": '["1", "2"]', "checksums": '{"x": [1]}'}),
        lambda shard: odd(shard, {"keys": '["1", "2"]', "checksums": "[1]"}),
        lambda shard: shard.unlink() or shard.mkdir(),
    ],
)
def test_a_damaged_shard_counts_as_absent_and_is_made_anew(tmp_path, damage, caplog):
    write(tmp_path, ["1"])
    (shard,) = tmp_path.glob("*.safetensors")
    damage(shard)
    store = FeatureStore(tmp_path, IDENTITY_HERE)
    assert len(store) == 0
    assert caplog.text.count(f"{shard.name} is no whole shard") == 1
    if shard.is_dir():
        shard.rmdir()
    with store.writer() as writer:
        writer.add(["1"], some(["1"]))
    assert not shard.exists()
    assert torch.equal(FeatureStore(tmp_path, IDENTITY_HERE).rows(["1"])["queries"],
                       some(["1"])["queries"])  # fmt: skip


@pytest.mark.parametrize("shape", [(4, 8), (3, 3), (1, 1), (5,)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_row_that_is_not_what_was_written_is_refused(tmp_path, shape, dtype):
    """Any single bit, also where the result is a number like any other."""
    rows = torch.randn(2, *shape).to(dtype)
    store = FeatureStore(tmp_path, IDENTITY_HERE)
    with store.writer() as writer:
        writer.add(["1", "2"], {"x": rows})
    (shard,) = tmp_path.glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-1 - rows[0].nbytes // 2] ^= 4  # in the second row
    shard.write_bytes(content)
    store = FeatureStore(tmp_path, IDENTITY_HERE)
    assert torch.equal(store.rows(["1"])["x"][0], rows[0])
    with pytest.raises(InputError, match=f"{shard.name} is damaged: x of a row"):
        store.rows(["2"])


def test_shards_without_checksums_are_read(tmp_path):
    """As the first release wrote them."""
    metadata = {"identity": json.dumps(IDENTITY_HERE, sort_keys=True), "keys": '["1"]'}
    save_file({"x": torch.ones(1, 3)}, tmp_path / "a.safetensors", metadata)
    assert FeatureStore(tmp_path, IDENTITY_HERE).rows(["1"])["x"].tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("text", ["{", "", "null", "[]", "[" * 100_000])
def test_a_damaged_identity_is_written_anew(tmp_path, text):
    write(tmp_path, ["1"])
    (tmp_path / IDENTITY).write_text(text)
    assert FeatureStore(tmp_path).keys() == ["1"]
    write(tmp_path, ["2"])
    assert json.loads((tmp_path / IDENTITY).read_text()) == IDENTITY_HERE


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
    assert not list(folder.glob(f"{STAGING}*"))


def test_an_interrupted_block_writes_no_half_batch(tmp_path):
    store = FeatureStore(tmp_path, IDENTITY_HERE)
    with pytest.raises(KeyboardInterrupt), store.writer() as writer:  # noqa: PT012
        writer.add(["1"], some(["1"]))
        raise KeyboardInterrupt
    assert not len(FeatureStore(tmp_path, IDENTITY_HERE))
