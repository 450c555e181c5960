"""Files and folders that are whole or not there, and what killed processes leave."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crome.errors import InputError, JobError
from crome.storage import (
    SEAL,
    STAGING,
    append_line,
    build_folder,
    is_whole,
    library_writes,
    locked,
    remove_leftovers,
    replaced,
    write_json,
)


def filled(folder):
    (folder / "a.json").write_text("[1, 2]")
    (folder / "inner").mkdir()
    (folder / "inner" / "b.npy").write_bytes(bytes(200_000))


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError), replaced(path) as temporary:
        temporary.write_text(3)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(JobError, match="What was there before is intact"):
        write_json(path / "inner", 1)  # a file is in the way


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / "a.json").write_text("[1, 3]"),
        lambda f: (f / "a.json").write_text(""),
        lambda f: (f / "a.json").unlink(),
        lambda f: (f / "inner" / "b.npy").write_bytes(bytes(199_999)),
        lambda f: (f / "inner" / "b.npy").write_bytes(bytes(199_999) + b"1"),
        lambda f: (f / "c").touch(),
        lambda f: (f / SEAL).unlink(),
        lambda f: (f / SEAL).write_text("null"),
        lambda f: (f / SEAL).write_text("[" * 100_000),
        lambda f: (f / SEAL).write_bytes(b"\xff"),
        lambda f: (f / SEAL).write_text('{"a.json": null}'),
    ],
)
def test_a_damaged_folder_is_noticed_and_built_anew(tmp_path, damage):
    folder = tmp_path / "made"
    assert not is_whole(folder)
    build_folder(folder, filled)
    assert is_whole(folder)
    damage(folder)
    assert not is_whole(folder)
    build_folder(folder, filled)
    assert is_whole(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


def test_a_failed_build_leaves_the_older_folder(tmp_path):
    build_folder(tmp_path / "made", filled)

    def fail(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(JobError, match=r"could not write .*made: .*No space left"):
        build_folder(tmp_path / "made", fail)
    assert is_whole(tmp_path / "made")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_killed_build_blocks_nothing_and_is_cleaned_up(tmp_path):
    """Also in a container, where every process has the number 1."""
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom crome.storage import build_folder\n"
        "def build(folder):\n    (folder / 'a').touch()\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"build_folder(Path({str(tmp_path / 'made')!r}), build)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert [p.name.startswith(f"{STAGING}made.") for p in tmp_path.iterdir()] == [True]
    build_folder(tmp_path / "made", filled)
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


def test_leftovers_of_living_processes_stay(tmp_path):
    old, new, other = (tmp_path / f"{STAGING}{n}" for n in ("a.x", "a.y", "b.x"))
    for path in (old, new, other):
        path.touch()
    os.utime(old, (time.time() - 100,) * 2)
    remove_leftovers(tmp_path, "a", age=50)
    assert sorted(tmp_path.iterdir()) == sorted([new, other])
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_for_one_process(tmp_path):
    with locked(tmp_path / "lock", "in use"):
        code = (
            "from pathlib import Path\nfrom crome.storage import locked\n"
            f"with locked(Path({str(tmp_path / 'lock')!r}), 'in use'): pass"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        assert b"in use" in run.stderr
    with locked(tmp_path / "lock", "in use"):
        pass
    assert issubclass(InputError, ValueError)


def test_what_a_killed_process_left_long_ago_goes_with_the_next_write(tmp_path):
    old, new = (tmp_path / f"{STAGING}a.json.{name}" for name in ("old", "new"))
    other = tmp_path / f"{STAGING}b.json.old"
    for path in (old, new, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (0, 0))
    write_json(tmp_path / "a.json", 1)
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", new.name, other.name}


def test_a_line_that_cannot_be_added_names_its_file(tmp_path):
    append_line(tmp_path / "new" / "log.jsonl", {"a": 1})
    append_line(tmp_path / "new" / "log.jsonl", "ü")
    text = (tmp_path / "new" / "log.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()] == [{"a": 1}, "ü"]
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(JobError, match=r"could not write /dev/full: .*No space"):
        append_line(full, {"a": 1})


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        Exception("No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:595] . PytorchStreamWriter failed "
                     "writing file data/0: file write failed"),
    ],
)  # fmt: skip
def test_a_librarys_own_error_of_the_disk_is_one_line(tmp_path, error):
    with pytest.raises(JobError, match=f"could not write {tmp_path}: ") as told:
        with library_writes(tmp_path):
            raise error
    assert isinstance(told.value.__cause__, OSError)
    with pytest.raises(KeyError), library_writes(tmp_path):
        raise KeyError("a fault of a program's own")
