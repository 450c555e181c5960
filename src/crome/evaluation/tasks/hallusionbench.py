"""HallusionBench (arXiv 2310.14566): yes/no questions on original and edited figures.

Two readings exist. The official one asks a judge about all 1,129 records; common practice reads yes
or no from the response on the 951 records with an image. Always "no" scores 57 to 58 aAcc, so the
three accuracies belong together.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from crome.errors import InputError
from crome.evaluation.predictions import Prediction
from crome.evaluation.sources import Row, images_in, need, read_rows, text_file, unique
from crome.evaluation.task import (
    Answer,
    Answers,
    Judged,
    Messages,
    Metric,
    Protocol,
    Question,
    Record,
    Scores,
    Task,
    share,
)
from crome.evaluation.tasks.mme import constant_yes_no
from crome.evaluation.tasks.prompts import short_answer
from crome.intervals import bootstrap

WRONG, RIGHT, UNCLEAR = 0, 1, 2  # the judge's codes
EDITED = "2"  # of visual_input: 0 is no image, 1 the original
_FIELDS = ("category", "subcategory", "visual_input", "set_id", "figure_id", "question_id")
OWN_PROMPT = """\
You are marking answers. Compare the prediction with the reference answer to the same question.
Reply with one word: "correct" when the prediction agrees with the reference, "incorrect" when it
contradicts the reference, "unclear" when the prediction does not settle the question.

Question: {question}
Reference: {reference}
Prediction: {prediction}
Verdict:"""


def read(source: str) -> list[Record]:
    """Reads the released `HallusionBench.json`, or hub rows."""
    return unique([_record(row, source) for row in read_rows(source)], source)


def _record(row: Row, source: str) -> Record:
    need(row, (*_FIELDS, "question", "gt_answer"), source)
    where = {name: str(row[name]) for name in _FIELDS}
    file = (row.get("filename") or "").removeprefix("./")
    group = "_".join(where[name] for name in ("category", "subcategory", "set_id"))
    return where | {
        "id": _identity(row),
        "figure": f"{group}_{where['figure_id']}",
        "pair": f"{group}_{where['question_id']}",
        "group": group,
        "text_only": where["category"] == "VS" and where["figure_id"] == "0",
        "question": row["question"],
        "answer": "yes" if str(row["gt_answer"]) == "1" else "no",
        "reference": row.get("gt_answer_details", ""),
        "images": images_in(row.get("image") or file),
    }


def _identity(row: Row) -> str:
    names = ("category", "subcategory", "set_id", "figure_id", "question_id")
    return "_".join(str(row[name]) for name in names)


def question(record: Record, style: str) -> Question:
    """The question; `llava` adds its short-answer sentence, `official` adds nothing."""
    prompt = short_answer(record["question"], style)
    return Question(record["id"], prompt, record["images"], ("yes", "no"))


def parse(record: Record, prediction: Prediction) -> str | None:
    """Yes or no when it is a word of the response and the other is not."""
    words = set(re.findall(r"\w+", prediction.response.lower()))
    said = words & {"yes", "no"}
    return said.pop() if len(said) == 1 else None


def tally(name: str, records: Sequence[Record], answers: Answers, *, images_only: bool) -> Scores:
    """Yes/no answers by the official rule; an unreadable one counts as unclear."""
    if images_only:
        records = [record for record in records if not record["text_only"]]
    codes = {
        record["id"]: UNCLEAR
        if answers[record["id"]] is None
        else int(answers[record["id"]] == record["answer"])
        for record in records
        if record["id"] in answers
    }
    return from_codes(f"{name}-{len(records)}", records, codes)


def from_codes(name: str, records: Sequence[Record], codes: Mapping[str, int]) -> Scores:
    """All accuracies from the judge's codes.

    Code 1 is right, and 2 as well on text-only records, where not knowing is the honest answer.
    aAcc is per record, qAcc per question with all its figures, fAcc per figure with all its
    questions (text-only records left out). easy and hard, as the official script has them, are per
    question over the original figures (or none) and over the edited ones.
    """
    rows = {r["id"]: float(_is_right(r, codes.get(r["id"]))) for r in records}
    seen = [record for record in records if not record["text_only"]]
    easy = [record for record in records if record["visual_input"] != EDITED]
    hard = [record for record in records if record["visual_input"] == EDITED]
    metrics = {f"{name}/aAcc": _per_record(records, rows)}
    for label, members, key in (
        ("qAcc", records, "pair"),
        ("fAcc", seen, "figure"),
        ("easy", easy, "pair"),
        ("hard", hard, "pair"),
    ):
        if members:
            metrics[f"{name}/{label}"] = _all_right(members, rows, key)
    mean = sum(metrics[f"{name}/{x}"].value for x in ("aAcc", "fAcc", "qAcc")) / 3 if seen else 0.0
    metrics[f"{name}/mean"] = Metric(mean, len(records), "percent")
    counts = {
        "records": len(records),
        "records_with_image": len(seen),
        "records_without_image": len(records) - len(seen),
        "question_pairs": metrics[f"{name}/qAcc"].n,
        "figures": metrics[f"{name}/fAcc"].n if seen else 0,
        "gold_yes": sum(record["answer"] == "yes" for record in records),
        "gold_no": sum(record["answer"] == "no" for record in records),
        "correct": round(sum(rows.values())),
    }
    return Scores(metrics, rows, counts)


def _is_right(record: Record, code: int | None) -> bool:
    return code == RIGHT or (code == UNCLEAR and record["text_only"])


def _per_record(records: Sequence[Record], rows: Mapping[str, float]) -> Metric:
    """Mean over records; sets of figures are resampled, since their questions hang together."""
    clusters: dict[str, list[float]] = {}
    for record in records:
        clusters.setdefault(record["group"], []).append(rows[record["id"]])
    table = np.array([(sum(scores), len(scores)) for scores in clusters.values()])
    low, high = bootstrap(table, lambda means: 100 * means[:, 0] / means[:, 1])
    value = 100 * sum(rows[r["id"]] for r in records) / len(records)
    return Metric(value, len(records), "percent", (low, high))


def _all_right(records: Sequence[Record], rows: Mapping[str, float], key: str) -> Metric:
    groups: dict[str, list[float]] = {}
    for record in records:
        groups.setdefault(record[key], []).append(rows[record["id"]])
    metric = share([min(scores) for scores in groups.values()])
    low, high = metric.interval or (0.0, 1.0)
    return Metric(100 * metric.value, metric.n, "percent", (100 * low, 100 * high))


def messages(record: Record, response: str, rules: Any, attempt: int) -> Messages:
    """One user message: the wording with question, reference and prediction filled in."""
    text = str(rules or OWN_PROMPT)
    for name, value in (
        ("question", record["question"]),
        ("reference", record["reference"]),
        ("prediction", response),
    ):
        text = text.replace(f"{{{name}}}", value)
    return [{"role": "user", "content": text}]


def parse_verdict(reply: str) -> int | None:
    """The code of a reply; "incorrect" is looked for first, and a reply without a word is none."""
    said = reply.lower()
    for word, code in (("incorrect", WRONG), ("correct", RIGHT), ("unclear", UNCLEAR)):
        if word in said:
            return code
    return None


def tally_verdicts(
    judge: str, records: Sequence[Record], runs: Sequence[Mapping[str, Any]]
) -> Scores:
    """The official reading, on all records, and the same verdicts on those with an image.

    Raises:
        InputError: There is more than one run, which this benchmark does not have.
    """
    if len(runs) != 1:
        raise InputError(f"HallusionBench is judged once; these are {len(runs)} runs.")
    graded = [record for record in records if record["id"] in runs[0]]
    seen = [record for record in graded if not record["text_only"]]
    scores = from_codes(f"hallusionbench/judge-{len(graded)}-{judge}", graded, runs[0])
    if 0 < len(seen) < len(graded):
        name = f"hallusionbench/judge-{len(seen)}-{judge}"
        metrics = scores.metrics | from_codes(name, seen, runs[0]).metrics
        scores = Scores(metrics, scores.rows, scores.counts)
    return scores


def rules(path: str) -> str:
    """Reads a judge wording with {question}, {reference} and {prediction}.

    Raises:
        InputError: One of the three places is absent.
    """
    text = text_file(path)
    absent = [p for p in ("{question}", "{reference}", "{prediction}") if p not in text]
    if absent:
        raise InputError(f"{path}: the wording lacks {', '.join(absent)}.")
    return text


def recorded(paths: Sequence[str]) -> tuple[str, list[dict[str, Answer]]]:
    """Reads the official script's saved judgements: records with `<model>_output_gpt_check`."""
    runs = []
    for path in paths:
        rows = read_rows(path)
        name = next((n for n in rows[0] if n.endswith("gpt_check")), None) if rows else None
        if name is None:
            raise InputError(f"{path}: no field ends with gpt_check, so it holds no judgements.")
        runs.append({_identity(row): int(row[name]) for row in rows})
    return "recorded", runs


def cells(record: Record) -> dict[str, str]:
    """VLMEvalKit knows the records with an image, and reads set, figure and question off index."""
    names = ("category", "subcategory", "visual_input", "set_id", "figure_id", "question_id")
    if record["text_only"]:
        return {}
    return {
        "index": "_".join(record[name] for name in names),
        "category": record["category"],
        "l2-category": record["subcategory"],
        "question": record["question"],
        "answer": record["answer"].title(),
    }


HALLUSIONBENCH = Task(
    name="hallusionbench",
    read=read,
    question=question,
    protocols={
        "yes-no": Protocol(parse, partial(tally, images_only=True)),
        "yes-no-all": Protocol(parse, partial(tally, images_only=False)),
    },
    baselines=constant_yes_no,
    judged=Judged(
        prompt_version="crome-1",
        messages=messages,
        parse=parse_verdict,
        tally=tally_verdicts,
        rules=rules,
        recorded=recorded,
    ),
    releases={1129: "released", 951: "records with an image"},
    cells=cells,
)
