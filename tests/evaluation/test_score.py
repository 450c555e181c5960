import csv
import json
from pathlib import Path
from typing import Any

import pytest

from crome.errors import InputError
from crome.evaluation.grading import Grading, is_judged, score_judged
from crome.evaluation.predictions import read_predictions
from crome.evaluation.score import score
from crome.evaluation.tasks import get_task

GOLD = [{"question_id": str(k), "gt_answer": "AB"[k % 2], "question": f"q{k}"} for k in range(4)]


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run(capsys: pytest.CaptureFixture[str], task: str, **arguments: Any) -> dict[str, Any]:
    score(task, **arguments)
    return json.loads(capsys.readouterr().out)


def files(tmp_path: Path, responses: list[str]) -> dict[str, str]:
    rows = [{"id": str(k), "response": text} for k, text in enumerate(responses)]
    return {
        "predictions": lines(tmp_path / "predictions.jsonl", rows),
        "references": lines(tmp_path / "gold.jsonl", GOLD),
    }


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run(capsys, "seed-image", **files(tmp_path, ["A", "B", "A", "\n\t?"]))
    metric = report["metrics"]["seed-image/generate"]
    assert metric["value"] == 0.75
    assert (metric["n"], metric["unit"]) == (4, "fraction")
    assert metric["interval_95"][0] < 0.75 < metric["interval_95"][1]
    assert report["counts"] == {"correct": 3, "unreadable": 1}
    assert report["baselines"] == {"always A": {"seed-image/generate": 0.5}}
    assert report["warnings"] == [
        "the references hold 4 records, seed-image has 14232 (image part): these numbers are not "
        "comparable with published ones"
    ]


def test_no_metric_without_its_protocol(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run(capsys, "seed-image", **files(tmp_path, list("AAAA")))
    assert all(name.startswith("seed-image/generate") for name in report["metrics"])


def test_bad_ids_are_refused_or_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = files(tmp_path, list("ABABAB"))
    with pytest.raises(InputError, match=r"2 unknown \(4, 5\)"):
        score("seed-image", **shown)
    shown = files(tmp_path, list("AB"))
    with pytest.raises(InputError, match=r"2 missing \(2, 3\)"):
        score("seed-image", **shown)
    report = run(capsys, "seed-image", on_bad_id="report", **shown)
    assert report["metrics"]["seed-image/generate"]["value"] == 0.5  # of all four
    assert report["counts"]["missing_ids"] == 2
    assert report["warnings"][0] == "2 prediction ids were missing: counted as wrong"


def test_unknown_protocol_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no protocol 'offical': choose from generate, rank"):
        score("seed-image", protocol="offical", **files(tmp_path, list("ABAB")))


def test_rows_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    score("seed-image", rows=str(rows), json=False, **files(tmp_path, list("AAAA")))
    assert "seed-image/generate" in capsys.readouterr().out
    written = [json.loads(line) for line in rows.read_text().splitlines()]
    assert written == [{"id": str(k), "score": float(k % 2 == 0)} for k in range(4)]


def test_export_and_submission(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = files(tmp_path, list("ABAB"))
    table = tmp_path / "out.tsv"
    score("seed-image", export=str(table), **shown)
    with table.open(newline="") as file:
        assert [row["prediction"] for row in csv.DictReader(file, delimiter="\t")] == list("ABAB")
    capsys.readouterr()
    hidden = tmp_path / "test.tsv"
    hidden.write_text("index\tquestion\tA\tB\tanswer\n1\tWhich?\tred\tblue\t\n")
    said = [{"index": i, "prediction": "A"} for i in (1, 1000001)]
    submission = {
        "predictions": lines(tmp_path / "p.jsonl", said),
        "references": str(hidden),
    }
    with pytest.raises(InputError, match="test answers are hidden"):
        score("mmbench", **submission)
    score("mmbench", export=str(table), **submission)
    out = capsys.readouterr()
    assert out.out == ""
    assert "2 rows" in out.err
    with table.open(newline="") as file:
        assert [row["index"] for row in csv.DictReader(file, delimiter="\t")] == ["1", "1000001"]


class Grader:
    """A judge that gives half a point and counts its calls."""

    name = "grader"
    calls = 0

    def __call__(
        self, messages: list[dict[str, str]], *, temperature: float, max_tokens: int
    ) -> str:
        self.calls += 1
        return "0.5"


@pytest.fixture
def vet(tmp_path: Path) -> dict[str, Any]:
    gold = {
        f"v1_{k}": {"question": "q", "answer": "a", "capability": ["rec"], "imagename": "1.png"}
        for k in range(4)
    }
    (tmp_path / "mm-vet.json").write_text(json.dumps(gold))
    (tmp_path / "said.json").write_text(json.dumps({key: "x" for key in gold}))
    task = get_task("mm-vet")
    return {
        "task": task,
        "records": task.read(str(tmp_path)),
        "predictions": {p.id: p for p in read_predictions(tmp_path / "said.json")},
        "predictions_path": tmp_path / "said.json",
    }


def test_a_judge_fills_the_store_once(vet: dict[str, Any], tmp_path: Path) -> None:
    judge = Grader()
    scores = score_judged(**vet, grading=Grading(runs=2, ask=judge))
    assert judge.calls == 8
    assert scores.metrics["mm-vet/grader[crome-1]x2"].value == 50
    assert scores.counts["missing_verdicts"] == 0
    again = score_judged(**vet, grading=Grading(runs=2, ask=judge))
    assert judge.calls == 8
    assert again.metrics == scores.metrics


def test_a_finished_store_is_scored_without_a_judge(
    vet: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score_judged(**vet, grading=Grading(runs=2, ask=Grader()))
    shown = {"predictions": str(tmp_path / "said.json"), "references": str(tmp_path)}
    store = tmp_path / "said.verdicts.jsonl"
    report = run(capsys, "mm-vet", verdicts=[str(store)], **shown)
    assert report["metrics"]["mm-vet/grader[crome-1]x2"]["value"] == 50
    store.write_bytes(store.read_bytes().split(b"\n", 1)[1])
    with pytest.raises(InputError, match=r"1 of 8 verdicts are missing \(v1_0 \(run 1\)\)"):
        score("mm-vet", verdicts=[str(store)], **shown)


def test_another_wording_has_another_name(vet: dict[str, Any], tmp_path: Path) -> None:
    wording = tmp_path / "wording.txt"
    wording.write_text("Grade it.")
    scores = score_judged(**vet, grading=Grading(prompt=str(wording), runs=1, ask=Grader()))
    (name,) = [key for key in scores.metrics if key.endswith("x1")]
    assert name.startswith("mm-vet/grader[wording-")
    wording.write_text("Grade it well.")
    again = score_judged(**vet, grading=Grading(prompt=str(wording), runs=1, ask=Grader()))
    assert name not in again.metrics


def test_a_judged_task_without_verdicts_says_what_it_needs(vet: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="mm-vet needs a judge: give --verdicts FILE"):
        score_judged(**vet, grading=Grading())


@pytest.mark.parametrize(("task", "protocol"), [("seed-image", None), ("hallusionbench", "yes-no")])
def test_a_judge_where_none_is_asked_is_refused(
    tmp_path: Path, task: str, protocol: str | None
) -> None:
    grading = Grading(verdicts=("v.jsonl",))
    with pytest.raises(InputError, match="needs no judge: leave out"):
        is_judged(get_task(task), protocol, grading)
    assert is_judged(get_task("hallusionbench"), "judge", Grading())
    assert is_judged(get_task("hallusionbench"), None, grading)
    assert not is_judged(get_task("hallusionbench"), None, Grading())


def test_several_stores_are_refused(vet: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="kept in one file, these are 2"):
        score_judged(**vet, grading=Grading(verdicts=("a.jsonl", "b.jsonl"), ask=Grader()))


def test_a_store_of_two_judges_is_refused(vet: dict[str, Any], tmp_path: Path) -> None:
    first, second = Grader(), Grader()
    second.name = "other"
    for judge in (first, second):
        score_judged(**vet, grading=Grading(runs=1, ask=judge))
    with pytest.raises(InputError, match="verdicts of 2 judges and wordings"):
        score_judged(**vet, grading=Grading(verdicts=(str(tmp_path / "said.verdicts.jsonl"),)))


def test_a_recorded_grading_that_lacks_a_record_is_refused(
    vet: dict[str, Any], tmp_path: Path
) -> None:
    grades = tmp_path / "grades.json"
    grade = {"model": ["m"], "content": ["1"], "score": [1.0]}
    grades.write_text(json.dumps({f"v1_{k}": grade for k in range(3)}))
    with pytest.raises(InputError, match=r"1 of 4 verdicts are missing \(v1_3 \(run 1\)\)"):
        score_judged(**vet, grading=Grading(verdicts=(str(grades),)))


def test_folders_of_what_is_written_are_made(tmp_path: Path) -> None:
    shown = files(tmp_path, list("ABAB"))
    rows, table = tmp_path / "new/rows.jsonl", tmp_path / "other/table.tsv"
    score("seed-image", rows=str(rows), export=str(table), **shown)
    assert rows.exists()
    assert table.exists()


@pytest.mark.parametrize("runs", [0, -1])
def test_a_judge_grades_at_least_once(tmp_path: Path, runs: int) -> None:
    with pytest.raises(InputError, match=f"judge_runs is {runs}; expected a number above 0"):
        score("mm-vet", predictions="p", references="r", judge="m", judge_runs=runs)
