import json
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from crome.errors import InputError
from crome.evaluation.calibration import false_positives
from crome.evaluation.compare import compare
from crome.evaluation.paired import paired
from crome.evaluation.predictions import read_predictions
from crome.evaluation.verdicts import VerdictStore


def test_paired_scores_are_compared_by_the_t_test() -> None:
    generator = np.random.default_rng(0)
    for scores in (generator.random((2, 60)), generator.integers(0, 2, (2, 60)).astype(float)):
        a, b = ({str(k): float(x) for k, x in enumerate(row)} for row in scores)
        found = paired(a, b)
        expected = stats.ttest_rel(scores[1], scores[0])
        assert found.test == "paired t test"
        assert found.p_value == pytest.approx(expected.pvalue)
        assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
        assert (found.n, found.pictures) == (60, 60)
        assert found.gained == tuple(str(k) for k in range(60) if scores[1, k] > scores[0, k])


def test_rows_on_one_picture_count_together() -> None:
    change = [1, 0, 0, 1, 0, -1, 0, 1]  # of each picture, the same for its five questions
    a = {f"{p}-{k}": 0.0 for p in range(8) for k in range(5)}
    b = {f"{p}-{k}": float(change[p]) for p in range(8) for k in range(5)}
    pictures = {i: i[0] for i in a}
    found = paired(a, b, pictures)
    assert found.test == "paired t test over 8 pictures"
    assert found.p_value == pytest.approx(stats.ttest_1samp(change, 0).pvalue)
    assert paired(a, b).p_value < 0.03 < 0.05 < found.p_value


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("n", [5, 10, 50])
def test_equal_runs_are_told_apart_in_five_percent_of_cases(n: int, clustered: bool) -> None:
    """The whole table is made by `benchmarks/compare.py`."""
    rate = false_positives("graded", n, clustered=clustered, fewest_pictures=2, draws=2000, seed=n)
    # 2,000 draws have a spread of 0.005; the tolerance is twice that over the one point.
    assert 0.03 < rate < 0.07


def test_no_level_near_five_percent_is_to_be_had_from_five_answers() -> None:
    """Between the outcomes that are rejected and the next one lies the level itself."""
    below, above = (
        false_positives("right or wrong", 5, clustered=False, level=level, draws=2000)
        for level in (0.05, 0.071)
    )
    assert below < 0.02
    assert above > 0.055


def test_scores_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1 rows have a score that is no number \(2\)"):
        paired({"1": 1.0, "2": 0.0}, {"1": 1.0, "2": float("nan")})
    good = lines(tmp_path / "a.jsonl", [{"id": "1", "score": 1}])
    for bad in ("NaN", "Infinity", "true", '"1"', "null"):
        (tmp_path / "b.jsonl").write_text(f'{{"id": "1", "score": {bad}}}\n')
        with pytest.raises(InputError, match=r"b\.jsonl:1: the score must be a finite number"):
            compare(good, str(tmp_path / "b.jsonl"))


def test_ids_of_rows_are_those_of_every_reader(tmp_path: Path, capsys) -> None:
    whole = lines(tmp_path / "a.jsonl", [{"id": 1.0, "score": 1}, {"id": "x ", "score": 0}])
    text = lines(tmp_path / "b.jsonl", [{"id": "1", "score": 1}, {"id": "x", "score": 0}])
    compare(whole, text)
    assert json.loads(capsys.readouterr().out)["n"] == 2
    with pytest.raises(InputError, match=r"a\.jsonl:1: expected an id, found None"):
        compare(lines(tmp_path / "a.jsonl", [{"id": None, "score": 1}]), text)


def test_scores_too_far_apart_for_a_float_are_refused() -> None:
    with pytest.raises(InputError, match="score that is no number"):
        paired({"1": 1e308, "2": 0.0}, {"1": -1e308, "2": 0.0})


@pytest.mark.parametrize("b", [{"1": 1.0}, {"1": 1.0, "2": 0.0, "3": 0.0}, {}])
def test_other_rows_are_refused(b: dict[str, float]) -> None:
    with pytest.raises(InputError, match="not on the same rows"):
        paired({"1": 1.0, "2": 0.0}, b)
    with pytest.raises(InputError, match="not on the same rows"):
        paired({}, {})


def lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_compare_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gold = [{"question_id": str(k), "gt_answer": "A"} for k in range(4)]
    a = [{"id": str(k), "response": "AB"[k % 2]} for k in range(4)]
    b = [{"id": str(k), "response": "A"} for k in range(4)]
    paths = [
        lines(tmp_path / f"{n}.jsonl", rows) for n, rows in zip("gab", (gold, a, b), strict=True)
    ]
    compare(paths[1], paths[2], task="seed-image", references=paths[0])
    report = json.loads(capsys.readouterr().out)
    assert report["difference"] == 0.5
    assert report["gained"] == [{"id": "1", "a": "B", "b": "A"}, {"id": "3", "a": "B", "b": "A"}]
    assert report["lost"] == []
    assert report["differ"] is False
    compare(paths[1], paths[2], task="seed-image", references=paths[0], json=False)
    assert "paired t test p = 0.18" in capsys.readouterr().out
    lines(tmp_path / "b.jsonl", b[1:])
    with pytest.raises(InputError, match=r"1 missing \(0\)"):
        compare(paths[1], paths[2], task="seed-image", references=paths[0])
    compare(paths[1], paths[2], task="seed-image", references=paths[0], on_bad_id="report")
    assert json.loads(capsys.readouterr().out)["lost"] == [{"id": "0"}]


def test_brackets_in_responses_are_no_markup(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gold = lines(tmp_path / "gold.jsonl", [{"question_id": "1", "gt_answer": "A"}])
    a = lines(tmp_path / "a.jsonl", [{"id": "1", "response": "[/x] [red]"}])
    b = lines(tmp_path / "b.jsonl", [{"id": "1", "response": "A"}])
    compare(a, b, task="seed-image", references=gold, json=False)
    assert "[/x] [red]" in capsys.readouterr().out


def test_half_a_surrogate_pair_can_be_printed(tmp_path: Path) -> None:
    gold = lines(tmp_path / "gold.jsonl", [{"question_id": "1", "gt_answer": "A"}])
    a = lines(tmp_path / "a.jsonl", [{"id": "1", "response": "\ud800"}])
    b = lines(tmp_path / "b.jsonl", [{"id": "1", "response": "A"}])
    with (tmp_path / "out").open("w", encoding="utf-8") as out, redirect_stdout(out):
        compare(a, b, task="seed-image", references=gold, json=False)
    assert "\ufffd" in (tmp_path / "out").read_text(encoding="utf-8")


def test_compare_row_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = lines(tmp_path / "a.jsonl", [{"id": "1", "score": 0.2}, {"id": "2", "score": 1}])
    b = lines(tmp_path / "b.jsonl", [{"id": "1", "score": 0.4}, {"id": "2", "score": 1}])
    compare(a, b)
    report = json.loads(capsys.readouterr().out)
    assert report["gained"] == [{"id": "1"}]
    assert report["test"] == "paired t test"


def test_compare_refuses_what_it_cannot_pair(tmp_path: Path) -> None:
    scores = lines(tmp_path / "a.jsonl", [{"id": "1", "score": 1}])
    predictions = lines(tmp_path / "p.jsonl", [{"id": "1", "response": "A"}])
    twice = lines(tmp_path / "t.jsonl", [{"id": "1", "score": 1}] * 2)
    with pytest.raises(InputError, match="For predictions give --task and --references"):
        compare(scores, predictions)
    with pytest.raises(InputError, match="id '1' stands there twice"):
        compare(scores, twice)
    with pytest.raises(InputError, match="no such file"):
        compare(scores, str(tmp_path / "absent.jsonl"))
    with pytest.raises(InputError, match="both --task and --references"):
        compare(predictions, predictions, task="seed-image")
    with pytest.raises(InputError, match="mm-vet needs a judge"):
        compare(predictions, predictions, task="mm-vet", references=scores)


def test_a_page_with_the_runs_side_by_side(tmp_path: Path, capsys) -> None:
    Image.new("RGB", (28, 28), "red").save(tmp_path / "a.png")
    references = tmp_path / "rows.jsonl"
    rows = [
        {"id": str(k), "image": "a.png", "question": f"Which, {k}?", "answer": "red"}
        for k in range(4)
    ]
    references.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, said in (("old", "rrbb"), ("new", "brrb"), ("third", "rrrb")):
        lines = [
            {"id": str(k), "response": {"r": "red", "b": "blue"}[letter]}
            for k, letter in enumerate(said)
        ]
        (tmp_path / name).mkdir()
        file = tmp_path / name / "predictions.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    old, new, third = (str(tmp_path / n / "predictions.jsonl") for n in ("old", "new", "third"))
    page = tmp_path / "page.html"
    compare(
        old, new, more=[third], task="rows", references=str(references), report=page
    )  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert [(of["gained"][0]["id"], len(of["lost"])) for of in found] == [("2", 1), ("2", 0)]
    text = page.read_text()
    for shown in (
        "old",
        "new",
        "third",
        "Fixed: wrong before",
        "rows/exact-match",
        "paired t test",
    ):
        assert shown in text
    places = [text.index(f"Which, {k}?") for k in (0, 2, 3, 1)]  # what changed comes first
    assert places == sorted(places)
    assert "data:image/webp" in text


def test_judged_runs_are_compared_by_the_verdicts_beside_them(tmp_path: Path, capsys) -> None:
    entry = {"question": "What?", "answer": "red", "capability": ["rec"], "imagename": "1.png"}
    references = tmp_path / "mm-vet.json"
    references.write_text(json.dumps({f"v1_{k}": entry for k in range(3)}))

    def graded(name: str, grades: list[float], judge: str = "grader") -> str:
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps({f"v1_{k}": f"{name} {k}" for k in range(3)}))
        (tmp_path / f"{name}.verdicts.jsonl").unlink(missing_ok=True)
        store = VerdictStore(tmp_path / f"{name}.verdicts.jsonl", judge, "crome-1")
        for prediction, grade in zip(read_predictions(file), grades, strict=True):
            store.add(prediction, 1, grade, f"{grade}, {name} says {judge}")
        return str(file)

    settings = {"task": "mm-vet", "references": str(references), "report": tmp_path / "page.html"}
    old, new = graded("old", [0.0, 1.0, 0.5]), graded("new", [1.0, 1.0, 0.75])
    compare(old, new, **settings)
    found = json.loads(capsys.readouterr().out)
    assert found["difference"] == pytest.approx(1.25 / 3)
    assert [row["id"] for row in found["gained"]] == ["v1_0", "v1_2"]
    page = settings["report"].read_text()
    told = ("Fixed: wrong", "1.0, new says grader", "Better than", "0.75, new says grader")
    places = [page.index(text) for text in (*told, "1.0, old says grader")]
    assert places == sorted(places)
    with pytest.raises(InputError, match=r"graded differently: .*grader in wording crome-1"):
        compare(old, graded("new", [1.0, 1.0, 0.5], "another"), **settings)
    (tmp_path / "new.verdicts.jsonl").unlink()
    with pytest.raises(InputError, match=r"needs a judge: .*new\.verdicts\.jsonl is absent"):
        compare(old, new, **settings)


def test_a_page_needs_answers_to_show(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--report shows answers"):
        compare("a", "b", report=tmp_path / "page.html")
