"""Scores the answers of two programs without a model, and compares them question by question.

    python examples/lamps.py lamps
    python examples/score_predictions.py lamps/held-out.jsonl

A predictions file needs an id and a response a line, so answers of any program can be scored. Here
one program always says no, and the other is right about every second question.
"""

import json
import sys
from pathlib import Path

from crome.data.reader import read_rows
from crome.evaluation.compare import compare
from crome.evaluation.score import score


def write(file: Path, responses: dict[str, str]) -> str:
    """Writes a predictions file and returns its name."""
    lines = [json.dumps({"id": name, "response": text}) for name, text in responses.items()]
    file.write_text("\n".join(lines) + "\n")
    return str(file)


def main(references: str) -> None:
    """Writes both files beside the references, scores them and compares them.

    Args:
        references: Rows with their right answers.
    """
    folder, rows = Path(references).parent, read_rows(Path(references))
    constant = write(folder / "constant.jsonl", {row.id: "no" for row in rows})
    half = {row.id: row.answer if n % 2 else "no" for n, row in enumerate(rows)}
    better = write(folder / "half-right.jsonl", half)
    for predictions in (constant, better):
        score("rows", predictions=predictions, references=references, json=False)
    compare(constant, better, task="rows", references=references, json=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
