import json
from pathlib import Path

import pytest

from crome.errors import InputError
from crome.evaluation.predictions import Prediction
from crome.evaluation.scoring import score_answers
from crome.evaluation.task import Record
from crome.evaluation.tasks import hallusionbench
from crome.evaluation.tasks.hallusionbench import RIGHT, UNCLEAR, WRONG


def row(figure: int, question: int, gold: int, visual: int, category: str = "VS") -> dict:
    return {
        "category": category,
        "subcategory": "chart",
        "set_id": "3",
        "figure_id": str(figure),
        "question_id": str(question),
        "visual_input": str(visual),
        "question": "Is it the tallest?",
        "gt_answer": str(gold),
        "gt_answer_details": "It is the tallest.",
        "filename": f"./VS/chart/3_{figure}.png" if visual else None,
    }


def records(tmp_path: Path) -> list[Record]:
    rows = [row(0, 0, 1, 0), row(0, 1, 0, 0), row(1, 0, 1, 1), row(1, 1, 0, 1)]
    rows += [row(2, 0, 0, 2), row(2, 1, 0, 2)]
    file = tmp_path / "HallusionBench.json"
    file.write_text(json.dumps(rows))
    return hallusionbench.HALLUSIONBENCH.read(str(file))


def test_reads_the_released_file(tmp_path: Path) -> None:
    first, *_, last = records(tmp_path)
    assert (first["id"], first["images"], first["text_only"]) == ("VS_chart_3_0_0", (), True)
    assert (last["images"], last["answer"]) == (("VS/chart/3_2.png",), "no")
    assert hallusionbench.HALLUSIONBENCH.question(last, "official").prompt == "Is it the tallest?"


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("Yes, it is.", "yes"),
        ("NO", "no"),
        ("Yes and no", None),
        ("I know nothing", None),
        ("It is not", None),
        ("", None),
    ],
)
def test_parse(response: str, answer: str | None) -> None:
    assert hallusionbench.parse({}, Prediction("1", response=response)) == answer


def test_unclear_is_right_only_where_there_is_nothing_to_see(tmp_path: Path) -> None:
    rows = records(tmp_path)
    scores = hallusionbench.from_codes("h", rows, {r["id"]: UNCLEAR for r in rows})
    values = {name: m.value for name, m in scores.metrics.items()}
    assert values["h/aAcc"] == pytest.approx(100 / 3)
    assert values["h/qAcc"] == 0
    assert values["h/fAcc"] == 0
    assert values["h/easy"] == 0


def test_pairs_figures_easy_and_hard(tmp_path: Path) -> None:
    rows = records(tmp_path)
    codes = {r["id"]: RIGHT for r in rows} | {"VS_chart_3_2_0": WRONG}
    scores = hallusionbench.from_codes("h", rows, codes)
    values = {name: (m.value, m.n) for name, m in scores.metrics.items()}
    assert values["h/aAcc"] == (pytest.approx(500 / 6), 6)
    assert values["h/qAcc"] == (50, 2)
    assert values["h/fAcc"] == (50, 2)  # the text-only records are no figure
    assert values["h/easy"] == (100, 2)
    assert values["h/hard"] == (50, 2)
    assert values["h/mean"] == (pytest.approx(550 / 9), 6)


def test_the_two_readings_have_two_names(tmp_path: Path) -> None:
    rows = records(tmp_path)
    said = {r["id"]: Prediction(r["id"], response="no") for r in rows}
    images, baselines = score_answers(hallusionbench.HALLUSIONBENCH, rows, said)
    assert images.metrics["hallusionbench/yes-no-4/aAcc"].n == 4
    every, _ = score_answers(hallusionbench.HALLUSIONBENCH, rows, said, "yes-no-all")
    assert every.metrics["hallusionbench/yes-no-all-6/aAcc"].value == pytest.approx(400 / 6)
    assert baselines["always no"]["hallusionbench/yes-no-4/aAcc"] == 75


def test_a_set_without_one_of_its_questions_is_refused(tmp_path: Path) -> None:
    rows = records(tmp_path)[:-1]
    said = {r["id"]: Prediction(r["id"], response="no") for r in rows}
    message = "set VS_chart_3 has 5 records for 2 questions on 3 figures"
    for protocol in ("yes-no", "yes-no-all"):
        with pytest.raises(InputError, match=message):
            score_answers(hallusionbench.HALLUSIONBENCH, rows, said, protocol)
    with pytest.raises(InputError, match=message):
        hallusionbench.tally_verdicts("j", rows, [{r["id"]: RIGHT for r in rows}])
    # The records with an image are a release of their own, and complete without the others.
    images = [r for r in records(tmp_path) if not r["text_only"]]
    score_answers(hallusionbench.HALLUSIONBENCH, images, said | {images[-1]["id"]: Prediction("")})


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ("Correct", RIGHT),
        ("incorrect.", WRONG),
        ("It is unclear.", UNCLEAR),
        ("Sorry, I cannot help with that", None),
    ],
)
def test_parse_verdict(reply: str, code: int | None) -> None:
    assert hallusionbench.parse_verdict(reply) == code


def test_messages_do_not_fill_in_twice(tmp_path: Path) -> None:
    record = records(tmp_path)[0]
    (message,) = hallusionbench.messages(record, "{question}", "Q {question} P {prediction}", 0)
    assert message["content"] == "Q Is it the tallest? P {question}"


def test_wording_needs_its_places(tmp_path: Path) -> None:
    file = tmp_path / "wording.txt"
    file.write_text("{question} {prediction}")
    with pytest.raises(InputError, match=r"lacks \{reference\}"):
        hallusionbench.rules(str(file))


def test_recorded_judgements(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text(json.dumps([row(0, 0, 1, 0) | {"gpt4v_output_gpt_check": "2"}]))
    assert hallusionbench.recorded([str(file)]) == ("recorded", [{"VS_chart_3_0_0": 2}])
    file.write_text(json.dumps([row(0, 0, 1, 0)]))
    with pytest.raises(InputError, match="no field ends with gpt_check"):
        hallusionbench.recorded([str(file)])
    with pytest.raises(InputError, match="judged once; these are 2 runs"):
        hallusionbench.tally_verdicts("j", [], [{}, {}])
