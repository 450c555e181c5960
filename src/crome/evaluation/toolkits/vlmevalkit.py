"""Predictions in the table layout that VLMEvalKit scores, to get its number in its environment."""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from crome.evaluation.predictions import Prediction
from crome.evaluation.task import Record
from crome.storage import replaced

PREDICTION = "prediction"


def write_tsv(
    path: str | Path,
    records: Sequence[Record],
    predictions: Mapping[str, Prediction],
    cells: Callable[[Record], dict[str, str]],
) -> int:
    """Writes the records' cells and the predictions as a table.

    Cells with tabs, quotes or line breaks are quoted, as its reader (pandas) expects.

    Args:
        path: The .tsv file.
        records: Records of the benchmark.
        predictions: By id; a record without one gets an empty cell.
        cells: From a record to its cells by column; an empty dict leaves the record out.

    Returns:
        How many rows were written.
    """
    rows = []
    for record in records:
        if row := cells(record):
            given = predictions.get(record["id"])
            rows.append(row | {PREDICTION: given.response if given else ""})
    names = dict.fromkeys(name for row in rows for name in row if name != PREDICTION)
    with (
        replaced(Path(path)) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="replace") as file,
    ):
        writer = csv.DictWriter(
            file, [*names, PREDICTION], restval="", delimiter="\t", lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)
    return len(rows)
