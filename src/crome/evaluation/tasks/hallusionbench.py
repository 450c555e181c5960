"""HallusionBench (arXiv 2310.14566): yes/no questions on original and edited figures.

Two readings exist. The official one asks a judge about all 1,129 records; common practice reads yes
or no from the response on the 951 records with an image. Always "no" scores 57 to 58 aAcc, so the
three accuracies belong together.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from crome.errors import InputError
from crome.evaluation import cells
from crome.evaluation.predictions import Prediction, read_predictions, response_in
from crome.evaluation.sources import Row, read_rows, records_from, text_file
from crome.evaluation.tally import mean_metric
from crome.evaluation.task import (
    Answer,
    Answers,
    Judged,
    Messages,
    Metric,
    Protocol,
    Record,
    Scores,
    Task,
    grouped,
)
from crome.evaluation.tasks.prompts import yes_no_question
from crome.evaluation.tasks.yes_no import constant_yes_no
from crome.intervals import mean_interval

WRONG, RIGHT, UNCLEAR = 0, 1, 2  # the judge's codes
EDITED = "2"  # of visual_input: 0 is no image, 1 the original
_PLACE = ("category", "subcategory", "set_id", "figure_id", "question_id")
_VERDICT = re.compile(
    r"(\b(?:not|cannot|never|hardly|neither|nor|no|(?:is|are|was|were|do|does|did|ca|wo|would)nt)\s+(?:\w+\s+){0,2}?)?"
    r"\b(incorrect|correct|unclear)\b"
)
OWN_PROMPT = """\
You are marking answers. Compare the prediction with the reference answer to the same question.
Reply with one word: "correct" when the prediction agrees with the reference, "incorrect" when it
contradicts the reference, "unclear" when the prediction does not settle the question.

Question: {question}
Reference: {reference}
Prediction: {prediction}
Verdict:"""


def _record(row: Row, number: int) -> Record:
    """A record of the released `HallusionBench.json`, or a hub row."""
    where = {name: cells.identity(row[name]) for name in (*_PLACE, "visual_input")}
    file = cells.text(row.get("filename")).removeprefix("./")
    group = "_".join(where[name] for name in ("category", "subcategory", "set_id"))
    return where | {
        "id": _identity(row),
        "figure": f"{group}_{where['figure_id']}",
        "pair": f"{group}_{where['question_id']}",
        "group": group,
        "cluster": group,  # questions on the figures of a set hang together
        "text_only": where["category"] == "VS" and where["figure_id"] == "0",
        "question": cells.text(row["question"]),
        "answer": cells.yes_no(row["gt_answer"]),
        "reference": cells.text(row.get("gt_answer_details")),
        "images": cells.images_in(row.get("image")) or cells.images_in(file) or cells.pictures(row),
    }


def _identity(row: Row) -> str:
    return "_".join(cells.identity(row[name]) for name in _PLACE)


def _set(record: Record) -> str:
    return str(record["group"])


def read_responses(source: str) -> list[Prediction]:
    """Reads the official result file, which has no id of its own, or any other predictions."""
    if not source.lower().endswith(".json"):
        return read_predictions(source)
    rows = read_rows(source)
    if not rows or not all(row.keys() >= {*_PLACE} for row in rows):
        return read_predictions(source)
    return [
        Prediction(_identity(row), response=response_in(row, f"{source}, record {number}"))
        for number, row in enumerate(rows, start=1)
    ]


def parse(record: Record, prediction: Prediction) -> str | None:
    """Yes or no when it is a word of the response and the other is not."""
    words = set(re.findall(r"\w+", prediction.response.lower()))
    stated = words & {"yes", "no"}
    return stated.pop() if len(stated) == 1 else None


def tally(name: str, records: Sequence[Record], answers: Answers, *, images_only: bool) -> Scores:
    """Yes/no answers by the official rule; an unreadable one counts as unclear.

    Raises:
        InputError: A set lacks one of its questions on one of its figures.
    """
    require_sets(records)
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
    metrics = {f"{name}/aAcc": mean_metric(records, rows, "percent")}
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


def _all_right(records: Sequence[Record], rows: Mapping[str, float], key: str) -> Metric:
    """Share of groups with every record right; sets of figures are the independent units."""
    groups = grouped(records, lambda record: record[key])
    right = [min(rows[r["id"]] for r in members) for members in groups.values()]
    sets = [members[0]["group"] for members in groups.values()]
    low, high = mean_interval(right, sets)
    return Metric(100 * sum(right) / len(right), len(right), "percent", (100 * low, 100 * high))


def require_sets(records: Sequence[Record]) -> None:
    """Refuses sets that lack one of their questions on one of their figures.

    Raises:
        InputError: There are some: a question with half of its figures would count as a whole one.
    """
    for group, members in grouped(records, _set).items():
        figures, pairs = ({record[key] for record in members} for key in ("figure", "pair"))
        if len(figures) * len(pairs) > len(members):
            raise InputError(
                f"set {group} has {len(members)} records for {len(pairs)} questions on "
                f"{len(figures)} figures: qAcc and fAcc need every question on every figure."
            )


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
    """The code of a reply that gives one verdict; None where it gives none, or several.

    A negated "correct" is incorrect. The official script looks for the words anywhere in a reply,
    "incorrect" first, and so reads "not correct" as correct.
    """
    text = re.sub(r"[*_`\"'’]", "", reply.lower())
    verdicts = set()
    for negation, word in _VERDICT.findall(text):
        if word == "unclear":
            verdicts.add(UNCLEAR)
        else:
            verdicts.add(RIGHT if (word == "correct") != bool(negation) else WRONG)
    return verdicts.pop() if len(verdicts) == 1 else None


def tally_verdicts(
    judge: str, records: Sequence[Record], runs: Sequence[Mapping[str, Any]]
) -> Scores:
    """The official reading, on all records, and the same verdicts on those with an image.

    Raises:
        InputError: There is more than one run, which this benchmark does not have, or a set lacks
            one of its questions on one of its figures.
    """
    require_sets(records)
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
        runs.append({_identity(row): _code(row[name], path) for row in rows})
    return "recorded", runs


def _code(cell: Any, path: str) -> int:
    code = cells.whole(cell)
    if code not in (WRONG, RIGHT, UNCLEAR):
        raise InputError(f"{path}: a judgement is {code}; expected 0, 1 or 2.")
    return code


def table_cells(record: Record) -> dict[str, str]:
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
    read=partial(records_from, make=_record),
    question=yes_no_question,
    protocols={
        "yes-no": Protocol(parse, partial(tally, images_only=True)),
        "yes-no-all": Protocol(parse, partial(tally, images_only=False)),
    },
    baselines=constant_yes_no,
    judged=Judged(
        prompt_version="crome-2",
        messages=messages,
        parse=parse_verdict,
        tally=tally_verdicts,
        rules=rules,
        recorded=recorded,
    ),
    releases={1129: "released", 951: "records with an image"},
    predictions=read_responses,
    cells=table_cells,
    pictures="some",
    whole=_set,
)
