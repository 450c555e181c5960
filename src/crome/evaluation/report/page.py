"""One HTML file about a run: facts, scores with intervals, the learning curve and examples.

The page needs nothing else: style, script and pictures are inside, and its content security policy
lets it load nothing and run only its own script, whatever the questions contain. `report.html` is
its template, which escapes every text.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment

from crome.evaluation.report import gallery
from crome.evaluation.report.charts import anchor, learning_curve
from crome.evaluation.report.gallery import FAILURES_FIRST, Example, Order, Pictures
from crome.storage import replaced

__all__ = ["Example", "Score", "write_report"]

COLORS = 6  # of report.css; more runs start again
HEADLINES = 5  # runs whose numbers fit into one line of large print
TICKS = (0, 25, 50, 75, 100)  # of the bars, in per cent


@dataclass(frozen=True)
class Score:
    """What one run reached on one group of rows: one bar.

    Attributes:
        run: Such as "before", "after" or a baseline, "blank image".
        group: Such as "all" or a kind of question.
        n: Number of rows.
        value: The score, in [0, 1].
        low: Lower end of its 95 % interval; NaN for no interval.
        high: Upper end.
        label: What stands beside the bar instead of the percentage, for numbers on another scale.
    """

    run: str
    group: str
    n: int
    value: float
    low: float
    high: float
    label: str | None = None


def write_report(
    path: Path,
    *,
    title: str,
    lead: str,
    facts: Mapping[str, str],
    scores: Sequence[Score],
    curve: Sequence[Mapping[str, Any]] = (),
    examples: Sequence[Example] = (),
    max_examples: int = 200,
    order: Order = FAILURES_FIRST,
    reproduce: str | None = None,
) -> None:
    """Writes the report whole or not at all.

    Args:
        path: The HTML file; its folder is made if needed.
        title: Heading of the page.
        lead: The finding, in one sentence.
        facts: Such as trained parameters and seconds, by name.
        scores: Groups, and runs within a group, are shown in the order of first appearance.
        curve: Log entries with "step", "loss" and, optionally, "learning_rate"; entries without a
            loss are passed over, so the trainer's whole history can be given.
        examples: Evaluated rows.
        max_examples: How many to show at most; a picture takes up to 20 kB of the file.
        order: Order of the examples, by outcome.
        reproduce: The command that makes this report again.

    Raises:
        JobError: The file cannot be written.
    """
    groups = {name: [s for s in scores if s.group == name] for name in dict.fromkeys(
        score.group for score in scores
    )}  # fmt: skip
    chosen = gallery.select(examples, max_examples, order)
    here = files("crome.evaluation.report")
    template, style, script = (
        here.joinpath(name).read_text(encoding="utf-8")
        for name in ("report.html", "report.css", "report.js")
    )
    page = Environment(autoescape=True, keep_trailing_newline=True).from_string(template).render(
        title=title, lead=lead, facts=facts, reproduce=reproduce, style=style, script=script,
        digest=digest, anchor=anchor, colors=COLORS, headlines=HEADLINES, ticks=TICKS,
        scores=scores, groups=groups,
        # Colours are given out from the last run, the one that matters most, backwards.
        runs=list(dict.fromkeys(score.run for score in scores))[::-1],
        headline=next(iter(groups.values()), [])[::-1], charts=learning_curve(curve),
        examples=chosen, note=gallery.selection_note(examples, chosen), pictures=Pictures(),
        filters=gallery.filters(chosen), labels=gallery.LABELS, long=gallery.LONG,
        kinds=sorted({example.kind for example in chosen if example.kind is not None}),
        question_limit=gallery.QUESTION_LIMIT, answer_limit=gallery.ANSWER_LIMIT,
    )  # fmt: skip
    with replaced(path) as temporary:
        # Half a surrogate pair, which JSON can carry, has no encoding: it becomes a question mark.
        temporary.write_text(page, encoding="utf-8", errors="replace")


def digest(text: str) -> str:
    """The source expression of a content security policy that allows exactly this inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
