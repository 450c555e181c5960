"""The page of `crome compare`: runs side by side, the rows that changed first."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from crome.evaluation.paired import Comparison
from crome.evaluation.pictures import image_file
from crome.evaluation.predictions import Prediction
from crome.evaluation.report.bars import bar, charted, example
from crome.evaluation.report.gallery import CHANGES_FIRST
from crome.evaluation.report.page import write_report
from crome.evaluation.task import Record, Scores, Task

Run = tuple[Mapping[str, Prediction], Scores]


def write_comparison(
    path: Path,
    task: Task,
    records: Sequence[Record],
    runs: Mapping[str, Run],
    comparisons: Sequence[Comparison],
    image_root: Path,
) -> None:
    """Writes the page.

    Args:
        path: The HTML file.
        task: The benchmark.
        records: Its records.
        runs: Predictions and scores by name, in the order of the page.
        comparisons: Comparisons of each run but the first with the first.
        image_root: Folder that image paths start from; images within records go beside the page.
    """
    first, *others = runs
    predictions = {name: side for name, (side, _) in runs.items()}
    scored = {name: scores for name, (_, scores) in runs.items()}
    keys = dict.fromkeys(key for scores in scored.values() for key in charted(scores.metrics))
    facts = {
        f"{other} against {first}": described(comparison)
        for other, comparison in zip(others, comparisons, strict=True)
    }
    write_report(
        path,
        title=f"{task.name}: {', '.join(others)} against {first}",
        lead=f"{finding(others, first, comparisons)} {len(records):,} records; {next(iter(keys))}.",
        facts=facts,
        scores=[
            bar(name, key, scores.metrics[key], scores.metrics[key])
            for key in keys
            for name, scores in scored.items()
            if key in scores.metrics
        ],
        examples=[
            replace(
                example(record, predictions, scored, scored),
                question=record["question"] or task.question(record, task.style).prompt,
                change=change({record["id"], str(record.get("group"))}, comparisons),
                images=tuple(
                    image_file(image, image_root, path.parent / "images")
                    for image in record["images"]
                ),
            )
            for record in records
        ],
        order=CHANGES_FIRST,
    )


def described(comparison: Comparison) -> str:
    """Difference, interval, test and changed rows in a line."""
    low, high = comparison.interval
    return (
        f"row score {comparison.a:.3f} → {comparison.b:.3f}, {comparison.difference:+.3f} "
        f"({low:+.3f} to {high:+.3f}), {comparison.test} p = {comparison.p_value:.2g}; "
        f"{len(comparison.gained)} rows gained, {len(comparison.lost)} lost of {comparison.n}"
    )


def finding(others: Sequence[str], first: str, comparisons: Sequence[Comparison]) -> str:
    """Which runs differ from the first beyond chance, a sentence each."""
    sentences = []
    for other, comparison in zip(others, comparisons, strict=True):
        if not comparison.differ:
            sentences.append(f"{other} and {first} do not differ beyond chance.")
        else:
            direction = "better" if comparison.difference > 0 else "worse"
            sentences.append(f"{other} is {direction} than {first}.")
    return " ".join(sentences)


def change(units: set[str], comparisons: Sequence[Comparison]) -> Literal["worse", "better"] | None:
    """Whether a record scores lower than in the first run in any other, or else higher."""
    if any(units.intersection(comparison.lost) for comparison in comparisons):
        return "worse"
    better = any(units.intersection(comparison.gained) for comparison in comparisons)
    return "better" if better else None
