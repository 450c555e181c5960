"""Predictions in the table layout that VLMEvalKit scores, to get its number in its environment."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from crome.evaluation.predictions import Prediction
from crome.evaluation.task import Record

# Our fields → its columns, in its order; a column stands there when any record fills it.
COLUMNS = {
    "id": "index",
    "question": "question",
    "hint": "hint",
    "answer": "answer",
    "category": "category",
    "l2-category": "l2-category",
    "subtask": "category",
    "image": "image_path",
    "capabilities": "capability",
}


def write_tsv(
    path: str | Path, records: Sequence[Record], predictions: Mapping[str, Prediction]
) -> None:
    """Writes index, question, options A, B, …, what else the records know, and the prediction.

    Cells with tabs, quotes or line breaks are quoted, as its reader (pandas) expects.

    Args:
        path: The .tsv file.
        records: Of the benchmark.
        predictions: By id; a record without one gets an empty cell.
    """
    letters = sorted({letter for record in records for letter in record.get("options") or {}})
    fields = {f: c for f, c in COLUMNS.items() if any(_text(r.get(f)) for r in records)}
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow([*fields.values(), *letters, "prediction"])
        for record in records:
            options, prediction = record.get("options") or {}, predictions.get(record["id"])
            writer.writerow(
                [_text(record.get(field)) for field in fields]
                + [options.get(letter, "") for letter in letters]
                + [prediction.response if prediction else ""]
            )


def _text(value: object) -> str:
    """A cell; flags and encoded images stay out of the table."""
    if isinstance(value, tuple | list):
        return ",".join(str(part) for part in value)
    return value if isinstance(value, str) else ""
