"""One HTML file about a run: facts, scores with intervals, the learning curve and examples.

The page needs nothing else: style, script and pictures are inside, and its content security policy
lets it load nothing and run only its own script, whatever the questions contain.
"""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from crome.evaluation.report.charts import COLORS, bar, bar_axis, learning_curve
from crome.evaluation.report.gallery import FAILURES_FIRST, Example, Order, gallery
from crome.storage import replaced

__all__ = ["Example", "Score", "write_report"]

HEADLINES = 5  # runs whose numbers fit into one line of large print


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
        order: Of the examples, by outcome.
        reproduce: The command that makes this report again.

    Raises:
        JobError: The file cannot be written.
    """
    sections = (
        scores_section(scores),
        curve_section(curve),
        gallery(examples, max_examples, order),
    )
    top = header(title, lead, headline(scores), facts, reproduce)
    page = document(title, top + main(sections))
    with replaced(path) as temporary:
        # Half a surrogate pair, which JSON can carry, has no encoding: it becomes a question mark.
        temporary.write_text(page, encoding="utf-8", errors="replace")


def document(title: str, body: str) -> str:
    """The page around a body."""
    style, script = (
        files("crome.evaluation.report").joinpath(name).read_text(encoding="utf-8")
        for name in ("report.css", "report.js")
    )
    policy = (
        f"default-src 'none'; img-src data:; style-src {digest(style)}; script-src {digest(script)}"
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
{body}
<script>{script}</script>
</body>
</html>
"""


def digest(text: str) -> str:
    """The source expression that allows exactly this inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def header(
    title: str, lead: str, numbers: str, facts: Mapping[str, str], reproduce: str | None
) -> str:
    """Title, finding in words and numbers, facts and command."""
    rows = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in facts.items()
    )
    command = (
        f'<h2 class="label">Reproduce</h2><pre tabindex="0"><code>{escape(reproduce)}</code></pre>'
        if reproduce
        else ""
    )
    return f"""<header>
<h1>{escape(title)}</h1>
<p class="lead">{escape(lead)}</p>
{numbers}
{f'<dl class="facts">{rows}</dl>' if rows else ""}
{command}
</header>
"""


def headline(scores: Sequence[Score]) -> str:
    """The first group in large print, the run that matters most first; nothing for many runs."""
    chosen = [score for score in scores if score.group == scores[0].group][::-1]
    if not 0 < len(chosen) <= HEADLINES:
        return ""
    numbers = "".join(
        f'<div class="of{color % COLORS}"><dt>{escape(score.run)}</dt><dd>{label(score)}</dd></div>'
        for color, score in enumerate(chosen)
    )
    return f'<dl class="headline" aria-label="{escape(chosen[0].group)}">{numbers}</dl>'


def main(sections: Iterable[str]) -> str:
    """The sections that are not empty."""
    return "<main>\n" + "\n".join(filter(None, sections)) + "\n</main>"


def scores_section(scores: Sequence[Score]) -> str:
    """Chart and table in one: every bar is a table row with its numbers."""
    if not scores:
        return ""
    # Colours are given out from the last run, the one that matters most, backwards.
    runs = list(dict.fromkeys(score.run for score in scores))[::-1]
    groups = "\n".join(
        score_group(group, [score for score in scores if score.group == group], runs)
        for group in dict.fromkeys(score.group for score in scores)
    )
    return f"""<section aria-labelledby="scores">
<h2 id="scores">Scores</h2>
<table class="scores">
<thead><tr>
<th scope="col"><span class="unseen">Run</span></th>
<td aria-hidden="true">{bar_axis()}</td>
<th scope="col">Score <small>95 % interval</small></th>
</tr></thead>
{groups}
</table>
</section>"""


def score_group(group: str, scores: Sequence[Score], runs: Sequence[str]) -> str:
    """The bars of one group of rows under its name."""
    sizes = {score.n for score in scores}
    shared = f"<small>n = {sizes.pop():,}</small>" if len(sizes) == 1 else ""
    rows = "\n".join(
        f'<tr><th scope="row">{escape(score.run)}'
        f"{'' if shared else f' <small>n = {score.n:,}</small>'}</th>"
        f'<td aria-hidden="true">{bar(score.value, score.low, score.high, runs.index(score.run))}'
        f"</td><td><b>{label(score)}</b> "
        f"<small>{interval(score)}</small></td></tr>"
        for score in scores
    )
    return (
        f'<tbody><tr class="group"><th colspan="3" scope="rowgroup">{escape(group)} {shared}'
        f"</th></tr>\n{rows}</tbody>"
    )


def label(score: Score) -> str:
    """What a score reads as, escaped."""
    return escape(score.label or f"{percent(score.value)} %")


def percent(share: float) -> str:
    """A share of one as a percentage with one decimal."""
    return f"{100 * share:.1f}"


def interval(score: Score) -> str:
    """The ends of an interval, or nothing."""
    if score.low != score.low or score.high != score.high:  # NaN
        return ""
    return f"{percent(score.low)} – {percent(score.high)}"


def curve_section(curve: Sequence[Mapping[str, Any]]) -> str:
    """Loss and learning rate by step."""
    charts = learning_curve(curve)
    if not charts:
        return ""
    return f"""<section aria-labelledby="curve">
<h2 id="curve">Learning curve</h2>
{charts}
</section>"""
