"""LLaVA-Bench-in-the-Wild (arXiv 2304.08485): 60 open questions, judged against GPT-4's answers.

The official wording comes with the data as `rule.json`: `--judge_prompt rule.json`. Without it the
judge gets ours, and the protocol's name says so.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from crome.errors import InputError
from crome.evaluation import cells
from crome.evaluation.sources import Row, json_object, need, read_rows, records_from
from crome.evaluation.tally import cluster_of
from crome.evaluation.task import (
    Answer,
    Judged,
    Messages,
    Metric,
    Record,
    Scores,
    Task,
    grouped,
)
from crome.evaluation.tasks.prompts import bare_question
from crome.intervals import bootstrap

CATEGORIES = ("conv", "detail", "complex")
SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
OWN_PROMPT = """\
Two assistants answered the question above about an image, which the context describes in words.
Rate how helpful, relevant, accurate and detailed each answer is, from 1 to 10; higher is better.
On the first line write two numbers separated by a space, the score of Assistant 1 and the score of
Assistant 2, and nothing else. Explain them on the lines below. The order of the answers must not
matter."""


def _rows(source: str) -> list[Row]:
    """The released folder (questions, context and answers_gpt4, as .jsonl), or hub rows."""
    folder = Path(source)
    return _joined(folder) if (folder / "questions.jsonl").exists() else read_rows(source)


def _record(row: Row, number: int) -> Record:
    category = cells.text(row["category"]).removeprefix("llava_bench_")
    if category not in CATEGORIES:
        raise InputError(f"category {category!r} is none of {', '.join(CATEGORIES)}.")
    return {
        "id": cells.identity(row["question_id"]),
        "question": cells.text(row["question"]),
        "category": category,
        "context": cells.text(row["caption"]),
        "reference": cells.filled(row["gpt_answer"]),
        "images": cells.pictures(row),
    }


def _joined(folder: Path) -> list[Row]:
    """The three released files as the rows of the hub's table."""
    context = {row["image"]: row["caption"] for row in read_rows(str(folder / "context.jsonl"))}
    reference = {
        row["question_id"]: row["text"] for row in read_rows(str(folder / "answers_gpt4.jsonl"))
    }
    rows = read_rows(str(folder / "questions.jsonl"))
    for row in rows:
        need(row, ("question_id", "image", "text", "category"), str(folder))
        if row["image"] not in context or row["question_id"] not in reference:
            raise InputError(
                f"{folder}: question {row['question_id']} has no description or no reference."
            )
    return [
        row
        | {
            "question": row["text"],
            "caption": context[row["image"]],
            "gpt_answer": reference[row["question_id"]],
            "image": f"images/{row['image']}",
        }
        for row in rows
    ]


def rules(path: str) -> dict[str, Any]:
    """Reads the official `rule.json`: `llava_bench_<category>` → {"role", "prompt"}.

    Raises:
        InputError: A category is absent.
    """
    table = json_object(path)
    absent = [c for c in CATEGORIES if "prompt" not in table.get(f"llava_bench_{c}", {})]
    if absent:
        raise InputError(f"{path}: no rule for the categories {', '.join(absent)}.")
    return table


def messages(record: Record, response: str, rules: Any, attempt: int) -> Messages:
    """A system message, then context, question, reference, response and wording, marked off."""
    rule = (rules or {}).get(f"llava_bench_{record['category']}", {})
    role, wording = rule.get("role", "Assistant"), rule.get("prompt", OWN_PROMPT)
    text = (
        f"[Context]\n{record['context']}\n\n"
        f"[Question]\n{record['question']}\n\n"
        f"[{role} 1]\n{record['reference']}\n\n[End of {role} 1]\n\n"
        f"[{role} 2]\n{response}\n\n[End of {role} 2]\n\n"
        f"[System]\n{wording}\n\n"
    )
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]


def parse_verdict(reply: str) -> tuple[float, float] | None:
    """Both scores when the first line is two numbers from 0 to 10, commas counting as spaces."""
    words = reply.split("\n")[0].replace(",", " ").split()
    try:
        scores = tuple(float(word) for word in words)
    except ValueError:
        return None
    return scores if len(scores) == 2 and all(0 <= s <= 10 for s in scores) else None


def tally_verdicts(
    judge: str, records: Sequence[Record], runs: Sequence[Mapping[str, Sequence[float]]]
) -> Scores:
    """100 × mean model score / mean reference score, a ratio of means, averaged over runs."""
    name = f"llava-w/{judge}x{len(runs)}"
    graded = [r for r in records if all(r["id"] in run for run in runs)]
    metrics = _ratios(name, "", graded, runs)
    for category, members in grouped(graded, lambda record: record["category"]).items():
        metrics |= _ratios(name, f"/{category}", members, runs)
    rows = {r["id"]: float(np.mean([run[r["id"]][1] for run in runs])) for r in graded}
    return Scores(metrics, rows)


def _ratios(
    name: str,
    part: str,
    records: Sequence[Record],
    runs: Sequence[Mapping[str, Sequence[float]]],
) -> dict[str, Metric]:
    # (questions, runs, reference and model)
    scores = np.array([[run[r["id"]] for run in runs] for r in records], dtype=float)
    n = len(records)

    def ratio(means: np.ndarray) -> np.ndarray:  # (…, runs · 2) → (…)
        pairs = means.reshape(*means.shape[:-1], len(runs), 2)
        return (100 * pairs[..., 1] / pairs[..., 0]).mean(axis=-1)

    if (scores[..., 0].sum(axis=0) == 0).any():
        raise InputError("a run grades every reference answer 0, so that there is no ratio to it.")
    flat, images = scores.reshape(n, -1), [cluster_of(record) for record in records]
    means = scores.mean(axis=0).round(3)  # as the official summary does before it divides
    each = 100 * means[:, 1] / means[:, 0]
    value = float(each.mean())
    # Questions on a single picture can only be resampled themselves.
    interval = bootstrap(flat, ratio, images if len(set(images)) > 1 else None) if n > 1 else None
    metrics = {f"{name}{part}": Metric(value, n, "percent", interval)}
    return metrics | {
        f"{name}/run-{k}{part}": Metric(float(v), n, "percent") for k, v in enumerate(each, 1)
    }


def recorded(paths: Sequence[str]) -> tuple[str, list[dict[str, Answer]]]:
    """Reads official review files, one per run: rows with question_id and `tuple`.

    A tuple of −1, which the official script writes when it could not read a reply, is no verdict.
    """
    runs = []
    for path in paths:
        rows = read_rows(path)
        run: dict[str, Answer] = {}
        for row in rows:
            need(row, ("question_id", "tuple"), path)
            given = row["tuple"]
            if not isinstance(given, list) or not all(_is_score(score) for score in given):
                raise InputError(f"{path}: {cells.quoted(given)} is no pair of scores.")
            if len(given) == 2 and min(given) >= 0:
                run[cells.identity(row["question_id"])] = tuple(given)
        runs.append(run)
    return "recorded", runs


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float) and -1 <= value <= 10


LLAVA_BENCH = Task(
    name="llava-w",
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
        temperature=0.2,
        max_tokens=1024,
        attempts=3,
        runs=3,
    ),
    releases={60: "released"},
    max_new_tokens=1024,
)
