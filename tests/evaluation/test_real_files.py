"""Files as people have them: odd columns, types and layouts, and the number that is right."""

import json
from pathlib import Path
from typing import Any

import pytest

from crome.errors import InputError
from crome.evaluation.asking import require_pictures
from crome.evaluation.predictions import Prediction, read_predictions
from crome.evaluation.scoring import score_answers
from crome.evaluation.task import limited
from crome.evaluation.tasks import get_task, read_records


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def value(task: str, source: str, replies: dict[str, str], protocol: str | None = None) -> float:
    bench = get_task(task)
    predictions = {key: Prediction(key, response=text) for key, text in replies.items()}
    scores, _ = score_answers(bench, read_records(bench, source), predictions, protocol)
    return next(iter(scores.metrics.values())).value


@pytest.mark.parametrize(
    ("protocol", "gold", "reply", "right"),
    [
        (None, "red", "A", 1),
        (None, "red", "red", 1),
        (None, "red", "(B)", 0),
        (None, "red", "<think>B? no</think>A", 1),
        ("vqa-accuracy", "red", "A.", 1),
        ("classes", "red", "A", 1),
        ("letter", "red", "red", 1),
        ("letter", "blue", "(B)", 1),
        ("letter", "blue", "blue", 1),
        ("tolerant", "red", "Answer: **A**", 1),
        ("tolerant", "blue", "答案是B", 1),
    ],
)
def test_rows_with_choices_take_letter_and_text(
    tmp_path: Path, protocol: str | None, gold: str, reply: str, right: float
) -> None:
    row = {"id": "1", "question": "Colour?", "answer": gold, "choices": ["red", "blue"]}
    assert value("rows", lines(tmp_path / "r.jsonl", [row]), {"1": reply}, protocol) == right


def test_bird_is_no_letter_b(tmp_path: Path) -> None:
    for gold, right in (("bird", 1), ("dog", 0)):
        row = {"id": "1", "question": "?", "answer": gold, "choices": ["bird", "dog", "cat"]}
        source = lines(tmp_path / "r.jsonl", [row])
        assert value("rows", source, {"1": "bird"}, "letter") == right


def test_letters_go_by_position(tmp_path: Path) -> None:
    row = {"id": "1", "question": "?", "answer": "B", "choices": ["B", "A"]}
    source = lines(tmp_path / "r.jsonl", [row])
    assert value("rows", source, {"1": "A"}, "letter") == 1
    assert value("rows", source, {"1": "B"}, "letter") == 0


def test_constant_answers_follow_the_same_rule(tmp_path: Path) -> None:
    rows = [
        {"id": "1", "question": "?", "answer": "red", "choices": ["red", "blue"]},
        {"id": "2", "question": "?", "answer": "red", "choices": ["blue", "red"]},
    ]
    task = get_task("rows")
    records = read_records(task, lines(tmp_path / "r.jsonl", rows))
    for protocol in ("exact-match", "vqa-accuracy", "letter", "classes"):
        _, baselines = score_answers(task, records, {}, protocol)
        assert baselines["always red"][f"rows/{protocol}"] == 1
        assert baselines["always A"][f"rows/{protocol}"] == 0.5


@pytest.mark.parametrize("column", ["image_path", "img", "file_name"])
def test_pictures_under_other_columns_are_found(tmp_path: Path, column: str) -> None:
    mmbench = tmp_path / "m.tsv"
    mmbench.write_text(f"index\tquestion\tA\tB\tanswer\t{column}\n1\tq\tx\ty\tA\ta.png\n")
    ai2d = lines(
        tmp_path / "a.jsonl",
        [{"id": 1, "question": "q", "options": ["x", "y"], "answer": 0, column: "a.png"}],
    )
    for name, source in (("mmbench", str(mmbench)), ("ai2d", ai2d)):
        records = read_records(get_task(name), source)
        assert {record["images"] for record in records} == {("a.png",)}


def test_a_benchmark_of_pictures_without_any_is_refused(tmp_path: Path) -> None:
    row = {"question_id": 1, "question": "q", "options": ["x", "y"], "answer": 0, "bild": "a.png"}
    task = get_task("ai2d")
    records = read_records(task, lines(tmp_path / "a.jsonl", [row]))
    with pytest.raises(InputError, match=r"1 of 1 records of ai2d have no picture.*image_path"):
        require_pictures(task, records)
    text = {"id": "1", "question": "q", "answer": "x"}
    rows = get_task("rows")
    require_pictures(rows, read_records(rows, lines(tmp_path / "r.jsonl", [text])))


@pytest.mark.parametrize("options", ["['krill', 'whale']", '{"A": "krill", "B": "whale"}'])
def test_options_from_a_table_s_cell(tmp_path: Path, options: str) -> None:
    quoted = options.replace('"', '""')
    file = tmp_path / "a.csv"
    file.write_text(f'id,question,options,answer,image\n1,Which?,"{quoted}",B,a.png\n')
    (record,) = read_records(get_task("ai2d"), str(file))
    assert record["options"] == {"A": "krill", "B": "whale"}
    file.write_text(f'id,question,choices,answer,image\n1,Which?,"{quoted}",1.0,a.png\n')
    (record,) = read_records(get_task("scienceqa"), str(file))
    assert (record["options"], record["answer"]) == ({"A": "krill", "B": "whale"}, "B")


def test_annotators_from_a_table_s_cell_and_a_bare_text(tmp_path: Path) -> None:
    file = tmp_path / "v.csv"
    answers = "['red', 'red', 'red', 'red', 'red', 'red', 'red', 'red', 'red', 'blue']"
    file.write_text(f'question_id,question,answers,image\n1,?,"{answers}",a.png\n')
    assert value("vqav2", str(file), {"1": "red"}) == 100
    file.write_text("question_id,question,answers,image\n1,?,red,a.png\n")
    (record,) = read_records(get_task("vqav2"), str(file))
    assert record["answers"] == ("red",)


def test_few_annotators_are_told(tmp_path: Path) -> None:
    task = get_task("vqav2")
    source = lines(tmp_path / "v.jsonl", [{"question_id": 1, "answers": ["red"] * 3}])
    said = {"1": Prediction("1", response="red")}
    scores, _ = score_answers(task, read_records(task, source), said)
    (warning,) = scores.warnings
    assert "fewer than 10 annotators (down to 3)" in warning
    assert "scores 67 %" in warning


def test_missing_options_are_no_options(tmp_path: Path) -> None:
    row = '{"question_id": 1, "question": "q", "answer": "B", "image": "a.png", '
    (tmp_path / "s.jsonl").write_text(
        row + '"choice_a": "x", "choice_b": "y", "choice_c": NaN, "choice_d": null}\n'
    )
    (record,) = read_records(get_task("seed-image"), str(tmp_path / "s.jsonl"))
    assert record["options"] == {"A": "x", "B": "y"}


def test_incomplete_circular_groups_are_no_complete_ones(tmp_path: Path) -> None:
    texts = {"A": "a1", "B": "b2", "C": "c3", "D": "d4"}
    shifted = {"A": "d4", "B": "a1", "C": "b2", "D": "c3"}
    rows = [
        {"index": 5, "question": "q", "answer": "A", "image": "x.png", **texts},
        {"index": 1000005, "question": "q", "answer": "B", "image": "x.png", **shifted},
    ]
    task = get_task("mmbench")
    records = read_records(task, lines(tmp_path / "m.jsonl", rows))
    assert [r["id"] for r in records] == ["5", "1000005", "2000005", "3000005"]
    said = {"5": Prediction("5", response="A"), "1000005": Prediction("1000005", response="B")}
    scores, _ = score_answers(task, records, said)
    assert scores.metrics["mmbench/circular-rules"].value == 0
    with pytest.raises(InputError, match="question 5 has no pass 0"):
        read_records(task, lines(tmp_path / "m.jsonl", rows[1:]))


def test_a_last_option_that_stays_in_place_needs_no_pass(tmp_path: Path) -> None:
    """53 released questions rotate all options but the last."""
    orders = ("xyzN", "zxyN", "yzxN")
    rows = [
        {"index": k * 10**6 + 7, "question": "q", "answer": "D", "image": "x.png"}
        | dict(zip("ABCD", order, strict=True))
        for k, order in enumerate(orders)
    ]
    records = read_records(get_task("mmbench"), lines(tmp_path / "m.jsonl", rows))
    assert len(records) == 3


def test_a_limit_counts_questions_and_cuts_no_group(tmp_path: Path) -> None:
    task = get_task("mmbench")
    table = tmp_path / "m.tsv"
    table.write_text(
        "index\tquestion\tA\tB\tanswer\timage\n"
        + "".join(f"{k}\tq\tx\ty\tA\ta.png\n" for k in range(5))
    )
    records = limited(task, read_records(task, str(table)), 2)
    assert sorted(int(r["id"]) for r in records) == [0, 1, 1000000, 1000001]
    said = {r["id"]: Prediction(r["id"], response="A") for r in records}
    assert score_answers(task, records, said)[0].metrics["mmbench/circular-rules"].value == 0
    mme = get_task("mme")
    (tmp_path / "existence.txt").write_text(
        "".join(f"{k}.jpg\tq\t{answer}\n" for k in range(3) for answer in ("Yes", "No"))
    )
    for limit, kept in ((1, 2), (2, 2), (3, 4), (None, 6)):
        assert len(limited(mme, read_records(mme, str(tmp_path)), limit)) == kept


def test_an_mme_image_with_one_question_has_no_acc_plus(tmp_path: Path) -> None:
    (tmp_path / "count.txt").write_text("1.jpg\tq\tYes\n1.jpg\tr\tNo\n2.jpg\tq\tYes\n")
    with pytest.raises(InputError, match=r"count/2\.jpg has 1 of MME's two questions"):
        value("mme", str(tmp_path), {})


FIGURE = {
    "category": "VD", "subcategory": "chart", "set_id": 3.0, "figure_id": 1.0, "question_id": "0",
    "visual_input": 1.0, "question": "?", "gt_answer_details": "", "filename": "./a.png",
}  # fmt: skip


@pytest.mark.parametrize(
    ("gold", "answer"), [(1.0, "yes"), (True, "yes"), ("yes", "yes"), ("1", "yes"), (0.0, "no")]
)
def test_gold_values_of_any_type(tmp_path: Path, gold: Any, answer: str) -> None:
    source = lines(tmp_path / "h.jsonl", [FIGURE | {"gt_answer": gold}])
    (record,) = read_records(get_task("hallusionbench"), source)
    assert (record["answer"], record["id"]) == (answer, "VD_chart_3_1_0")


def test_a_gold_value_that_is_neither_is_refused(tmp_path: Path) -> None:
    source = lines(tmp_path / "h.jsonl", [FIGURE | {"gt_answer": "maybe"}])
    with pytest.raises(InputError, match=r"h\.jsonl, record 1: expected yes or no .*'maybe'"):
        read_records(get_task("hallusionbench"), source)


def test_mmmu_refuses_a_question_type_it_does_not_know(tmp_path: Path) -> None:
    row = {"id": "validation_Art_1", "question": "q", "answer": "A", "question_type": "multi"}
    with pytest.raises(InputError, match="question_type 'multi' is none of multiple-choice"):
        read_records(get_task("mmmu"), lines(tmp_path / "m.jsonl", [row]))


def test_official_result_layouts(tmp_path: Path) -> None:
    hallusion = tmp_path / "h.json"
    hallusion.write_text(json.dumps([FIGURE | {"gt_answer": "1", "model_prediction": "Yes."}]))
    reader = get_task("hallusionbench").predictions
    assert reader is not None
    assert reader(str(hallusion)) == [Prediction("VD_chart_3_1_0", response="Yes.")]
    vqa = tmp_path / "v.json"
    vqa.write_text('[{"question_id": 7, "answer": "red"}]')
    assert read_predictions(vqa) == [Prediction("7", response="red")]
    coco = tmp_path / "c.json"
    coco.write_text('[{"image_id": 9, "caption": "A dog."}]')
    assert read_predictions(coco) == [Prediction("9", response="A dog.")]


def test_sample_logs_of_lmms_eval(tmp_path: Path) -> None:
    rows = [
        {"doc_id": 0, "doc": {"question_id": "OCR/1.jpg"}, "resps": [["Yes"]],
         "filtered_resps": ["yes"], "target": "Yes"},
        {"doc_id": 1, "doc": {"question_id": "OCR/1.jpg"}, "resps": [["No"]],
         "filtered_resps": ["no"], "target": "No"},
    ]  # fmt: skip
    reader = get_task("mme").predictions
    assert reader is not None
    found = reader(lines(tmp_path / "samples_mme.jsonl", rows))
    assert [(p.id, p.response) for p in found] == [("OCR/1.jpg/1", "Yes"), ("OCR/1.jpg/2", "No")]


def test_a_workbook_of_predictions(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl", reason="no openpyxl: crome[sheets]")
    book = openpyxl.Workbook()
    for row in (["index", "question", "prediction"], [1, "q", "A"], [1000001, "q", None]):
        book.active.append(row)
    book.save(tmp_path / "p.XLSX")
    found = read_predictions(tmp_path / "p.XLSX")
    assert [(p.id, p.response) for p in found] == [("1", "A"), ("1000001", "")]


def test_the_response_is_not_the_question_beside_it(tmp_path: Path) -> None:
    row = {"question_id": 1, "text": "Which colour?", "prediction": "red", "answer": "blue"}
    assert read_predictions(lines(tmp_path / "p.jsonl", [row])) == [Prediction("1", response="red")]


@pytest.mark.parametrize("name", ["P.JSONL", "p.Json", "P.TSV"])
def test_endings_of_any_case(tmp_path: Path, name: str) -> None:
    contents = {
        "json": '[{"id": 1, "response": "A"}]',
        "jsonl": '{"id": 1, "response": "A"}\n',
        "tsv": "id\tresponse\n1\tA\n",
    }
    path = tmp_path / name
    path.write_text(contents[name.rpartition(".")[2].lower()])
    assert read_predictions(path) == [Prediction("1", response="A")]


def test_too_many_cells_and_empty_captions_are_named(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("a,b\n5,A,x\n")
    with pytest.raises(InputError, match=r"t\.csv:2: 3 cells under 2 columns \(a, b\)"):
        read_predictions(table)
    for task in ("mmbench", "vqav2", "captions"):
        with pytest.raises(InputError, match="3 cells under 2 columns"):
            read_records(get_task(task), str(table))
    source = lines(tmp_path / "c.jsonl", [{"id": 1, "image": "a.png", "captions": []}])
    with pytest.raises(InputError, match="image 1 has no captions"):
        read_records(get_task("captions"), source)


def test_half_a_surrogate_pair_reaches_no_scorer(tmp_path: Path) -> None:
    seen = []
    task = get_task("vqav2")
    records = read_records(task, lines(tmp_path / "v.jsonl", [
        {"question_id": 1, "question": "\ud800?", "answers": ["red"] * 10},
    ]))  # fmt: skip
    assert records[0]["question"] == "\ufffd?"
    said = {"1": Prediction("1", response="\ud800")}
    chosen = task.protocols["official"]
    spy = type(chosen)(lambda r, p: seen.append(p.response) or "x", chosen.tally)
    score_answers(type(task)(**{**vars(task), "protocols": {"official": spy}}), records, said)
    assert seen == ["\ufffd"]


def test_broken_json_is_an_interrupted_run_only_at_a_cut_last_line(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": 1, "response": "A"}\n{"id"')
    with pytest.raises(InputError, match="no line break, as after an interrupted run"):
        read_predictions(path)
    for content in ('{"id"\n{"id": 1, "response": "A"}\n', '{"id": 1, "respo\n'):
        path.write_text(content)
        with pytest.raises(InputError, match="not JSON") as refusal:
            read_predictions(path)
        assert "interrupted" not in str(refusal.value)


def test_unreadable_replies_are_told(tmp_path: Path) -> None:
    task = get_task("seed-image")
    row = {"answer": "A", "image": "a.png", "choice_a": "x", "choice_b": "y"}
    rows = [row | {"question_id": str(k)} for k in range(4)]
    records = read_records(task, lines(tmp_path / "s.jsonl", rows))
    said = {str(k): Prediction(str(k), response="I think **A**") for k in range(4)}
    scores, _ = score_answers(task, records, said)
    assert scores.metrics["seed-image/generate"].value == 0
    (warning,) = scores.warnings
    assert "4 of 4 responses could not be read by generate" in warning
    assert "--protocol tolerant" in warning
    scores, _ = score_answers(task, records, said, "tolerant")
    assert scores.metrics["seed-image/tolerant"].value == 1


@pytest.mark.parametrize("task", ["mmmu", "mmbench", "seed-image", "scienceqa", "ai2d", "rows"])
def test_every_multiple_choice_task_has_a_tolerant_protocol(task: str) -> None:
    tolerant = [name for name in get_task(task).protocols if "tolerant" in name]
    record = {"options": {"A": "x", "B": "y"}, "answer": "B", "accepted": ["y"], "choice": True}
    parse = get_task(task).protocols[tolerant[0]].parse
    for reply in ("**B**", "Answer: B", "答案是B", r"\boxed{B}", "Since x is wrong:\n\nB"):
        assert parse(record, Prediction("1", response=reply)) == "B"
