"""VQAv2 (arXiv 1612.00837): short answers, compared with those of ten annotators.

The rules are those of the official `vqaEval.py`, its peculiarities included.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from crome.errors import InputError
from crome.evaluation import cells
from crome.evaluation.predictions import Prediction
from crome.evaluation.sources import Row, need, read_rows, records_from
from crome.evaluation.task import (
    Answers,
    Protocol,
    Question,
    Record,
    Scores,
    Task,
    mean_metrics,
)
from crome.evaluation.tasks import choices
from crome.evaluation.tasks.prompts import short_answer
from crome.evaluation.vqa_text import normalize, without_punctuation

ANNOTATORS = 10  # of the released questions
ENOUGH = 3  # annotators who agree make a full point


def read(source: str) -> list[Record]:
    """Reads the released annotations, their folder with the questions, or hub rows."""
    folder = Path(source)
    if not folder.is_dir() or not list(folder.glob("*annotations.json")):
        return records_from(source, _record)
    annotations = _only(folder, "*annotations.json")
    questions = _only(folder, "*questions.json")
    split = re.search(r"(train|val|test)\d{4}", questions.name)
    questions_by_id = {row["question_id"]: row for row in read_rows(str(questions))}
    rows = []
    for row in read_rows(str(annotations)):
        need(row, ("question_id", "image_id"), str(annotations))
        if row["question_id"] not in questions_by_id:
            raise InputError(f"{questions}: no question has the id {row['question_id']}.")
        image = f"COCO_{split[0] if split else 'val2014'}_{int(row['image_id']):012d}.jpg"
        rows.append(questions_by_id[row["question_id"]] | row | {"image": image})
    return records_from(source, _record, rows)


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise InputError(f"{folder}: expected one file {pattern}, found {len(found)}.")
    return found[0]


def _record(row: Row, number: int) -> Record:
    need(row, ("question_id", "answers"))
    given = cells.texts(row["answers"])
    if not given:
        raise InputError("there are no answers of annotators.")
    return {
        "id": cells.identity(row["question_id"]),
        "question": cells.text(row.get("question")),
        "answers": tuple(given),
        "answer": cells.text(row.get("multiple_choice_answer"))
        or Counter(given).most_common(1)[0][0],
        "type": cells.text(row.get("answer_type")) or None,
        "images": cells.pictures(row),
    }


def question(record: Record, style: str) -> Question:
    """The question with the short-answer sentence."""
    return Question(record["id"], short_answer(record["question"], style), record["images"])


def parse(record: Record, prediction: Prediction) -> str:
    """The response in the normal form of the official script."""
    return normalize(prediction.response)


def accuracy(answer: str, annotators: Sequence[str]) -> float:
    """min(agreeing / 3, 1), averaged over the sets that leave one annotator out.

    The annotators' answers lose their punctuation only when they are not all the same.
    """
    if len(set(annotators)) > 1:
        annotators = [without_punctuation(given) for given in annotators]
    return agreement(answer, annotators)


def agreement(answer: str, annotators: Sequence[str]) -> float:
    """min(agreeing / 3, 1), averaged over the sets that leave one annotator out."""
    agreeing = sum(given == answer for given in annotators)
    n = len(annotators)
    # Of the n sets, `agreeing` lack one of those who agree.
    return (
        agreeing * min(1.0, (agreeing - 1) / ENOUGH) + (n - agreeing) * min(1.0, agreeing / ENOUGH)
    ) / n


def tally(name: str, records: Sequence[Record], answers: Answers) -> Scores:
    """Mean accuracy, also by answer type (yes/no, number, other)."""
    rows = {
        r["id"]: accuracy(answers[r["id"]], r["answers"]) if r["id"] in answers else 0.0
        for r in records
    }
    metrics = mean_metrics(name, records, rows, [choices.field("type")], "percent", 100)
    return Scores(metrics, rows, warnings=few_annotators(records))


def few_annotators(records: Sequence[Record]) -> list[str]:
    """A warning where questions have fewer answers than the rule was made for."""
    few = [record for record in records if len(record["answers"]) < ANNOTATORS]
    if not few:
        return []
    least = min(len(record["answers"]) for record in few)
    return [
        f"{len(few)} of {len(records)} questions have fewer than {ANNOTATORS} annotators (down to "
        f"{least}): the rule wants {ENOUGH} others to agree, so that an answer all {least} gave "
        f"scores {100 * accuracy('x', ['x'] * least):.0f} %; these numbers are not comparable with "
        "published ones"
    ]


VQAV2 = Task(
    name="vqav2",
    read=read,
    question=question,
    protocols={"official": Protocol(parse, tally)},
    baselines=partial(choices.most_frequent, normal=normalize),
    releases={443757: "train", 214354: "validation"},
)
