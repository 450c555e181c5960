"""Rows and answers that a study holds in memory, scored as `crome evaluate` scores own rows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rich.table import Table

from crome.evaluation.predictions import Prediction
from crome.evaluation.report.bars import example
from crome.evaluation.report.gallery import Example
from crome.evaluation.report.page import Score
from crome.evaluation.scoring import score_answers
from crome.evaluation.task import Scores
from crome.evaluation.tasks.rows import ROWS, record_of
from crome.rows import Row

ALL = "all"


def score_run(run: str, rows: Sequence[Row], answers: Mapping[str, str]) -> list[Score]:
    """Exact match of a run over all rows and by kind, with intervals over pictures."""
    (headline, whole), *parts = _scores(rows, answers).metrics.items()
    groups = {ALL: whole} | {name.removeprefix(f"{headline}/"): metric for name, metric in parts}
    return [
        Score(run, group, metric.n, metric.value, *(metric.interval or ()))
        for group, metric in groups.items()
    ]


def _scores(rows: Sequence[Row], answers: Mapping[str, str]) -> Scores:
    return score_answers(ROWS, [record_of(row) for row in rows], _predictions(answers))[0]


def _predictions(answers: Mapping[str, str]) -> dict[str, Prediction]:
    return {identity: Prediction(identity, response=text) for identity, text in answers.items()}


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


def examples(rows: Sequence[Row], runs: Mapping[str, Mapping[str, str]]) -> list[Example]:
    """Rows with every run's answer, for the report's gallery."""
    predictions = {run: _predictions(answers) for run, answers in runs.items()}
    scored = {run: _scores(rows, answers) for run, answers in runs.items()}
    return [
        replace(example(record_of(row), predictions, scored, scored), images=row.images)
        for row in rows
    ]
