"""A judge with a rubric for people's own rows: each response gets a grade from 0 to 1."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crome.errors import InputError
from crome.evaluation.sources import text_file
from crome.evaluation.tally import mean_metrics
from crome.evaluation.task import Judged, Messages, Record, Scores

DEFAULT_RUBRIC = """\
1 when the answer says the same as the reference, in whatever words; 0.5 when it is partly right or
leaves something out; 0 when it is wrong, contradicts the reference or does not answer."""
FORM = """\
Grade an answer to a question by this rubric:

{rubric}

Question: {question}
Reference: {reference}
Answer: {answer}

Reply with the grade, a number from 0 to 1, and nothing else."""
_GRADE = re.compile(
    r"[\s*_`]*(?:(?:final\s+)?(?:grade|score|rating)\b[\s*_`]*(?:is|[:=])?)?[\s*_`]*"
    r"(\d+(?:\.\d+)?)\s*(?:/\s*(\d+(?:\.\d+)?))?[\s*_`.]*",
    re.I,
)


def rules(path: str) -> str:
    """Reads a rubric: a text that says what is worth which grade.

    Raises:
        InputError: The file is absent or empty.
    """
    if text := text_file(path).strip():
        return text
    raise InputError(f"{path}: the rubric is empty.")


def messages(record: Record, response: str, rules: Any, attempt: int) -> Messages:
    """One user message: rubric, question, accepted answers and response."""
    parts = {
        "rubric": str(rules or DEFAULT_RUBRIC),
        "question": record["question"],
        "reference": " | ".join(record["accepted"]),
        "answer": response,
    }
    # One pass, so that a brace in a response fills in nothing.
    text = re.sub(r"\{(\w+)\}", lambda match: parts[match[1]], FORM)
    return [{"role": "user", "content": text}]


def parse_verdict(reply: str) -> float | None:
    """The grade where the first or the last line is one: a number from 0 to 1, or "7/10"."""
    lines = [line for line in reply.splitlines() if line.strip()]
    for line in [*lines[:1], *lines[-1:]]:
        if found := _GRADE.fullmatch(line):
            grade = float(found[1]) / (float(found[2] or 1) or float("nan"))
            return grade if 0 <= grade <= 1 else None
    return None


def tally_verdicts(
    judge: str, records: Sequence[Record], runs: Sequence[Mapping[str, float]]
) -> Scores:
    """The mean grade over records and runs, also by kind."""
    graded = [r for r in records if all(r["id"] in run for run in runs)]
    rows = {r["id"]: float(np.mean([run[r["id"]] for run in runs])) for r in graded}
    name = f"rows/{judge}x{len(runs)}"
    return Scores(mean_metrics(name, graded, rows, ["kind"]), rows)


RUBRIC = Judged(
    prompt_version="rubric-1",
    messages=messages,
    parse=parse_verdict,
    tally=tally_verdicts,
    rules=rules,
    max_tokens=16,
    attempts=3,
)
