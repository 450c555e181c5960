"""The record of decoded pictures: it saves time, and never says more than was seen."""

import os
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from crome.data import checked, pictures
from crome.data.checked import known, remember
from crome.data.pictures import undecodable


@pytest.fixture
def record(monkeypatch, tmp_path):
    path = tmp_path / "record" / "pictures.sqlite"
    monkeypatch.setattr(checked, "record_path", lambda: path)
    return path


@pytest.fixture
def old(folder, record):
    """Two pictures that have not changed for an hour, as first uses of them."""
    files = {folder / name: "line 1" for name in ("a.png", "b.jpg")}
    for path in files:
        aged(path)
    return files


def aged(path: Path, seconds: float = 3600) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.fixture
def decoded(monkeypatch):
    """Names of the pictures that were decoded."""
    seen: list[str] = []
    load = pictures.load_image
    monkeypatch.setattr(pictures, "load_image", lambda path: seen.append(path.name) or load(path))
    return seen


def test_a_picture_is_decoded_once(old, decoded):
    assert undecodable(old) == {} == undecodable(old)
    assert sorted(decoded) == ["a.png", "b.jpg"]
    undecodable(old, again=True)  # as `crome validate` asks for
    assert len(decoded) == 4


def test_a_picture_that_changed_is_decoded_again(old, folder, decoded):
    undecodable(old)
    (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:-40])
    aged(folder / "a.png")  # the same time as before or so, and another size
    (reason,) = undecodable(old).values()
    assert reason.startswith("line 1, image: ")
    assert decoded.count("a.png") == 2
    undecodable(old)  # a broken picture is never remembered
    assert decoded.count("a.png") == 3


def test_a_picture_that_changed_just_now_is_not_remembered(folder, record):
    remember([folder / "a.png"])
    assert known([folder / "a.png"]) == set()


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + b"\xff" * 200])
def test_a_damaged_record_is_made_anew(old, record, content):
    undecodable(old)
    record.write_bytes(content)
    assert undecodable(old) == {}
    undecodable(old)
    assert known(old) == set(old)


def test_a_cut_record_is_made_anew(old, record):
    undecodable(old)
    record.write_bytes(record.read_bytes()[:5000])
    for _ in range(3):
        assert undecodable(old) == {}
    assert known(old) == set(old)


def test_without_a_folder_to_write_to_every_picture_is_decoded(old, monkeypatch, decoded):
    monkeypatch.setattr(checked, "record_path", lambda: Path("/proc/none/pictures.sqlite"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert undecodable(old) == {} == undecodable(old)
    assert len(decoded) == 4


def test_names_that_are_no_unicode(folder, record):
    path = folder / os.fsdecode(b"\xff.png")
    path.write_bytes((folder / "a.png").read_bytes())
    aged(path)
    remember([path])
    assert known([path, folder / "none.png"]) == {path}


def check(record: Path, files: dict[Path, str], log: Path) -> None:
    """What each process of a run does; a line for each picture that it decodes."""
    os.environ["WORLD_SIZE"] = "2"
    checked.record_path = lambda: record
    load = pictures.load_image

    def noted(path):
        with log.open("a") as file:
            file.write(f"{path.name}\n")
        return load(path)

    pictures.load_image = noted
    undecodable(files)


def test_of_several_processes_one_decodes(old, record, tmp_path):
    context, log = get_context("fork"), tmp_path / "log"
    both = [context.Process(target=check, args=(record, old, log)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert sorted(log.read_text().split()) == ["a.png", "b.jpg"]
