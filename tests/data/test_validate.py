"""`crome validate`: of a data file, and of a mixture."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

from crome.data import pictures
from crome.data.reader import read_rows
from crome.data.validate import validate
from crome.errors import InputError


def write(folder: Path, *entries, name: str = "data.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return file


def row(**changes):
    fields = {"image": "a.png", "question": "What color?", "answer": "red"} | changes
    return {key: value for key, value in fields.items() if value is not ...}


def bad_pictures(folder: Path) -> list[str]:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for name in ("cut.jpg", "cut.png"):
        Image.fromarray(noise).save(folder / name)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
    (folder / "text.png").write_text("hello")
    return ["cut.jpg", "cut.png", "text.png"]


def test_validate_names_every_bad_row_and_picture_once(folder, capsys):
    bad = bad_pictures(folder)
    entries = [row(image=name) for name in bad] + [row(image=bad[0]), row(answer=""), row()]
    file = write(folder, *entries)
    with pytest.raises(InputError, match="4 problems"):
        validate(file)
    printed = capsys.readouterr().out
    for number, name in enumerate(bad, start=1):
        assert printed.count(f"line {number}, image: {folder / name}") == 1
    assert "line 5, answer: found an empty text" in printed
    assert "1 good row of 6 entries, 4 distinct pictures" in printed

    with pytest.raises(InputError, match="1 problem"):
        validate(file, check_images=False)


def test_validate_shows_at_most_so_many(folder, capsys):
    file = write(folder, *[row(answer="") for _ in range(60)])
    with pytest.raises(InputError, match="60 problems"):
        validate(file)
    printed = capsys.readouterr().out
    assert printed.count("line ") == 50
    assert "… and 10 more" in printed


def test_validate_passes_good_data(folder, capsys):
    file = write(folder, row(), row(image=["a.png", "b.jpg"]), row(image=..., answer="deep red"))
    validate(file)
    printed = capsys.readouterr().out
    assert "3 good rows of 3 entries, 2 distinct pictures, 1 text-only" in printed
    assert "2.0 words a question and 1.3 an answer" in printed


def test_validate_decodes_a_shared_picture_once(folder, monkeypatch):
    decoded = []
    monkeypatch.setattr(pictures, "load_image", decoded.append)
    validate(write(folder, row(), row(), row(image="b.jpg")))
    assert sorted(path.name for path in decoded) == ["a.png", "b.jpg"]


def test_user_text_is_not_taken_for_markup(folder, capsys):
    with pytest.raises(InputError):
        validate(write(folder, row(answer={"[/bold]": 1})))
    assert "[/bold]" in capsys.readouterr().out


def recordings(folder):
    """A good one, and four that are none."""
    wavfile.write(folder / "good.wav", 16_000, np.ones(900, np.int16))
    wavfile.write(folder / "none.wav", 16_000, np.ones(0, np.int16))
    (folder / "cut.wav").write_bytes((folder / "good.wav").read_bytes()[:-100])
    (folder / "text.wav").write_bytes(b"nothing to hear")
    (folder / "empty.mp3").write_bytes(b"")
    names = ("good.wav", "none.wav", "cut.wav", "text.wav", "empty.mp3", "gone.wav")
    return [row(image=..., audio=name, question=f"{name}?") for name in names]


def test_recordings_that_cannot_be_heard_are_named(folder, capsys):
    file = write(folder, *recordings(folder), row(audio="good.wav"))
    with pytest.raises(InputError, match="5 problems"):
        validate(file)
    printed = capsys.readouterr().out
    for line, reason in (
        ("2, audio", "none.wav has no samples; leave the row out"),
        ("3, audio", "cut.wav cannot be heard (it ends before its header says)"),
        ("4, audio", "text.wav cannot be heard (it does not begin as WAV does)"),
        ("5, audio", "empty.mp3 is empty"),
        ("6, audio", "found no file"),
    ):
        (found,) = [text for text in printed.splitlines() if f"line {line}" in text]
        assert reason in found
    assert "2 good rows of 7 entries, 1 distinct picture, 5 distinct recordings" in printed
    with pytest.raises(InputError, match=r"5 bad rows of 7, first line 6, audio"):
        read_rows(file, check_images=True)
    kept = read_rows(file, on_bad_row="skip", check_images=True)
    assert [one.question for one in kept] == ["good.wav?", "What color?"]


# ---------------------------------------------------------------------- mixtures


def test_recordings_of_a_mixture_that_cannot_be_heard_are_named(folder, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    write(folder, *recordings(folder), name="a.jsonl")
    (folder / "mix.yaml").write_text("sources:\n  one: {file: a.jsonl}\n")
    with pytest.raises(InputError, match="5 bad rows"):
        validate(folder / "mix.yaml")
    printed = capsys.readouterr().out
    assert "one: line 3, audio: found" in printed
    assert "expected a recording that can be decoded" in printed


def test_a_mixture_is_told_source_by_source(folder, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    write(folder, *[row(question=f"{i}?") for i in range(6)], row(question="0?"), name="a.jsonl")
    write(folder, row(question="0?"), row(image="b.jpg"), name="b.jsonl")
    file = folder / "mix.yaml"
    file.write_text(
        "max_questions_per_image: 4\nsources:\n"
        "  first: {file: a.jsonl, expected_rows: 9}\n  second: {file: b.jsonl}\n"
    )
    validate(file)
    printed = capsys.readouterr().out
    lines = {line.split()[1]: line.split()[3::2] for line in printed.splitlines() if "│" in line}
    # rows, bad, duplicates, over the cap, kept: of 9 rows one is equal to two others, 6 others are
    # on the first picture, which may keep 4
    assert sum(int(lines[name][2]) for name in ("first", "second")) == 2
    assert sum(int(lines[name][3]) for name in ("first", "second")) == 2
    assert sum(int(lines[name][4]) for name in ("first", "second")) == 5
    assert "5 rows kept" in printed
    assert "first: 7 rows; the mixture expects 9" in printed


def test_bad_rows_of_a_mixture_are_named_with_their_source(folder, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    (cut, *_) = bad_pictures(folder)
    write(
        folder, row(), row(image=cut), row(image=cut, question="b"), row(answer=3), name="a.jsonl"
    )
    file = folder / "mix.yaml"
    file.write_text("sources:\n  one: {file: a.jsonl}\n")
    with pytest.raises(InputError, match="3 bad rows"):
        validate(file)
    printed = capsys.readouterr().out
    assert "one: line 4, answer: found 3; expected a text" in printed
    assert "one: line 2, image: found" in printed
    assert "1 row kept" in printed
