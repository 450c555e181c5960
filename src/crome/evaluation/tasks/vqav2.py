"""VQAv2 (arXiv 1612.00837) and TextVQA (arXiv 1904.08920): short answers, ten annotators each.

The rules of `vqav2` are those of the official `vqaEval.py`, its peculiarities included. Those of
`textvqa` are of M4C's evaluator, which LLaVA uses: the annotators' answers are brought into the
same normal form as the response.
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
from crome.evaluation.tally import averaged
from crome.evaluation.task import Protocol, Record, Task
from crome.evaluation.tasks.choices import most_frequent
from crome.evaluation.tasks.prompts import short_question
from crome.evaluation.vqa_text import normalize, without_punctuation

ANNOTATORS = 10  # of the released questions
ENOUGH = 3  # annotators who agree make a full point


def _rows(source: str) -> list[Row]:
    """The released annotations, with their questions where a folder holds both, or hub rows."""
    folder = Path(source)
    if not folder.is_dir() or not list(folder.glob("*annotations.json")):
        return read_rows(source)
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
    return rows


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise InputError(f"{folder}: expected one file {pattern}, found {len(found)}.")
    return found[0]


def _record(row: Row, number: int) -> Record:
    """An annotated question; one without annotators' answers is of a test split."""
    given = cells.texts(row.get("answers"))
    common = Counter(given).most_common(1)[0][0] if given else ""
    return {
        "id": cells.identity(row["question_id"]),
        "question": cells.text(row.get("question")),
        "answers": tuple(given),
        "answer": (cells.text(row.get("multiple_choice_answer")) or common) if given else None,
        "type": cells.text(row.get("answer_type")) or None,
        "images": cells.pictures(row),
    }


def _textvqa(row: Row, number: int) -> Record:
    record = _record(row, number)
    images = record["images"] or cells.file_named(row.get("image_id"), "{}.jpg")
    return record | {"images": images}


def parse(record: Record, prediction: Prediction) -> str:
    """The response in the normal form of the official script."""
    return normalize(prediction.response)


def accuracy(answer: str, annotators: Sequence[str]) -> float:
    """The agreement with annotators who lose their punctuation unless they all say the same."""
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


def m4c(text: str) -> str:
    """The normal form of M4C's evaluator: commas, question marks and a possessive 's come first."""
    lowered = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return normalize(lowered.strip())


def parse_m4c(record: Record, prediction: Prediction) -> str:
    """The response in the normal form of M4C's evaluator."""
    return m4c(prediction.response)


def _official(record: Record, answer: str) -> float:
    return accuracy(answer, record["answers"])


def _m4c(record: Record, answer: str) -> float:
    return agreement(answer, [m4c(given) for given in record["answers"]])


_percent = partial(averaged, unit="percent", warn=few_annotators)
VQAV2 = Task(
    name="vqav2",
    read=partial(records_from, make=_record, rows=_rows),
    question=short_question,
    protocols={"official": Protocol(parse, _percent(_official, "type"))},
    baselines=partial(most_frequent, normal=normalize),
    releases={443757: "train", 214354: "validation"},
)
TEXTVQA = Task(
    name="textvqa",
    read=partial(records_from, make=_textvqa),
    question=short_question,
    protocols={"m4c": Protocol(parse_m4c, _percent(_m4c))},
    baselines=partial(most_frequent, normal=m4c),
    releases={5000: "validation"},
)
