"""Files that entries name: paths in all spellings, and what stands in the entry itself."""

import base64
import unicodedata
from urllib.parse import quote

import pytest
from PIL import Image

from crome.data.media import Finder, media_key


@pytest.fixture
def finder(folder, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    (folder / "sub dir").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "sub dir" / "c.png")
    for name in ("v.mp4", "s.wav"):
        (folder / name).write_bytes(b"content")
    problems: list[tuple[str, str, str]] = []
    made = Finder(folder, True, lambda *problem: problems.append(problem))
    made.problems = problems
    return made


def test_paths_of_windows_and_file_addresses(finder, folder):
    inner = folder / "sub dir" / "c.png"
    assert finder.one("image", "sub dir\\c.png") == inner
    assert finder.one("image", inner.as_uri()) == inner  # with %20
    assert finder.one("image", str(inner)) == inner
    assert finder.problems == []
    assert finder.one("image", "file:///none.png") is None
    assert finder.problems[-1] == ("image", "no file '/none.png'", "an existing file")
    assert finder.one("image", "photos\\none.png") is None
    assert "photos" in finder.problems[-1][1]


@pytest.mark.parametrize("name", ["b c.png", "ü ñ.png", "100%.png", "x#y.png", "q?.png"])
def test_names_are_written_in_several_ways(finder, folder, name):
    path = folder / name
    Image.new("RGB", (4, 4)).save(path)
    forms = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    for given in (name, *forms, quote(name), path.as_uri(), f"file://localhost{quote(str(path))}"):
        assert finder.one("image", given) == path
    for given in ({"path": name}, {"path": name, "bytes": None, "width": 4}, {"file_name": name},
                  {"type": "image_url", "image_url": {"url": name}}):  # fmt: skip
        assert finder.one("image", given) == path
    assert finder.problems == []


def test_bytes_in_json_are_base64_or_numbers(finder, folder):
    content = (folder / "a.png").read_bytes()
    for given in (base64.b64encode(content).decode(), list(content)):
        assert finder.one("image", {"bytes": given, "path": "b.jpg"}).read_bytes() == content
    address = f"DATA:image/png;BASE64,{base64.b64encode(content).decode()}"
    assert finder.one("image", address).read_bytes() == content
    for given in ({"bytes": "no base64!"}, {"bytes": [300]}, {"bytes": 3}, {"bytes": []}):
        assert finder.one("image", given) is None
        assert finder.problems.pop() == ("image", repr(given), "a file name or a list of them")


def test_a_picture_in_base64_needs_no_prefix(finder, folder):
    content = (folder / "a.png").read_bytes()
    bare = base64.b64encode(content).decode()
    for given in (bare, bare[:40] + "\n" + bare[40:], f"data:image/png;base64,{bare}"):
        assert finder.one("image", given).read_bytes() == content
    assert finder.problems == []
    jpeg = base64.b64encode((folder / "b.jpg").read_bytes()).decode()  # begins like a path
    assert finder.one("image", jpeg).read_bytes() == (folder / "b.jpg").read_bytes()


def test_a_cut_unpacked_picture_is_written_anew(finder, folder):
    content = (folder / "a.png").read_bytes()
    path = finder.one("image", {"bytes": content, "path": None})
    path.write_bytes(content[:10])
    assert finder.one("image", {"bytes": content}).read_bytes() == content


def test_videos_are_files_or_frames(finder, folder):
    a, b, film = folder / "a.png", folder / "b.jpg", folder / "v.mp4"
    assert finder.all("video", "v.mp4") == [film]
    assert finder.all("video", ["v.mp4", "v.mp4"]) == [film, film]
    assert finder.all("video", ["a.png", "b.jpg"]) == [(a, b)]
    assert finder.all("video", [["a.png"], ["b.jpg", "a.png"]]) == [(a,), (b, a)]
    assert finder.problems == []
    assert finder.all("video", [["a.png", "none.png"]]) == []
    medium, found, expected = finder.problems[0]
    assert (medium, expected) == ("image", "an existing file")
    assert found.endswith("none.png'")  # a long path is cut at its beginning


def test_recordings_and_what_they_are_sent_as(finder, folder):
    assert finder.all("audio", "s.wav") == [folder / "s.wav"]
    held = finder.one("audio", {"bytes": b"content", "path": "x/y.WAV"})
    assert (held.suffix, held.read_bytes()) == (".wav", b"content")
    data = "data:audio/wav;base64," + base64.b64encode(b"other").decode()
    assert finder.one("audio", data).suffix == ".wav"
    assert finder.problems == []
    assert finder.one("audio", {"array": [0.0], "sampling_rate": 16000}) is None
    assert finder.problems[0][2] == "a file name or a list of them"


@pytest.mark.parametrize(
    ("key", "value", "medium"),
    [
        ("image_path", "a.png", "image"),
        ("img", "a", "image"),
        ("file_name", "a", "image"),
        ("file_name", "a.mp4", "video"),
        ("imagePaths", ["a"], "image"),
        ("image_paths", ["a"], "image"),
        ("Image", "a", "image"),
        ("left_image", "a", "image"),
        ("source", "x/a.jpg", "image"),
        ("video_path", "a", "video"),
        ("clips", ["a"], "video"),
        ("speech", "a", "audio"),
        ("image_id", 7, None),
        ("image_id", "7", None),
        ("image_size", [3, 4], None),
        ("img", "", None),
        ("img", None, None),
        ("difficulty", "hard", None),
    ],
)
def test_keys_that_speak_of_media(key, value, medium):
    assert media_key(key, value) == medium
