"""The same predictions scored by lmms-eval's own functions, beside our number.

Only benchmarks whose scoring needs no judge; nothing is downloaded, and no model is run.
"""

import contextlib
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from statistics import fmean
from typing import Any

from crome.errors import InputError
from crome.evaluation.predictions import Prediction
from crome.evaluation.task import Record, Task
from crome.evaluation.tasks.mmmu import GUESS_SEED

Answered = Sequence[tuple[Record, str]]
"""Records with the responses to them."""
TOOLKIT = "lmms-eval"


def cross_check(
    task: Task, records: Sequence[Record], predictions: Mapping[str, Prediction]
) -> tuple[str, dict[str, float]]:
    """Scores predictions as lmms-eval does.

    Args:
        task: The benchmark.
        records: Its records.
        predictions: By id, one for each record.

    Returns:
        The toolkit with its version, and its numbers on its own scale.

    Raises:
        InputError: lmms-eval is not installed, has no rules for this benchmark that work without a
            judge, or a prediction is missing.
    """
    if task.name not in CHECKS:
        raise InputError(
            f"--cross_check {TOOLKIT} scores {', '.join(CHECKS)}; {task.name} needs its own run."
        )
    missing = [record["id"] for record in records if record["id"] not in predictions]
    if missing:
        raise InputError(f"cross-checking needs a prediction for every record, not for {missing}.")
    folder, check = CHECKS[task.name]
    try:
        toolkit = f"{TOOLKIT}-{version('lmms-eval')}"
        answered = [(record, predictions[record["id"]].response) for record in records]
        with contextlib.redirect_stdout(sys.stderr):  # it prints while it counts
            return toolkit, check(import_module(f"lmms_eval.tasks.{folder}"), answered)
    except (PackageNotFoundError, ImportError) as error:
        raise InputError(
            f"{TOOLKIT} cannot be used here ({error}): install crome[lmms-eval]."
        ) from error


def mme(utils: Any, answered: Answered) -> dict[str, float]:
    """Perception and cognition; questions are paired by image, not by position."""
    results: dict[str, list[Any]] = {}
    for r, reply in answered:
        doc = {"category": r["subtask"], "question_id": r["image"], "answer": r["answer"]}
        for name, result in utils.mme_process_results(doc, [reply]).items():
            results.setdefault(name, []).append(result)
    return {name: float(utils.mme_aggregate_results(rows)) for name, rows in results.items()}


def mmmu(utils: Any, answered: Answered) -> dict[str, float]:
    """Micro accuracy by its parser, which knows two more forms of a letter.

    It guesses from the process's generator, in whatever state that is. Seeded as the official
    parser's, the two differ by how they read responses alone.
    """
    random.seed(GUESS_SEED)
    rows = []
    for r, reply in answered:
        doc = {
            "id": r["id"],
            "question_type": "multiple-choice" if r["choice"] else "open",
            "options": repr(list(r["options"].values())),
            "answer": r["answer"],
        }
        rows.append(utils.mmmu_process_results(doc, [reply])["mmmu_acc"])
    return {"mmmu_acc": float(utils.mmmu_aggregate_results(rows))}


def mmbench(utils: Any, answered: Answered) -> dict[str, float]:
    """Circular accuracy of `mmbench_en_dev_static`."""
    rows = [
        {
            "index": int(r["id"]),
            "question": r["question"],
            "answer": r["answer"],
            "prediction": reply,
            "category": r["category"] or "",
            "L2-category": r["l2-category"] or "",
            **{letter: r["options"].get(letter) for letter in "ABCD"},
        }
        for r, reply in answered
    ]
    overall, *_ = utils.mmbench_evaluator.eval_result(rows, eval_method="static")
    return {"gpt_eval_score": float(overall)}


def scienceqa(utils: Any, answered: Answered) -> dict[str, float]:
    """Accuracy by its reading of letters."""
    scores = []
    for r, reply in answered:
        letters = list(r["options"])
        doc = {"choices": letters, "answer": letters.index(r["answer"])}
        scores.append(utils.sqa_process_results(doc, [reply])["exact_match"])
    return {"exact_match": fmean(scores)}


def seed(utils: Any, answered: Answered) -> dict[str, float]:
    """Accuracy of the first character."""
    rows = []
    for r, reply in answered:
        doc = {"question_id": r["id"], "answer": r["answer"], "data_type": "image"}
        rows.append(utils.seed_process_result(doc, [reply])["seed_image"])
    return {"seed_image": float(utils.seed_aggregation_result(rows))}


def ai2d(utils: Any, answered: Answered) -> dict[str, float]:
    """Exact match behind its filter."""
    from lmms_eval.api.metrics import exact_match_hf_evaluate

    letters = utils.MultiChoiceRegexFilter(regex_pattern=r"([A-Z])\.").apply(
        [[reply] for _, reply in answered], [{"options": r["options"]} for r, _ in answered]
    )
    gold = [r["answer"] for r, _ in answered]
    score = exact_match_hf_evaluate(letters, gold, ignore_case=True, ignore_punctuation=True)
    return {"exact_match": float(score["exact_match"])}


def vqav2(utils: Any, answered: Answered) -> dict[str, float]:
    """VQA accuracy by its normalisation."""
    scores = []
    for r, reply in answered:
        # Equal annotators are told apart by their number, as in the released annotations.
        answers = [{"answer": text, "answer_id": k} for k, text in enumerate(r["answers"])]
        doc = {"answers": answers, "question_id": r["id"]}
        scores.append(utils.vqav2_process_results_val(doc, [reply])["exact_match"])
    return {"exact_match": fmean(scores)}


CHECKS: dict[str, tuple[str, Callable[[Any, Answered], dict[str, float]]]] = {
    "mme": ("mme.utils", mme),
    "mmmu": ("mmmu.utils", mmmu),
    "mmbench": ("mmbench.en_utils", mmbench),
    "scienceqa": ("scienceqa.utils", scienceqa),
    "scienceqa-img": ("scienceqa.utils", scienceqa),
    "seed-image": ("seedbench.utils", seed),
    "ai2d": ("ai2d.utils", ai2d),
    "vqav2": ("vqav2.utils", vqav2),
}
