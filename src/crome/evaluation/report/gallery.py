"""The examples of a report: each with its pictures, the right answer and what every run said."""

import base64
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
Order = Mapping[tuple[Outcome, ...], float]
"""Groups of outcomes in the order of the page, with the share of its examples that each group may
take. Places that a group cannot fill go to the first group that has examples left."""
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
QUESTION_LIMIT, ANSWER_LIMIT = 600, 300  # characters; longer texts are cut, and a note says so
MAX_BYTES = 15_000  # of a picture, before base64: 200 different pictures take less than 4 MB
SIDE = 256  # pixels, of the longer side
LONG = 40  # characters; a longer answer stands below its name instead of beside it
CRISP = 100  # pictures smaller than this, in pixels, are enlarged without blurring


@dataclass(frozen=True)
class Example:
    """One evaluated row.

    The first run of `correct`, when there are several, is what the others are compared with.

    Attributes:
        id: Id of the row.
        question: The text of the question.
        gold: The right answer.
        answers: By name of the run.
        correct: Whether the answer is right, by name of the run; runs without an entry are shown
            unjudged.
        kind: Kind of the question, to filter by.
        images: In the order of the row; none for a text-only row.
        prompt: The whole prompt, which the page hides until it is opened.
        change: Against the first run, for scores that are more than right and wrong.
        replies: A judge's reply to the answer, by name of the run.
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
        """Whether the run is right or, with several runs, what changed against the first one."""
        if not self.correct:
            return self.change or "unscored"
        first, *others = self.correct.values()
        if first:
            return "broken" if not all(others) else self.change or "right"
        return "fixed" if any(others) else self.change or "wrong"


def select(examples: Sequence[Example], limit: int, order: Order = FAILURES_FIRST) -> list[Example]:
    """Picks at most `limit` examples, evenly from all over each group, in the order of the page."""
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


def selection_note(examples: Sequence[Example], chosen: Sequence[Example]) -> str:
    """How many of the examples are shown, in total and by outcome."""
    if len(chosen) == len(examples):
        return f"All {len(chosen):,} evaluated examples."
    totals, counts = (Counter(e.outcome for e in some) for some in (examples, chosen))
    parts = [
        f"{counts[outcome]:,} of {totals[outcome]:,} {outcome}"
        for outcome in LABELS
        if totals[outcome]
    ]
    return f"{len(chosen):,} of {len(examples):,} evaluated examples: {', '.join(parts)}."


def filters(chosen: Sequence[Example]) -> list[tuple[str, str, int]]:
    """Value, label and number of examples of each choice of outcomes that has any."""
    counts = Counter(example.outcome for example in chosen)
    choices = [
        ("all", "All", len(chosen)),
        ("failure", "Failures", counts["broken"] + counts["wrong"]),
        ("fixed", "Fixed", counts["fixed"]),
        ("broken", "Broken", counts["broken"]),
        ("better", "Better", counts["better"]),
        ("worse", "Worse", counts["worse"]),
    ]
    return [choice for choice in choices if choice[2]]


@dataclass(frozen=True)
class Embedded:
    """A picture of the page, or why there is none: a report does not fail for a picture.

    Attributes:
        number: In the order of the page, from 0.
        width: In pixels.
        height: In pixels.
        crisp: Whether it is enlarged without blurring.
        data: The picture as WebP, in base64.
        trouble: Why the picture could not be read.
    """

    number: int = 0
    width: int = 0
    height: int = 0
    crisp: bool = False
    data: str = ""
    trouble: str = ""


class Pictures:
    """The pictures of a page, each embedded once however many examples show it."""

    def __init__(self) -> None:
        self._by_data: dict[bytes, Embedded] = {}
        self._by_source: dict[object, Embedded] = {}  # by file name or identity of the picture

    @property
    def embedded(self) -> list[Embedded]:
        """All that were shown so far."""
        return list(self._by_data.values())

    def show(self, picture: Picture) -> Embedded:
        """Embeds a picture unless it is there."""
        key = id(picture) if isinstance(picture, Image.Image) else str(picture)
        if key not in self._by_source:
            try:
                self._by_source[key] = self.embed(load_image(picture))
            except InputError as error:
                return Embedded(trouble=str(error))
        return self._by_source[key]

    def embed(self, picture: Image.Image) -> Embedded:
        """Embeds a picture that was made for this page, which nothing else refers to."""
        crisp = max(picture.size) < CRISP
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        data = encoded(picture)
        if data not in self._by_data:
            text = base64.b64encode(data).decode()
            self._by_data[data] = Embedded(len(self._by_data), *picture.size, crisp, text)
        return self._by_data[data]


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
