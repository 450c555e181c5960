"""Every published value in the shared evaluation data, reproduced by `crome score`.

The data may not be copied into the project, so these tests look for it beside the project, or where
CROME_SHARED_DATA points, and are skipped by name when it is absent. `test_every_value_was_compared`
says how many values ran, and fails when the file holds one that no test asked for.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from crome.evaluation.score import score
from crome.evaluation.tasks import get_task
from crome.evaluation.tasks.prompts import OPTION_LETTER

DATA = Path(
    os.environ.get("CROME_SHARED_DATA", Path(__file__).parents[2] / "../shared/data")
).resolve()
pytestmark = pytest.mark.skipif(
    not (DATA / "expected_scores.json").exists(),
    reason=f"0 published values compared: no evaluation data at {DATA} (set CROME_SHARED_DATA)",
)

compared: set[str] = set()


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Every number and text of nested JSON by its path."""
    if isinstance(value, dict):
        return {k: v for key, x in value.items() for k, v in leaves(x, f"{path}/{key}").items()}
    if isinstance(value, list):
        return {k: v for key, x in enumerate(value) for k, v in leaves(x, f"{path}/{key}").items()}
    return {path: value}


def expected() -> dict[str, Any]:
    return leaves(json.loads((DATA / "expected_scores.json").read_text()))


def check(path: str, found: float) -> None:
    """Compares with a published value after rounding to the digits it is printed with."""
    value = expected()[path]
    digits = len(str(value).partition(".")[2]) if isinstance(value, float) else 0
    assert round(found, digits) == value, f"{path}: found {found}, published {value}"
    compared.add(path)


def run(capsys: pytest.CaptureFixture[str], task: str, **arguments: Any) -> dict[str, Any]:
    paths = {"predictions", "references"}
    given = {k: str(DATA / v) if k in paths else v for k, v in arguments.items()}
    capsys.readouterr()
    score(task, **given)
    report = json.loads(capsys.readouterr().out)
    report["values"] = {name: metric["value"] for name, metric in report["metrics"].items()}
    return report


def test_mmmu(capsys: pytest.CaptureFixture[str]) -> None:
    responses = "mmmu/val_responses_llava1.5_13b.jsonl"
    report = run(capsys, "mmmu", predictions=responses, references=responses)
    values, counts = report["values"], report["counts"]
    check("/mmmu/n", report["records"])
    check("/mmmu/n_multiple_choice", counts["multiple_choice"])
    check("/mmmu/n_open", counts["open"])
    official = "/mmmu/official_from_responses_seed42/llava1.5_13b"
    check(f"{official}/acc", values["mmmu/official"])
    check(f"{official}/correct", counts["correct"])
    check(
        "/mmmu/multiple_choice_correct_without_random_guesses/llava1.5_13b",
        counts["multiple_choice_correct_without_guesses"],
    )
    check("/mmmu/multiple_choice_sent_to_random_guess/llava1.5_13b", counts["random_guesses"])
    for path in expected():
        if path.startswith("/mmmu/domains_llava1.5_13b/"):
            check(path, values[f"mmmu/official/{path.rpartition('/')[2]}"])
    parsed = run(
        capsys,
        "mmmu",
        predictions="mmmu/val_parsed_llava1.5_13b.json",
        references="mmmu/answer_dict_val.json",
        protocol="parsed",
    )
    check("/mmmu/official_from_parsed/llava1.5_13b", parsed["values"]["mmmu/parsed"])


def test_mme(capsys: pytest.CaptureFixture[str]) -> None:
    report = run(
        capsys, "mme", predictions="mme/responses_llava-v1.5-13b", references="mme/questions_gt"
    )
    for path in expected():
        if path.startswith("/mme/"):
            check(path, report["values"][f"mme/official/{path.rpartition('/')[2]}"])


def test_mmbench(capsys: pytest.CaptureFixture[str]) -> None:
    file = "mmbench/dev_20230712_llava-v1.5-13b.jsonl"
    report = run(capsys, "mmbench", predictions=file, references=file)
    vanilla = run(capsys, "mmbench", predictions=file, references=file, protocol="vanilla-rules")
    where = "/mmbench_dev_20230712/llava-v1.5-13b"
    check(f"{where}/n_questions", report["counts"]["questions"])
    check(f"{where}/n_passes", report["counts"]["passes"])
    check(f"{where}/circular_correct", report["counts"]["correct"])
    check(f"{where}/circular_acc", report["values"]["mmbench-dev-20230712/circular-rules"])
    check(
        f"{where}/vanilla_acc_first_pass", vanilla["values"]["mmbench-dev-20230712/vanilla-rules"]
    )


@pytest.mark.parametrize("size", ["7b", "13b"])
def test_mm_vet(capsys: pytest.CaptureFixture[str], size: str) -> None:
    report = run(
        capsys,
        "mm-vet",
        predictions=f"mm-vet/responses_llava-v1.5-{size}.json",
        references="mm-vet/mm-vet.json",
        verdicts=[str(DATA / f"mm-vet/gpt4_grades_3runs_llava-v1.5-{size}.json")],
    )
    name, where = "mm-vet/gpt-4x3", f"/mm-vet/llava-v1.5-{size}"
    check("/mm-vet/n", report["records"])
    check(f"{where}/mean", report["values"][name])
    check(f"{where}/std", report["values"][f"{name}/std"])
    for k in range(3):
        check(f"{where}/runs/{k}", report["values"][f"{name}/run-{k + 1}"])
    for capability in ("rec", "ocr", "know", "gen", "spat", "math"):
        check(f"{where}/caps/{capability}", report["values"][f"{name}/{capability}"])


def test_llava_bench(capsys: pytest.CaptureFixture[str]) -> None:
    folder = "llava-bench-in-the-wild"
    report = run(
        capsys,
        "llava-w",
        predictions=f"{folder}/answers_llava-v1.5-13b.jsonl",
        references=folder,
        verdicts=[
            str(DATA / folder / f"gpt4_reviews_llava-v1.5-13b-eval{k}.jsonl") for k in (1, 2, 3)
        ],
        judge="gpt-4-0314",
    )
    name, where = "llava-w/gpt-4-0314x3", f"/{folder}/llava-v1.5-13b"
    check(f"{where}/mean_all", report["values"][name])
    for k in (1, 2, 3):
        check(f"{where}/eval{k}/all", report["values"][f"{name}/run-{k}"])
        for category in ("conv", "detail", "complex"):
            check(f"{where}/eval{k}/{category}", report["values"][f"{name}/run-{k}/{category}"])


def test_seed_bench(capsys: pytest.CaptureFixture[str]) -> None:
    gold = "seed-bench/seed1_gpt4v_predictions_with_gt.jsonl"
    llava = "seed-bench/seed1_predictions_llava-v1.5-13b.jsonl"
    # Eight ids stand in the GPT-4V file twice, and image-only scoring leaves video ids over.
    shown = {"references": gold, "on_bad_id": "report"}
    gpt4v = run(capsys, "seed-image", predictions=gold, **shown)
    everything = run(capsys, "seed-all", predictions=gold, **shown)
    other = run(capsys, "seed-image", predictions=llava, **shown)
    name, where = "seed-image/generate", "/seed-bench-1"
    check(f"{where}/n_image", gpt4v["records"])
    check(f"{where}/gpt4v/image_acc", gpt4v["values"][name])
    check(
        f"{where}/gpt4v/all_acc_unique_17989_questions", everything["values"]["seed-all/generate"]
    )
    check(f"{where}/llava-v1.5-13b/image_acc", other["values"][name])


def test_scienceqa(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {
        "predictions": "scienceqa/zero_shot_responses_llava-v1.5-13b.jsonl",
        "references": "scienceqa/llava_test_CQM-A.json",
    }
    report = run(capsys, "scienceqa", **shown)
    images = run(capsys, "scienceqa-img", on_bad_id="report", **shown)
    where = "/scienceqa_test"
    check(f"{where}/n", report["records"])
    check(f"{where}/n_image", report["metrics"]["scienceqa/llava/IMG"]["n"])
    check(f"{where}/zero_shot_llava-v1.5-13b/all", report["values"]["scienceqa/llava"])
    check(f"{where}/zero_shot_llava-v1.5-13b/image", report["values"]["scienceqa/llava/IMG"])
    assert images["values"]["scienceqa-img/llava"] == report["values"]["scienceqa/llava/IMG"]


def hallusion_records() -> list[dict[str, str]]:
    return json.loads((DATA / "hallusionbench/HallusionBench.json").read_text())


def hallusion_id(record: dict[str, str]) -> str:
    names = ("category", "subcategory", "set_id", "figure_id", "question_id")
    return "_".join(record[name] for name in names)


@pytest.mark.parametrize("answer", ["yes", "no"])
def test_hallusionbench_constant(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, answer: str
) -> None:
    file = tmp_path / "constant.jsonl"
    file.write_text(
        "".join(
            json.dumps({"id": hallusion_id(r), "response": answer.title()}) + "\n"
            for r in hallusion_records()
        )
    )
    shown = {"predictions": str(file), "references": "hallusionbench/HallusionBench.json"}
    every = run(capsys, "hallusionbench", protocol="yes-no-all", **shown)
    images = run(capsys, "hallusionbench", protocol="yes-no", **shown)
    where = "/hallusionbench"
    for name in ("n_records", "n_records_with_image", "n_records_without_image"):
        check(f"{where}/{name}", every["counts"][name.removeprefix("n_")])
    for name in ("n_question_pairs", "n_figures"):
        check(f"{where}/{name}", every["counts"][name.removeprefix("n_")])
    for name in ("gold_yes", "gold_no"):
        check(f"{where}/{name}", every["counts"][name])
    for label in ("aAcc", "qAcc", "fAcc", "easy", "hard"):
        path = f"{where}/official_rule_on_constant_answers/always_{answer}/{label}"
        check(path, every["values"][f"hallusionbench/yes-no-all-1129/{label}"])
    for label in ("aAcc", "qAcc", "fAcc"):
        path = f"{where}/image_records_only_on_constant_answers/always_{answer}/{label}"
        check(path, images["values"][f"hallusionbench/yes-no-951/{label}"])
    baseline = every["baselines"][f"always {answer}"]["hallusionbench/yes-no-all-1129/aAcc"]
    assert baseline == every["values"]["hallusionbench/yes-no-all-1129/aAcc"]


@pytest.mark.parametrize(
    ("case", "code"),
    [("unsure", lambda number: 2), ("every_third_wrong", lambda number: int(number % 3 > 0))],
)
def test_hallusionbench_verdicts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, case: str, code: Any
) -> None:
    records = hallusion_records()
    verdicts, predictions = tmp_path / "verdicts.json", tmp_path / "predictions.jsonl"
    checked = [r | {"gpt4v_output_gpt_check": str(code(k))} for k, r in enumerate(records)]
    verdicts.write_text(json.dumps(checked))
    predictions.write_text(
        "".join(json.dumps({"id": hallusion_id(r), "response": ""}) + "\n" for r in records)
    )
    report = run(
        capsys,
        "hallusionbench",
        predictions=str(predictions),
        references="hallusionbench/HallusionBench.json",
        verdicts=[str(verdicts)],
    )
    for label in ("aAcc", "qAcc", "fAcc", "easy", "hard"):
        path = f"/hallusionbench/official_rule_on_constant_answers/{case}/{label}"
        check(path, report["values"][f"hallusionbench/judge-1129-recorded/{label}"])
    if case == "every_third_wrong":
        for label in ("aAcc", "qAcc", "fAcc"):
            path = f"/hallusionbench/image_records_only_on_constant_answers/{case}/{label}"
            check(path, report["values"][f"hallusionbench/judge-951-recorded/{label}"])


def test_ai2d(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (DATA / "ai2d/test.jsonl").read_text().splitlines()]
    file = tmp_path / "gold.jsonl"
    file.write_text(
        "".join(
            json.dumps({"id": r["question_id"], "response": f"{r['answer']}."}) + "\n" for r in rows
        )
    )
    report = run(capsys, "ai2d", predictions=str(file), references="ai2d/test.jsonl")
    check("/ai2d_test/n", report["records"])
    check("/ai2d_test/n_labels_shown", report["metrics"]["ai2d/generate/labels-shown"]["n"])
    check("/ai2d_test/n_letter_masked", report["metrics"]["ai2d/generate/letter-masked"]["n"])
    assert report["values"]["ai2d/generate"] == 1


def read_lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


def test_mme_prompts_are_those_llava_was_evaluated_with() -> None:
    task, sent = get_task("mme"), read_lines("mme/llava_prompts.jsonl")
    built = [
        (record["image"], task.question(record, "llava").prompt)
        for record in task.read(str(DATA / "mme/questions_gt"))
    ]
    published = [(row["question_id"].replace("/images/", "/"), row["text"]) for row in sent]
    assert sorted(built) == sorted(published)
    assert len(built) == 2374


def test_ai2d_prompts_are_the_published_ones() -> None:
    task = get_task("ai2d")
    built = [task.question(r, "llava").prompt for r in task.read(str(DATA / "ai2d/test.jsonl"))]
    assert built == [row["question"] for row in read_lines("ai2d/test.jsonl")]


def test_scienceqa_prompts_are_the_published_ones() -> None:
    file = DATA / "scienceqa/llava_test_CQM-A.json"
    task, rows = get_task("scienceqa"), json.loads(file.read_text())
    texts = [row["conversations"][0]["value"].removeprefix("<image>\n") for row in rows]
    # The published prompts stop before the option-letter sentence, which the evaluator adds.
    assert [task.question(record, "llava").prompt for record in task.read(str(file))] == [
        f"{text}\n{OPTION_LETTER}" for text in texts
    ]


def test_mmbench_prompts_are_the_published_ones() -> None:
    """They hold hints that the table of predictions lacks, so only the ends are compared."""
    task = get_task("mmbench")
    records = task.read(str(DATA / "mmbench/dev_20230712_llava-v1.5-13b.jsonl"))
    first = {record["id"]: record for record in records if record["pass"] == 0}
    prompts = read_lines("mmbench/dev_20230712_llava_prompts.jsonl")
    for row in prompts:
        built = task.question(first[str(row["index"])], "llava").prompt
        assert f"{row['prompt']}\n{OPTION_LETTER}".endswith(built)
    assert len(prompts) == 1176


@pytest.mark.parametrize(
    ("task", "file", "n"),
    [
        ("mmmu", "mmmu/samples_with_images.jsonl", 11),
        ("ai2d", "ai2d/samples_with_images.jsonl", 10),
        ("mmbench", "mmbench/samples_with_images.jsonl", 78),  # all passes of 20 questions
        ("mm-vet", "mm-vet/mm-vet.json", 218),
    ],
)
def test_questions_with_images_are_complete(task: str, file: str, n: int) -> None:
    bench = get_task(task)
    records = bench.read(str(DATA / file))
    assert len(records) == n
    for record in records:
        asked = bench.question(record, "llava")
        assert asked.prompt
        assert record["images"]
        for image in record["images"]:
            path = (DATA / file).parent / str(image)
            assert path.exists() or path.with_suffix(".jpg").exists()  # MM-Vet was re-encoded


def test_every_value_was_compared(record_property: Any) -> None:
    """Runs last: nothing in the file but notes and file names is left out."""
    numbers = {path for path, value in expected().items() if not isinstance(value, str)}
    left = numbers - compared
    print(f"{len(compared)} of {len(numbers)} published values compared")
    record_property("published_values_compared", len(compared))
    assert not left, f"{len(left)} values were not compared: {sorted(left)[:5]}"
