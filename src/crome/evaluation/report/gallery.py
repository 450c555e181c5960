"""The examples of a report: each with its pictures, the right answer and what every run said."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Literal

from PIL import Image

from crome.errors import InputError
from crome.images import View, load_image

Picture = Path | View | Image.Image
Outcome = Literal["broken", "worse", "wrong", "fixed", "better", "right", "unscored"]

LABELS: dict[Outcome, str] = {
    "broken": "Broken: right before",
    "worse": "Worse than before",
    "wrong": "Wrong",
    "fixed": "Fixed: wrong before",
    "better": "Better than before",
    "right": "Right",
    "unscored": "Not scored",
}
# Outcomes in the order of the page, and the share of its places that each group has as far as there
# are enough; what a group leaves free goes to the first that can fill it.
Order = Mapping[tuple[Outcome, ...], float]
FAILURES_FIRST: Order = {
    ("broken", "worse", "wrong"): 0.5,
    ("fixed", "better"): 0.25,
    ("right", "unscored"): 0.25,
}
CHANGES_FIRST: Order = {
    ("broken", "worse", "fixed", "better"): 1.0,
    ("wrong",): 0.0,
    ("right", "unscored"): 0.0,
}
QUESTION_LIMIT, ANSWER_LIMIT = 600, 300  # characters; what is longer is clipped, with a note
MAX_BYTES = 15_000  # a picture, before base64: 200 different ones stay below 4 MB
SIDE = 256  # pixels, of the longer side
LONG = 40  # characters, from which an answer stands below its name instead of beside it
CRISP = 100  # pictures smaller than this, in pixels, are enlarged without blurring


DRAWN = " Beside a picture stands the same one, dark where the Q-Former's queries do not look."


@dataclass(frozen=True)
class Example:
    """One evaluated row.

    The first run of `correct`, when there are several, is what the others are compared with.

    Attributes:
        id: Of the row.
        question: As asked.
        gold: The right answer.
        answers: By name of the run.
        correct: Whether the answer is right, by name of the run; runs without an entry are shown
            unjudged.
        kind: Of question, to filter by.
        images: In the order of the row; none for a text-only row.
        prompt: What the model was given in full, shown on request.
        change: Against the first run, for scores that are more than right and wrong.
        replies: What a judge said to the answer, by name of the run.
        drawn: Makes a further picture, called for the examples that are shown; None for none.
    """

    id: str
    question: str
    gold: str
    answers: dict[str, str]
    correct: dict[str, bool]
    kind: str | None = None
    images: tuple[Picture, ...] = ()
    prompt: str | None = None
    change: Literal["worse", "better"] | None = None
    replies: Mapping[str, str] = field(default_factory=dict)
    drawn: Callable[[], Image.Image | None] | None = None

    @property
    def outcome(self) -> Outcome:
        """How the run did, or any of several compared with the first."""
        if not self.correct:
            return self.change or "unscored"
        first, *others = self.correct.values()
        if first:
            return "broken" if not all(others) else self.change or "right"
        return "fixed" if any(others) else self.change or "wrong"


def gallery(examples: Sequence[Example], limit: int, order: Order = FAILURES_FIRST) -> str:
    """The section of examples with its filters, empty when there are none."""
    shown = select(examples, limit, order)
    if not shown:
        return ""
    pictures = Pictures()
    kinds = sorted({example.kind for example in shown if example.kind is not None})
    cards = "\n".join(card(example, pictures, kinds) for example in shown)
    return f"""<section aria-labelledby="examples">
<h2 id="examples">Examples</h2>
<p class="note">{selection_note(examples, shown)}{DRAWN if any(e.drawn for e in shown) else ""}</p>
{filters(shown, kinds)}
<svg class="unseen" aria-hidden="true"><defs>{"".join(pictures.definitions)}</defs></svg>
<ul class="gallery">
{cards}
</ul>
</section>"""


def select(examples: Sequence[Example], limit: int, order: Order = FAILURES_FIRST) -> list[Example]:
    """Picks at most `limit` examples in an order, those of a group spread evenly."""
    pools = [[e for e in examples if e.outcome in outcomes] for outcomes in order]
    counts = [
        min(len(pool), int(limit * share))
        for pool, share in zip(pools, order.values(), strict=True)
    ]
    for i, pool in enumerate(pools):  # places that others did not fill
        counts[i] += min(len(pool) - counts[i], limit - sum(counts))
    chosen = [
        pool[position * len(pool) // count]
        for pool, count in zip(pools, counts, strict=True)
        for position in range(count)
    ]
    place = [outcome for outcomes in order for outcome in outcomes]
    return sorted(chosen, key=lambda example: place.index(example.outcome))


def selection_note(examples: Sequence[Example], shown: Sequence[Example]) -> str:
    """How many of the examples are shown, in total and by outcome."""
    if len(shown) == len(examples):
        return f"All {len(shown):,} evaluated examples."
    parts = []
    for outcome in LABELS:
        total = sum(example.outcome == outcome for example in examples)
        if total:
            part = sum(example.outcome == outcome for example in shown)
            parts.append(f"{part:,} of {total:,} {outcome}")
    return f"{len(shown):,} of {len(examples):,} evaluated examples: {', '.join(parts)}."


def filters(shown: Sequence[Example], kinds: Sequence[str]) -> str:
    """The controls; hidden until the script that serves them runs."""
    found = [example.outcome for example in shown]
    choices = [("all", "All", len(shown))]
    for value, label, outcomes in (
        ("failure", "Failures", {"broken", "wrong"}),
        ("fixed", "Fixed", {"fixed"}),
        ("broken", "Broken", {"broken"}),
        ("better", "Better", {"better"}),
        ("worse", "Worse", {"worse"}),
    ):
        count = sum(outcome in outcomes for outcome in found)
        if count:
            choices.append((value, label, count))
    radios = "".join(
        f'<label><input type="radio" name="outcome" value="{value}"'
        f"{' checked' if value == 'all' else ''}><span>{label} <small>{count:,}</small></span>"
        "</label>"
        for value, label, count in choices
    )
    options = "".join(
        f'<option value="{i}">{escape(kind)}</option>' for i, kind in enumerate(kinds)
    )
    menu = (
        f'<label class="kinds">Kind <select name="kind"><option value="">all</option>{options}'
        "</select></label>"
    )
    return f"""<form id="filters" hidden>
<fieldset><legend class="unseen">Outcome</legend>{radios}</fieldset>
{menu if len(kinds) > 1 else ""}
<output>{len(shown):,} shown</output>
</form>"""


def card(example: Example, pictures: "Pictures", kinds: Sequence[str]) -> str:
    """One example."""
    outcome = example.outcome
    tags = "failure broken" if outcome == "broken" else "failure" if outcome == "wrong" else outcome
    kind = f"<span>{escape(example.kind)}</span>" if example.kind is not None else ""
    number = kinds.index(example.kind) if example.kind is not None else ""
    images = "".join(
        pictures.show(image, f"Picture {i} of example {example.id}")
        for i, image in enumerate(example.images, start=1)
    )
    if example.drawn is not None and (drawn := example.drawn()) is not None:
        images += pictures.draw(drawn, f"What the queries look at in example {example.id}")
    answers = "".join(
        answer(run, text, example.correct.get(run))
        + (line("judge", reply, "reply") if (reply := example.replies.get(run)) else "")
        for run, text in example.answers.items()
    )
    prompt = (
        f"<details><summary>Prompt</summary><pre>{clipped(example.prompt, QUESTION_LIMIT)}</pre>"
        "</details>"
        if example.prompt is not None
        else ""
    )
    return f"""<li class="card {outcome}" data-outcome="{tags}" data-kind="{number}">
{f'<div class="pictures">{images}</div>' if images else ""}
<div class="text">
<p class="meta"><b>{LABELS[outcome]}</b> {kind} <code>{clipped(example.id, 80)}</code></p>
<h3 dir="auto">{clipped(example.question, QUESTION_LIMIT)}</h3>
<dl>
{line("expected", example.gold)}
{answers}
</dl>
{prompt}
</div>
</li>"""


def answer(run: str, text: str, correct: bool | None) -> str:
    """What one run said, with a sign that does not need colour."""
    name, sign = {
        True: ("yes", '<span role="img" aria-label="right">✓</span>'),
        False: ("no", '<span role="img" aria-label="wrong">✗</span>'),
        None: ("open", ""),
    }[correct]
    return line(run, text, name, sign)


def line(name: str, text: str, kind: str = "", sign: str = "") -> str:
    """A name with a text beside it, or below it where the text is long."""
    shown = clipped(text, ANSWER_LIMIT) if text.strip() else "<i>no answer</i>"
    wide = " long" if len(text) > LONG else ""
    return (
        f'<div class="{kind}{wide}"><dt>{escape(name)}</dt><dd>{sign} <bdi>{shown}</bdi></dd></div>'
    )


def clipped(text: str, limit: int) -> str:
    """Escaped text, cut at `limit` characters with a note of its length."""
    if len(text) <= limit:
        return escape(text)
    return f'{escape(text[:limit])}… <small class="clipped">{len(text):,} characters</small>'


class Pictures:
    """The pictures of a page, each embedded once however many examples show it."""

    def __init__(self) -> None:
        self.numbers: dict[bytes, int] = {}  # by encoded picture, in the order of the page
        self.definitions: list[str] = []
        self.references: dict[object, str] = {}  # by file name or identity of the picture

    def show(self, picture: Picture, alt: str) -> str:
        """A reference to a picture, or why there is none: a report does not fail for a picture."""
        key = id(picture) if isinstance(picture, Image.Image) else str(picture)
        if key not in self.references:
            try:
                self.references[key] = self.embed(load_image(picture))
            except InputError as error:
                return f'<p class="note">{escape(str(error))}</p>'
        return svg(alt, self.references[key])

    def draw(self, picture: Image.Image, alt: str) -> str:
        """The same for a picture made for this page, which nothing else refers to."""
        return svg(alt, self.embed(picture))

    def embed(self, picture: Image.Image) -> str:
        """Defines a picture unless an equal one is defined, and returns how to refer to it."""
        style = ' class="crisp"' if max(picture.size) < CRISP else ""
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        width, height = picture.size
        data = encoded(picture)
        if data not in self.numbers:
            self.numbers[data] = len(self.numbers)
            self.definitions.append(
                f'<image id="p{self.numbers[data]}" width="{width}" height="{height}"{style} '
                f'href="data:image/webp;base64,{base64.b64encode(data).decode()}"/>'
            )
        return f'viewBox="0 0 {width} {height}"><use href="#p{self.numbers[data]}"/>'


def svg(alt: str, reference: str) -> str:
    """A place on the page for a defined picture."""
    return f'<svg role="img" aria-label="{escape(alt)}" {reference}</svg>'


def encoded(picture: Image.Image) -> bytes:
    """A picture as WebP of at most `MAX_BYTES`: lossless if that fits, as for drawings."""
    attempts = ((SIDE, None), (SIDE, 80), (SIDE, 50), (SIDE * 3 // 4, 50), (SIDE // 2, 50))
    for side, quality in attempts:
        smaller = picture.copy()
        smaller.thumbnail((side, side))
        file = io.BytesIO()
        smaller.save(file, "WEBP", lossless=quality is None, quality=quality or 50, method=1)
        if file.tell() <= MAX_BYTES:
            break
    return file.getvalue()
