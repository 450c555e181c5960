"""Mixtures: files with mistakes, preparation, training order, and what is found when."""

import json
import logging
import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from crome.data.mixture import build as build_module
from crome.data.mixture.build import build_mixture
from crome.data.mixture.file import read_settings
from crome.data.opening import open_mixture, open_stream
from crome.errors import InputError, JobError


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """Ten pictures, three files of rows on them, and a mixture."""
    for number in range(10):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / f"{number}.png")
    write(tmp_path / "a.jsonl", [row(n % 10, f"a{n}?") for n in range(64)])
    write(tmp_path / "b.jsonl", [row(n % 10, f"b{n}?") for n in range(16)])
    write(tmp_path / "t.jsonl", [row(None, f"t{n}?") for n in range(4)])
    mixture(tmp_path)
    return tmp_path


def row(picture, question, **more):
    image = {} if picture is None else {"image": f"{picture}.png"}
    return image | {"question": question, "answer": "yes"} | more


def write(path: Path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def mixture(folder: Path, text: str | None = None, **settings) -> Path:
    path = folder / "mix.yaml"
    sources = {name: {"file": f"{name}.jsonl"} for name in "abt"}
    path.write_text(text or json.dumps({"sources": sources} | settings))
    return path


# ---------------------------------------------------------------------- the file


MISTAKES = [
    ("sources: [a]", "expected `sources:` with a name for each"),
    ("sources: {}", "no source under `sources:`"),
    ("a: [", "does not parse as YAML"),
    ("sources: " + "{a: " * 5000, "nested too deeply|does not parse"),
    ("a: &a [*a]\nsources: {a: {file: a.jsonl}}", "more than 100,000 values"),
    ("sources: {a: {file: a.jsonl}, a: {file: b.jsonl}}", "a is given twice"),
    ("\xff\xfe", "expected options"),
    ("balence: size\nsources: {a: {file: a.jsonl}}", "unknown key 'balence', meant 'balance'"),
    ("balance: root\nsources: {a: {file: a.jsonl}}", "balance: found 'root'; expected one of"),
    ("seed: x\nsources: {a: {file: a.jsonl}}", "seed: found 'x'"),
    ("max_questions_per_image: 0\nsources: {a: {file: a.jsonl}}", "image: found 0; expected 1"),
    ("keep_duplicates: 1\nsources: {a: {file: a.jsonl}}", "keep_duplicates: found 1"),
    ("sources: {a: {fil: a.jsonl}}", "a: unknown key 'fil', meant 'file'.*a?.*file is absent"),
    ("sources: {a: {file: none.jsonl}}", r"a: file: no file .*none\.jsonl"),
    ("sources: {a: {file: a.jsonl, images: gone}}", "a: images: no folder .*gone"),
    ("sources: {a: {file: a.jsonl, layout: row}}", "a: no layout 'row', meant 'rows'"),
    ("sources: {a: {file: a.jsonl, weight: -1}}", "weight: found -1; expected a number above 0"),
    ("sources: {a: {file: a.jsonl, templates: captions}}", "no templates 'captions'"),
    ("sources: {a: {file: a.jsonl, folder: 3}}", "folder: found 3; expected str or nothing"),
    ("sources: {a: {file: a.jsonl, expected_rows: many}}", "expected_rows: found 'many'"),
    ("sources: {a: {layout: karpathy, file: a.jsonl, split: dev}}", "split: found 'dev'; expected"),
    ("sources: {a: 3}", "a: found 3; expected keys"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_a_mistake_is_named(folder, text, message):
    with pytest.raises(InputError, match=message):
        build_mixture(mixture(folder, text))


def test_an_absent_mixture_is_named(folder):
    with pytest.raises(InputError, match=r"no mixture .*none\.yaml"):
        open_stream(folder / "none.yaml")


def test_all_mistakes_are_named_at_once(folder):
    text = "balance: x\nsources: {a: {file: no1}, b: {file: no2, images: no3}}"
    with pytest.raises(InputError, match=r"no1.*no2.*no3.*balance"):
        build_mixture(mixture(folder, text))


def test_paths_start_at_root(folder, tmp_path):
    (tmp_path / "sub").mkdir()
    text = "root: ..\nsources: {a: {file: a.jsonl}}"
    path = mixture(tmp_path / "sub", text)
    assert read_settings(path).sources[0].paths == [(tmp_path / "a.jsonl").resolve()]
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(InputError, match="elsewhere"):
        read_settings(path, root=tmp_path / "elsewhere")


# ---------------------------------------------------------------------- preparation


def test_rows_come_back_as_they_were_read(folder):
    rich = row(3, "Which?", choices=["yes", "no"], kind="odd", id=7)
    talk = {"image": ["1.png", "2.png"], "conversations": [
        {"from": "human", "value": "<image><image>One?"}, {"from": "gpt", "value": "1"},
        {"from": "human", "value": "Two?"}, {"from": "gpt", "value": "2"}]}  # fmt: skip
    write(folder / "a.jsonl", [rich, talk])
    found = build_mixture(mixture(folder, "sources: {a: {file: a.jsonl}}"))
    one, _, two = found
    assert (one.choices, one.kind, one.id) == (("yes", "no"), "odd", "7")
    assert two.history == (("One?", "1"),)
    assert two.images == (folder / "1.png", folder / "2.png")
    assert found[1:] == [found[1], two]
    with pytest.raises(IndexError):
        found[3]


def test_what_was_prepared_is_opened_again(folder, monkeypatch):
    first = build_mixture(mixture(folder))
    monkeypatch.setattr(build_module, "write_rows", None)
    assert build_mixture(mixture(folder)).fingerprint == first.fingerprint
    other = build_mixture(mixture(folder, max_questions_per_image=1))  # the same tables
    assert other.fingerprint != first.fingerprint
    assert len(other) == 10 + 4


def test_a_changed_file_is_read_anew(folder):
    first = build_mixture(mixture(folder))
    with (folder / "a.jsonl").open("a") as file:
        file.write(json.dumps(row(1, "new?")) + "\n")
    os.utime(folder / "a.jsonl", ns=(1, 1))
    second = build_mixture(mixture(folder))
    assert (len(first), len(second)) == (84, 85)
    assert first.fingerprint != second.fingerprint


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows-*/rows.arrow", b"cut"), ("rows-*/texts.npy", b""), ("rows-*/report.json", b"null"),
        ("mixture-*/index.json", None), ("mixture-*/index.json", b"[]"),
        ("mixture-*/kept-0.npy", b"cut"), ("mixture-*/.sealed.json", b""),
        ("mixture-*-apart-4/layouts.json", b"cut"), ("mixture-*-apart-4/0.npy", None),
    ],
)  # fmt: skip
def test_a_damaged_cache_is_made_anew(folder, name, content):
    """Files that are absent, empty, odd or cut."""
    expected = [build_mixture(mixture(folder)).stream(seed=1)[i].id for i in range(20)]
    (path, *_) = (folder / "cache" / "crome" / "mixtures").glob(name)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-7] if content == b"cut" else content)
    stream = build_mixture(mixture(folder)).stream(seed=1)
    assert [stream[i].id for i in range(20)] == expected


def test_what_killed_preparations_left_is_removed(folder):
    build_mixture(mixture(folder)).stream()
    cache = folder / "cache" / "crome" / "mixtures"
    (made,) = cache.glob("mixture-*-apart-4")
    left = cache / f".staging-{made.name}.abc"
    left.mkdir()
    (made / "layouts.json").unlink()
    build_mixture(mixture(folder)).stream()
    assert not left.exists()


def test_a_full_disk_is_a_failed_job(folder, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build_module, "write_rows", full)
    with pytest.raises(JobError, match=r"No space left.*XDG_CACHE_HOME"):
        build_mixture(mixture(folder))


def test_the_same_picture_under_two_names(folder):
    (folder / "copies").mkdir()
    for number in range(10):
        (folder / f"copies/{number}.png").write_bytes((folder / f"{number}.png").read_bytes())
    text = (
        "same_image: {}\nmax_questions_per_image: 4\n"
        "sources: {{a: {{file: a.jsonl}}, c: {{file: a.jsonl, images: copies}}}}"
    )
    assert len(build_mixture(mixture(folder, text.format("name")))) == 80
    by_content = build_mixture(mixture(folder, text.format("content")))
    assert len(by_content) == 40
    assert sum(report.duplicates for report in by_content.reports) == 64


def test_twins_that_ask_for_the_question_are_no_duplicates(folder):
    text = (
        "sources: {vqa: {file: a.jsonl, templates: short-answer},"
        " qg: {file: a.jsonl, templates: question-generation}}"
    )
    found = build_mixture(mixture(folder, text))
    assert len(found) == 128
    stream = found.stream()
    kinds = Counter(stream[i].answer == "yes" for i in range(128))
    assert kinds == {True: 64, False: 64}


# ---------------------------------------------------------------------- bad rows


def test_a_schema_that_changes_far_down_is_found_before_training(folder, caplog):
    rows = [row(n % 10, f"{n}?") for n in range(11_000)]
    changed = [{"img": "0.png", "q": "?", "a": "!"} for _ in range(9_000)]
    write(folder / "a.jsonl", rows + changed)
    path = mixture(folder)
    with pytest.raises(InputError, match=r"a: 9,000 bad of 20,000 .* first line 11001, question"):
        open_mixture(path)
    with caplog.at_level(logging.WARNING):
        found = open_mixture(path, on_bad_row="skip")
    assert len(found) == 11_000 + 20
    assert "skipped 9000 of 20000: 9,000 × question is not a text" in caplog.text
    assert len(found.reports[0].problems) == 20  # of 18,000


def test_pictures_that_do_not_decode(folder):
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:40])
    path = mixture(folder)
    assert len(open_mixture(path, check="exists")) == 84
    with pytest.raises(InputError, match=r"a: 7 bad of 64 .* first line 4, image: found .*3\.png"):
        open_mixture(path, check="decode")
    assert len(open_mixture(path, on_bad_row="skip", check="decode")) == 84 - 7 - 2


def test_a_folder_that_goes_away_is_found_at_the_next_start(folder):
    path = mixture(folder)
    open_mixture(path)
    for number in range(10):
        (folder / f"{number}.png").unlink()
    with pytest.raises(InputError, match=r"10 of 10 pictures looked for are not there any more"):
        open_mixture(path)


def test_rows_that_do_not_suit_their_templates(folder):
    path = mixture(folder, "sources: {a: {file: a.jsonl, templates: multiple-choice}}")
    with pytest.raises(InputError, match=r"64 bad of 64 .*choices: found nothing"):
        open_mixture(path)
    with pytest.raises(InputError, match="a: no row is left of 0"):
        open_mixture(path, on_bad_row="skip")


def test_a_source_of_which_nothing_is_left_is_named(folder):
    write(folder / "t.jsonl", [row(None, "")])
    with pytest.raises(InputError, match="t: no row is left of 0; take it out"):
        open_mixture(mixture(folder), on_bad_row="skip")


# ---------------------------------------------------------------------- training order


def test_shares_follow_square_roots_and_weights(folder):
    found = build_mixture(mixture(folder))  # 64, 16 and 4 rows
    assert found.weights == pytest.approx([8 / 14, 4 / 14, 2 / 14])
    sources = {name: {"file": f"{name}.jsonl"} for name in "ab"}
    sources["b"]["weight"] = 2
    assert build_mixture(mixture(folder, sources=sources)).weights == pytest.approx([0.5, 0.5])
    assert build_mixture(mixture(folder, balance="size")).weights is None


def test_an_epoch_by_size_has_every_row_once(folder):
    stream = build_mixture(mixture(folder, balance="size")).stream(epochs=2)
    asked = [stream[i].question for i in range(len(stream))]
    assert Counter(asked[:84]) == Counter(asked[84:])
    assert len(set(asked)) == 84


def test_a_balanced_epoch_has_each_sources_share(folder):
    stream = build_mixture(mixture(folder)).stream()
    sources = Counter(stream[i].question[0] for i in range(len(stream)))
    assert sources == {"a": 48, "b": 24, "t": 12}  # 8 : 4 : 2 of 21 groups of four


def test_wording_depends_on_seed_and_position_alone(folder):
    sources = {"a": {"file": "a.jsonl", "templates": "short-answer"}}
    found = build_mixture(mixture(folder, sources=sources))
    stream = found.stream(epochs=3, seed=5)
    asked = [stream[i].question for i in range(150)]
    assert [found.stream(epochs=3, seed=5)[i].question for i in range(100, 150)] == asked[100:]
    assert [found.stream(epochs=3, seed=6)[i].question for i in range(150)] != asked
    assert len({question.replace(f"a{n}?", "") for n in range(64) for question in asked}) > 9


def test_loader_processes_read_it_too(folder):
    stream = build_mixture(mixture(folder)).stream()
    asked = [stream[i].question for i in range(84)]
    sent = pickle.loads(pickle.dumps(stream))
    assert [sent[i].question for i in range(84)] == asked


def test_open_stream_takes_files_and_mixtures(folder):
    one = open_stream(folder / "a.jsonl", check_images=False)
    assert len(one) == 64
    assert one.fingerprint == open_stream(folder / "a.jsonl", check_images=False).fingerprint
    (folder / "a.jsonl").write_text((folder / "a.jsonl").read_text().replace("a5?", "a6?"))
    assert one.fingerprint != open_stream(folder / "a.jsonl", check_images=False).fingerprint
    mixed = open_stream(mixture(folder), epochs=2)
    assert len(mixed) == 168
    assert mixed.fingerprint.startswith("mixture-")


def test_its_own_files_are_what_datasets_reads(folder):
    import datasets

    found = build_mixture(mixture(folder))
    table = datasets.Dataset.from_file(str(found.tables[0].folder / "rows.arrow"))
    assert table[5]["question"] == "a5?"
    assert np.load(found.tables[0].folder / "images.npy").shape == (64,)


# ---------------------------------------------------------------------- the files in configs/


CONFIGS = Path(__file__).parents[3] / "configs" / "mixtures"
SOURCES = {"ai2d": 1, "d1": 6, "d2": 10, "d3": 10, "pretrain": 1, "scienceqa": 1}


def test_the_packaged_mixtures_are_known():
    assert sorted(path.stem for path in CONFIGS.glob("*.yaml")) == sorted(SOURCES)


@pytest.mark.parametrize("name", SOURCES)
def test_a_packaged_mixture_is_well_formed(name, tmp_path):
    """With empty files in the places it names it has no mistake."""
    given = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    for source in given["sources"].values():
        paths = {k: v for k, v in source.items() if k in ("file", "annotations", "problems",
                 "splits", "test_ids") or (k == "questions" and v.endswith(".json"))}  # fmt: skip
        for path in paths.values():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).touch()
        for folder in (source.get("images", "."), source.get("questions", ".")):
            if not folder.endswith(".json"):
                (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    settings = read_settings(CONFIGS / f"{name}.yaml", root=tmp_path)
    assert len(settings.sources) == SOURCES[name]
    big = name.startswith("d")
    assert settings.balance == ("square-root" if big else "size")
    assert settings.max_questions_per_image == (4 if big else None)
