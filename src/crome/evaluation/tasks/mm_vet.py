"""MM-Vet (arXiv 2308.02490): 218 open questions, each graded 0.0 to 1.0 by a judge.

The official wording contains examples under the data's own licence, so it is not part of this
package: `--judge_prompt mm-vet_evaluator.py` takes it from the authors' script. Without it the
judge gets our wording, and the protocol's name says so.
"""

import ast
from collections.abc import Mapping, Sequence
from math import fsum
from pathlib import Path
from typing import Any

import numpy as np

from crome.errors import InputError
from crome.evaluation.sources import Row, images_in, json_object, need, read_rows, text_file, unique
from crome.evaluation.task import Answer, Judged, Messages, Metric, Question, Record, Scores, Task
from crome.evaluation.vlmevalkit import columns
from crome.intervals import bootstrap

CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")
OWN_PROMPT = """\
Grade an answer against the ground truth. In the ground truth, <AND> joins parts that must all be in
the answer, <OR> separates alternatives of which one is enough. Grades run from 0.0 (nothing right)
through 0.1, 0.2, …, 0.9 for partly right to 1.0 (all right). Complete the last cell of the table
with the grade and write nothing else.

Question | Ground truth | Answer | Grade
--- | --- | --- | ---"""


def read(source: str) -> list[Record]:
    """Reads `mm-vet.json`, its folder, or hub rows."""
    folder = Path(source)
    if folder.is_dir() and (folder / "mm-vet.json").exists():
        source = str(folder / "mm-vet.json")
    return unique([_record(row, source) for row in read_rows(source)], source)


def _record(row: Row, source: str) -> Record:
    identity = "question_id" if "question_id" in row else "id"
    need(row, (identity, "question", "answer", "capability"), source)
    capabilities = row["capability"]
    if isinstance(capabilities, str):
        capabilities = capabilities.split(",")
    return {
        "id": str(row[identity]),
        "question": row["question"],
        "answer": row["answer"],
        "capabilities": tuple(sorted(name.strip() for name in capabilities)),
        "images": images_in(row.get("image") or _path(row)),
    }


def _path(row: Row) -> str | None:
    return f"images/{row['imagename']}" if row.get("imagename") else None


def question(record: Record, style: str) -> Question:
    """The question is the whole prompt, whatever the style."""
    return Question(record["id"], record["question"], record["images"])


def rules(path: str) -> str:
    """Reads a judge wording: a text file, or the `prompt` of the official script (not run).

    Raises:
        InputError: The script assigns no such text.
    """
    text = text_file(path)
    if not path.endswith(".py"):
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
    metrics = {name: _mean(list(rows.values()))}
    metrics |= {f"{name}/run-{k}": Metric(v, len(graded), "percent") for k, v in enumerate(each, 1)}
    metrics[f"{name}/std"] = Metric(float(np.std(each)), len(runs), "percent")
    for capability in CAPABILITIES:
        needing = [rows[r["id"]] for r in graded if capability in r["capabilities"]]
        if needing:
            metrics[f"{name}/{capability}"] = _mean(needing)
    combinations: dict[str, list[float]] = {}
    for record in graded:
        combination = "+".join(record["capabilities"])
        combinations.setdefault(combination, []).append(rows[record["id"]])
    metrics |= {f"{name}/only {c}": _mean(grades) for c, grades in combinations.items()}
    return Scores(metrics, rows)


def _mean(grades: Sequence[float]) -> Metric:
    interval = bootstrap(100 * np.asarray(grades))
    # Summed exactly: grades are tenths, and a mean of 24.25 must round as the official 24.25 does.
    return Metric(100 * fsum(grades) / len(grades), len(grades), "percent", interval)


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
            judges |= set(grade.get("model", ()))
        most = max(len(grade["score"]) for grade in grades.values())
        runs += [
            {i: g["score"][k] for i, g in grades.items() if len(g["score"]) > k}
            for k in range(most)
        ]
    return "+".join(sorted(judges)) or "recorded", runs


def cells(record: Record) -> dict[str, str]:
    """VLMEvalKit reads the capabilities from one cell."""
    return columns(record) | {"capability": ",".join(record["capabilities"])}


MM_VET = Task(
    name="mm-vet",
    read=read,
    question=question,
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
    cells=cells,
    max_new_tokens=1024,
)
