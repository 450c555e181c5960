"""Tasks made of packaged pictures."""

import json
from collections import Counter

import pytest

from crome.assets import packages as assets
from crome.data.packaged import balanced, easy_vqa, question_only_answers, textile
from crome.errors import JobError
from crome.rows import Row
from crome.storage import cache_folder


@pytest.fixture
def cached(request):
    """Skip, visibly, where `crome assets` has not been run."""
    name = request.param
    folder = cache_folder() / name
    if assets.state(assets.ASSETS[name], folder) != "ready":
        pytest.skip(f"the asset {name} is not in {folder}: run `crome assets {name}`")
    return folder


def plain_row(question: str, answer: str) -> Row:
    return Row((), question, answer, "x")


def question_only_baseline(train, test) -> float:
    """The score that proves nothing was seen."""
    said = question_only_answers(train, test)
    return sum(a == row.answer for a, row in zip(said, test, strict=True)) / len(test)


def test_question_only_baseline_counts_training_answers():
    train = [plain_row("a?", "yes")] * 2 + [plain_row("a?", "no")] + [plain_row("b?", "red")] * 4
    test = [plain_row("a?", "yes"), plain_row("a?", "no"), plain_row("b?", "blue")]
    assert question_only_baseline(train, test) == pytest.approx(1 / 3)
    # A question that was never asked gets the most frequent answer overall.
    assert question_only_baseline(train, [plain_row("c?", "red")]) == 1


def test_easy_vqa_reads_its_layout(tmp_path):
    (tmp_path / "test").mkdir()
    entries = [["what is it?", "circle", 7], ["is it red?", "no", 7], ["which color?", "teal", 8]]
    (tmp_path / "test" / "questions.json").write_text(json.dumps(entries))
    rows = easy_vqa("test", tmp_path)
    assert [row.kind for row in rows] == ["shape", "yes/no", "color"]
    assert rows[2].images == (tmp_path / "test" / "images" / "8.png",)
    assert rows[1].question == "is it red?"


@pytest.mark.parametrize("text", ["", "{}", "[[", "\xff", "[" * 100_000])
def test_a_damaged_asset_is_named(tmp_path, text):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "questions.json").write_text(text, encoding="latin-1")
    with pytest.raises(JobError, match=r"questions\.json is damaged .*fetches it anew"):
        easy_vqa("test", tmp_path)


def test_textile_is_balanced_seeded_and_split_by_picture(tmp_path):
    for label, number in (("nominal", 20), ("local", 10), ("global", 10)):
        (tmp_path / label).mkdir()
        for index in range(number):
            (tmp_path / label / f"{index:02}.jpg").touch()
    train, test = textile("train", folder=tmp_path), textile("test", folder=tmp_path)
    for rows, share in ((train, 8), (test, 2)):
        answers = [row.answer for row in rows if row.kind == "defect"]
        assert answers.count("yes") == answers.count("no") == 2 * share
        kinds = [row.answer for row in rows if row.kind == "defect kind"]
        assert kinds.count("none") == kinds.count("local") == kinds.count("global") == share
        assert len({row.id for row in rows}) == len(rows)
    assert not {row.images for row in train} & {row.images for row in test}
    assert test == textile("test", folder=tmp_path)
    assert test != textile("test", seed=1, folder=tmp_path)


@pytest.mark.assets
@pytest.mark.parametrize("cached", ["easy-vqa"], indirect=True)
def test_easy_vqa_and_what_it_takes_no_sight_to_answer(cached):
    train, test = easy_vqa("train", cached), easy_vqa("test", cached)
    assert (len(train), len(test)) == (38_575, 9_673)
    assert all(row.images[0].is_file() for row in test)
    # Counted independently from the data; in percent, as published with one decimal.
    expected = {"yes/no": (7136, 82.5), "shape": (1257, 34.8), "color": (1280, 12.0)}
    for kind, (number, percent) in expected.items():
        rows = [row for row in test if row.kind == kind]
        assert len(rows) == number
        assert 100 * question_only_baseline(train, rows) == pytest.approx(percent, abs=0.05)
    assert 100 * question_only_baseline(train, test) == pytest.approx(67.0, abs=0.05)


@pytest.mark.assets
@pytest.mark.parametrize("cached", ["textile"], indirect=True)
def test_textile_questions_say_nothing_about_the_answer(cached):
    train, test = textile("train", folder=cached), textile("test", folder=cached)
    assert (len(train), len(test)) == (2800, 700)
    by_kind = {
        kind: question_only_baseline(train, [row for row in test if row.kind == kind])
        for kind in ("defect", "defect kind")
    }
    assert by_kind == {"defect": 1 / 2, "defect kind": 1 / 3}  # chance: exactly balanced


def test_balanced_questions_say_nothing_about_their_answers():
    leaning = [("a?", "yes")] * 9 + [("a?", "no")] * 4 + [("b?", "no")] * 3 + [("c?", "red")] * 10
    rows = [Row((), question, answer, str(n)) for n, (question, answer) in enumerate(leaning)]
    kept = balanced(rows)
    counts = Counter((row.question, row.answer) for row in kept)
    assert (counts["a?", "yes"], counts["a?", "no"]) == (4, 4)
    assert counts["b?", "no"] + counts["c?", "red"] == 8  # 8 of 13, as of the leaning ones
    assert [int(row.id) for row in kept] == sorted(int(row.id) for row in kept)
    assert balanced(rows) == kept != balanced(rows, seed=1)
    assert balanced(rows[13:]) == rows[13:]
