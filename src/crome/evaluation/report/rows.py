"""Accuracy and examples of rows whose answers are compared with one expected answer.

For studies that hold rows and answers in memory; `crome evaluate` goes by the task `rows`.
"""

from collections.abc import Callable, Sequence
from functools import partial

from PIL import Image
from rich.table import Table

from crome.evaluation.answers import METRICS, Metric
from crome.evaluation.report.gallery import Example
from crome.evaluation.report.page import Score
from crome.intervals import mean_interval
from crome.rows import Row

ALL = "all"


def score_run(
    run: str, rows: Sequence[Row], answers: dict[str, str], metric: Metric
) -> list[Score]:
    """Accuracy of a run over all rows and by kind, with intervals over pictures."""
    groups: dict[str, list[Row]] = {ALL: list(rows)}
    for row in rows:
        if row.kind is not None:
            groups.setdefault(row.kind, []).append(row)
    return [group_score(run, group, members, answers, metric) for group, members in groups.items()]


def group_score(
    run: str, group: str, rows: Sequence[Row], answers: dict[str, str], metric: Metric
) -> Score:
    """Accuracy on some rows; rows on one picture are not independent of each other."""
    values = [METRICS[metric](answers[row.id], row.answer) for row in rows]
    pictures = [
        tuple(id(image) if isinstance(image, Image.Image) else image for image in row.images)
        or row.id
        for row in rows
    ]
    low, high = mean_interval(values, pictures)
    return Score(run, group, len(values), sum(values) / len(values), low, high)


def score_table(scores: Sequence[Score], title: str) -> Table:
    """Runs by row, groups by column, in percent with intervals."""
    groups = list(dict.fromkeys(score.group for score in scores))
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for group in groups:
        table.add_column(group, justify="right")
    for run in dict.fromkeys(score.run for score in scores):
        cells = {
            s.group: f"{s.value:.1%} [dim]±{(s.high - s.low) / 2:.1%}[/]"
            for s in scores
            if s.run == run
        }
        table.add_row(run, *(cells.get(group, "") for group in groups))
    return table


def examples(
    rows: Sequence[Row],
    runs: dict[str, dict[str, str]],
    metric: Metric,
    drawn: Callable[[Row], Image.Image | None] | None = None,
) -> list[Example]:
    """Rows with every run's answer, for the report's gallery; `drawn` adds a picture to each."""
    return [
        Example(
            id=row.id,
            question=row.question,
            gold=row.answer,
            answers={run: texts[row.id] for run, texts in runs.items()},
            correct={
                run: METRICS[metric](texts[row.id], row.answer) >= 0.5
                for run, texts in runs.items()
            },
            kind=row.kind,
            images=row.images,
            drawn=partial(drawn, row) if drawn and row.images else None,
        )
        for row in rows
    ]
