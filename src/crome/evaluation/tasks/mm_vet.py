"""MM-Vet (arXiv 2308.02490): 218 open questions, each graded 0.0 to 1.0 by a judge.

The official wording contains examples under the data's own licence, so it is not part of this
package: `--judge_prompt mm-vet_evaluator.py` takes it from the authors' script. Without it the
judge gets our wording, and the protocol's name says so.
"""

import ast
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from crome.errors import InputError
from crome.evaluation import cells
from crome.evaluation.sources import Row, json_object, read_rows, records_from, text_file
from crome.evaluation.tally import mean_metric, mean_metrics
from crome.evaluation.task import (
    Answer,
    Judged,
    Messages,
    Metric,
    Record,
    Scores,
    Task,
    columns,
    grouped,
)
from crome.evaluation.tasks.prompts import bare_question

CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")
OWN_PROMPT = """\
Grade an answer against the ground truth. In the ground truth, <AND> joins parts that must all be in
the answer, <OR> separates alternatives of which one is enough. Grades run from 0.0 (nothing right)
through 0.1, 0.2, …, 0.9 for partly right to 1.0 (all right). Complete the last cell of the table
with the grade and write nothing else.

Question | Ground truth | Answer | Grade
--- | --- | --- | ---"""


def _rows(source: str) -> list[Row]:
    """The rows of `mm-vet.json`, which may be named by its folder, or of the hub."""
    file = Path(source) / "mm-vet.json"
    return read_rows(str(file) if file.exists() else source)


def _record(row: Row, number: int) -> Record:
    named = cells.texts(row["capability"])
    capabilities = {name.strip() for text in named for name in text.split(",") if name.strip()}
    if not capabilities or not capabilities <= set(CAPABILITIES):
        raise InputError(
            f"capability {cells.quoted(row['capability'])}: expected some of "
            f"{', '.join(CAPABILITIES)}."
        )
    file = cells.file_named(row.get("imagename"), "images/{}")
    return {
        "id": cells.identity(cells.first(row, "question_id", "id")),
        "question": cells.text(row["question"]),
        "answer": cells.filled(row["answer"]),
        "capabilities": tuple(sorted(capabilities)),
        "images": cells.images_in(row.get("image")) or file or cells.pictures(row),
    }


def rules(path: str) -> str:
    """Reads a judge wording: a text file, or the `prompt` of the official script (not run).

    Raises:
        InputError: The script assigns no such text.
    """
    text = text_file(path)
    if not path.lower().endswith(".py"):
        return text
    try:
        script = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{path}: not a Python script ({error}).") from None
    for node in script.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            (target, *_) = node.targets
            if isinstance(target, ast.Name) and target.id == "prompt":
                return str(node.value.value)
    raise InputError(f"{path}: there is no text named `prompt` in this script.")


def messages(record: Record, response: str, rules: Any, attempt: int) -> Messages:
    """One user message: the wording and a table row to complete."""
    truth = record["answer"].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    text = f"{rules or OWN_PROMPT}\n" + " | ".join([record["question"], truth, response, ""])
    if attempt:
        text += "\nPredict the correctness of the answer (digit): "
    return [{"role": "user", "content": text}]


def parse_verdict(reply: str) -> float | None:
    """The grade when the first word of a reply is a number from 0 to 1."""
    words = reply.split()
    try:
        grade = float(words[0]) if words else -1.0
    except ValueError:
        return None
    return grade if 0 <= grade <= 1 else None


def tally_verdicts(
    judge: str, records: Sequence[Record], runs: Sequence[Mapping[str, float]]
) -> Scores:
    """100 × mean grade over the graded records, averaged over runs.

    Also per run, the standard deviation over runs (population, as numpy's default), per capability
    over the questions that need it, and per combination of capabilities.
    """
    name = f"mm-vet/{judge}x{len(runs)}"
    graded = [r for r in records if all(r["id"] in run for run in runs)]
    rows = {r["id"]: float(np.mean([run[r["id"]] for run in runs])) for r in graded}
    each = [100 * float(np.mean([run[r["id"]] for r in graded])) for run in runs]
    metrics = mean_metrics(name, graded, rows, unit="percent")
    metrics |= {f"{name}/run-{k}": Metric(v, len(graded), "percent") for k, v in enumerate(each, 1)}
    metrics[f"{name}/std"] = Metric(float(np.std(each)), len(runs), "percent")
    for capability in CAPABILITIES:
        needing = [r for r in graded if capability in r["capabilities"]]
        if needing:
            metrics[f"{name}/{capability}"] = mean_metric(needing, rows, "percent")
    for combination, members in grouped(graded, lambda r: "+".join(r["capabilities"])).items():
        metrics[f"{name}/only {combination}"] = mean_metric(members, rows, "percent")
    return Scores(metrics, rows)


def is_grade(value: Any) -> bool:
    """Whether a value is a number from 0 to 1."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def recorded(paths: Sequence[str]) -> tuple[str, list[dict[str, Answer]]]:
    """Reads the official grade file: id → {"model", "content", "score"}, one entry per run.

    Raises:
        InputError: A record lacks its scores.
    """
    runs: list[dict[str, Answer]] = []
    judges: set[str] = set()
    for path in paths:
        grades = json_object(path)
        for identity, grade in grades.items():
            if not isinstance(grade, dict) or not isinstance(grade.get("score"), list):
                raise InputError(f"{path}: {identity} has no list of scores.")
            if not all(is_grade(score) for score in grade["score"]):
                raise InputError(f"{path}: a grade of {identity} is no number from 0 to 1.")
            judges |= set(grade.get("model", ()))
        most = max((len(grade["score"]) for grade in grades.values()), default=0)
        runs += [
            {i: g["score"][k] for i, g in grades.items() if len(g["score"]) > k}
            for k in range(most)
        ]
    return "+".join(sorted(judges)) or "recorded", runs


def table_cells(record: Record) -> dict[str, str]:
    """VLMEvalKit reads the capabilities from one cell."""
    return columns(record) | {"capability": ",".join(record["capabilities"])}


MM_VET = Task(
    name="mm-vet",
    read=partial(records_from, make=_record, rows=_rows),
    question=bare_question,
    protocols={},
    baselines=lambda records: {},
    judged=Judged(
        prompt_version="crome-1",
        messages=messages,
        parse=parse_verdict,
        tally=tally_verdicts,
        rules=rules,
        recorded=recorded,
        warmer=0.5,
        max_tokens=3,
        runs=5,
    ),
    releases={218: "released"},
    cells=table_cells,
    max_new_tokens=1024,
)
