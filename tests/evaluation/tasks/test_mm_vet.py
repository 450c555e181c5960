import json
from pathlib import Path

import pytest

from crome.errors import InputError
from crome.evaluation.tasks import mm_vet


def records() -> list[dict]:
    return [
        {
            "id": f"v1_{k}",
            "question": "What is on the desk?",
            "answer": "a lamp<AND>a pen<OR>pencil",
            "capabilities": ("ocr", "rec") if k else ("rec",),
            "images": (),
        }
        for k in range(2)
    ]


def test_reads_the_released_file(tmp_path: Path) -> None:
    row = {"imagename": "v1_0.png", "question": "q", "answer": "a", "capability": ["rec", "ocr"]}
    (tmp_path / "mm-vet.json").write_text(json.dumps({"v1_0": row}))
    (record,) = mm_vet.MM_VET.read(str(tmp_path))
    assert record["id"] == "v1_0"
    assert record["capabilities"] == ("ocr", "rec")
    assert record["images"] == ("images/v1_0.png",)
    assert mm_vet.MM_VET.question(record, "llava").prompt == "q"


def test_messages_complete_a_table_row() -> None:
    (message,) = mm_vet.messages(records()[0], "a lamp", "WORDING", 0)
    assert message == {
        "role": "user",
        "content": "WORDING\nWhat is on the desk? | a lamp <AND> a pen <OR> pencil | a lamp | ",
    }
    (again,) = mm_vet.messages(records()[0], "a lamp", None, 1)
    assert again["content"].startswith(mm_vet.OWN_PROMPT)
    assert again["content"].endswith("(digit): ")


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("0.5", 0.5),
        ("1.0 because", 1.0),
        (" 0\n", 0.0),
        ("1.5", None),
        ("-0.1", None),
        ("nan", None),
        ("half", None),
        ("", None),
    ],
)
def test_parse_verdict(reply: str, grade: float | None) -> None:
    assert mm_vet.parse_verdict(reply) == grade


def test_wording_from_the_official_script_which_is_not_run(tmp_path: Path) -> None:
    script = tmp_path / "evaluator.py"
    script.write_text('raise SystemExit("it was run")\nprompt = """Grade it."""\n')
    assert mm_vet.rules(str(script)) == "Grade it."
    script.write_text("x = 1\n")
    with pytest.raises(InputError, match="no text named `prompt`"):
        mm_vet.rules(str(script))
    script.write_text("prompt = (\n")
    with pytest.raises(InputError, match="not a Python script"):
        mm_vet.rules(str(script))
    with pytest.raises(InputError, match="no such file"):
        mm_vet.rules(str(tmp_path / "absent.txt"))


def test_tally_averages_runs_and_splits_capabilities() -> None:
    runs = [{"v1_0": 1.0, "v1_1": 0.0}, {"v1_0": 0.5, "v1_1": 0.5}]
    scores = mm_vet.tally_verdicts("judge", records(), runs)
    values = {name: m.value for name, m in scores.metrics.items()}
    assert values["mm-vet/judgex2"] == 50
    assert values["mm-vet/judgex2/run-1"] == 50
    assert values["mm-vet/judgex2/std"] == 0
    assert values["mm-vet/judgex2/rec"] == 50
    assert values["mm-vet/judgex2/ocr"] == 25
    assert values["mm-vet/judgex2/only rec"] == 75
    assert values["mm-vet/judgex2/only ocr+rec"] == 25
    assert scores.rows == {"v1_0": 0.75, "v1_1": 0.25}


def test_reads_official_grades(tmp_path: Path) -> None:
    file = tmp_path / "grades.json"
    grade = {"model": ["m", "m"], "content": ["1", "0"], "score": [1.0, 0.0]}
    short = {"model": ["m"], "content": ["1"], "score": [1.0]}
    file.write_text(json.dumps({"v1_0": grade, "v1_1": short}))
    assert mm_vet.recorded([str(file)]) == ("m", [{"v1_0": 1.0, "v1_1": 1.0}, {"v1_0": 0.0}])
    file.write_text('{"v1_0": "1.0"}')
    with pytest.raises(InputError, match="v1_0 has no list of scores"):
        mm_vet.recorded([str(file)])
