"""The paper's tables: whole, as printed, and own numbers beside the rows that they belong to."""

import json
from pathlib import Path

import pytest

from crome import cli
from crome.errors import InputError
from crome.studies.paper import gather, paper
from crome.studies.published import COLUMNS, TABLES

RECIPES = Path(__file__).parents[2] / "configs" / "recipes"


def report(path, task="scienceqa-img", value=0.912, unit="fraction", name=None, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    name = name or f"{task}/llava"
    metric = {"value": value, "n": 9, "unit": unit, "interval_95": [value - 0.01, value + 0.01]}
    path.write_text(json.dumps({"task": task, "metrics": {name: metric}, **more}))
    return path


@pytest.mark.parametrize("table", TABLES.values(), ids=map(str, TABLES))
def test_each_row_has_a_number_a_column_and_each_recipe_exists(table):
    for row in table.rows:
        assert len(row.numbers) == len(table.columns)
        if row.recipe:
            assert (RECIPES / f"{row.recipe}.yaml").is_file()


def test_numbers_that_the_text_of_the_paper_repeats():
    """Its leads: 36.2 on AI2D by tuning, 3.9 by the gate, 41.2 on MMMU with 13 B."""
    ai2d = [row.numbers[0] for row in TABLES[4].rows]
    assert round(ai2d[6] - ai2d[3], 1) == 36.2
    gate = [row.numbers for row in TABLES[5].rows]
    assert [round(b - a, 1) for a, b in zip(gate[1], gate[2], strict=True)] == [3.9, 3.9]
    assert max(row.numbers[0] for row in TABLES[1].rows if row.name == "CROME") == 41.2
    shared = {(r.name, r.about): r.numbers for r in TABLES[1].rows}
    for row in TABLES[2].rows:
        if (row.name, row.about) in shared:
            assert row.numbers == shared[row.name, row.about]


def test_own_numbers_stand_beside_the_row_of_their_recipe(tmp_path, capsys):
    report(tmp_path / "a" / "scores.json", checkpoint="/x/runs/vicuna-7b/instruct-d3")
    report(tmp_path / "b" / "scores.json", value=0.5, checkpoint="runs/vicuna-7b/instruct-d3",
           adapter="runs/vicuna-7b/scienceqa/adapter")  # fmt: skip
    report(tmp_path / "c" / "scores.json", checkpoint="crome-tiny")
    paper(3, [str(tmp_path)], json=True)
    rows = json.loads(capsys.readouterr().out)["rows"]
    here = {place: row["here"] for place, row in enumerate(rows) if row["here"]}
    assert {place: found["ScienceQA-IMG"]["value"] for place, found in here.items()} == {
        3: pytest.approx(91.2), 10: pytest.approx(50.0),
    }  # fmt: skip
    assert here[3]["ScienceQA-IMG"]["protocol"] == "scienceqa-img/llava"
    assert here[3]["ScienceQA-IMG"]["interval"] == pytest.approx([90.2, 92.2])


def test_a_row_may_be_named(tmp_path):
    file = report(tmp_path / "scores.json", "mme", 1300.0, "points", "mme/official/perception")
    own = gather(TABLES[1], [f"2={file}"])
    assert own[1]["MME P"].value == 1300.0
    assert list(own[1]) == ["MME P"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing"], r"no scores\.json at missing"),
        (["9={file}"], "which this table does not have"),
        (["99={file}"], "rows 1 to 11"),
        (["{odd}"], r"is no scores\.json"),
        (["1={science}", "1={science}"], "row 1 has ScienceQA-IMG from another file"),
    ],
)
def test_what_cannot_be_placed_is_named(tmp_path, words, message):
    files = {
        "file": report(tmp_path / "a" / "scores.json", "ai2d"),
        "science": report(tmp_path / "b" / "scores.json"),
        "odd": tmp_path / "odd.json",
    }
    files["odd"].write_text("[1]")
    with pytest.raises(InputError, match=message):
        gather(TABLES[3], [word.format(**files) for word in words])


def test_the_table_is_printed_with_what_would_fill_it(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    cli.main(["paper", "5"])
    said = capsys.readouterr().out
    assert "Table 5 of arXiv 2408.06610" in said
    assert "54.3" in said
    assert "crome train --config configs/recipes/ungated-vicuna-7b/instruct-d2.yaml" in said
    assert "--benchmark scienceqa-img" in said


def test_columns_are_benchmarks_that_there_are():
    from crome.evaluation.tasks import get_task

    assert all(get_task(column.task).name == column.task for column in COLUMNS.values())
