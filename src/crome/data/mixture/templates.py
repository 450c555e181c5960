"""Templates: the words in which a row is put to the model."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from string import Formatter
from typing import Any

import yaml

from crome.errors import InputError
from crome.rows import Place, Row

FIELDS = ("question", "answer", "options", "inline_options", "letter")
OF_CHOICES = {"options", "inline_options", "letter"}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Pool:
    """Forms of one kind of instruction.

    Attributes:
        name: In messages and reports.
        ask: What the model reads, in several forms.
        target: What it learns to say.
    """

    name: str
    ask: tuple[str, ...]
    target: str

    def __post_init__(self) -> None:
        if not self.ask:
            raise InputError(f"templates {self.name}: no form under `ask`; give at least one.")
        for form in (*self.ask, self.target):
            if unknown := fields(form) - set(FIELDS):
                raise InputError(
                    f"templates {self.name}: {form!r} has the field {sorted(unknown)[0]!r}; there "
                    f"are {', '.join(FIELDS)}."
                )
        answers = {"answer", "letter"}
        for form in self.ask:
            if fields(form) & answers and fields(self.target) & answers:
                raise InputError(
                    f"templates {self.name}: {form!r} tells the answer that is to be learnt; take "
                    "it out, or make {question} the target."
                )

    @cached_property
    def needs_choices(self) -> bool:
        """Whether rows need options."""
        return any(fields(form) & OF_CHOICES for form in (*self.ask, self.target))

    @cached_property
    def asks_for_question(self) -> bool:
        """Whether the answer is given and the question is to be learnt."""
        return "question" in fields(self.target)

    def misfit(self, row: Row) -> tuple[str, str, str] | None:
        """Field, what was found and what was expected, where a row lacks what the forms need."""
        if not self.needs_choices:
            return None
        wanted = f"2 to {len(LETTERS)} options, as the templates {self.name} list them"
        if row.choices is None or len(row.choices) > len(LETTERS):
            found = "nothing" if row.choices is None else f"{len(row.choices)} options"
            return "choices", found, wanted
        if row.answer not in row.choices:
            return "answer", repr(row.answer)[:80], "the text of one of the choices"
        return None

    def word(self, row: Row, draw: int) -> Row:
        """The row in one of the forms.

        Args:
            row: That `misfit` has nothing against.
            draw: A random number that chooses the form.
        """
        values = {"question": row.question, "answer": row.answer}
        if self.needs_choices and row.choices is not None:
            pairs = list(zip(LETTERS, row.choices, strict=False))
            values["options"] = "\n".join(f"{letter}. {text}" for letter, text in pairs)
            values["inline_options"] = " ".join(f"({a.lower()}) {text}" for a, text in pairs)
            values["letter"] = LETTERS[row.choices.index(row.answer)]
        form = self.ask[draw % len(self.ask)]
        return replace(
            row,
            question=form.format_map(values),
            answer=self.target.format_map(values),
            places=moved(row, form, values),
        )


def moved(row: Row, form: str, values: Mapping[str, str]) -> tuple[Place, ...]:
    """The places of a row's media once its question stands in a form; at the front without it."""
    head, inside, _ = form.partition("{question}")
    start = len(head.format_map(values))
    return tuple(
        place._replace(offset=start + place.offset if inside else 0)
        if place.turn == len(row.history)
        else place
        for place in row.places
    )


def fields(form: str) -> set[str]:
    """Names in braces of a form.

    Raises:
        InputError: Its braces do not match.
    """
    try:
        return {name for _, name, _, _ in Formatter().parse(form) if name is not None}
    except ValueError as error:
        raise InputError(f"{form!r} is no template: {error}.") from error


@cache
def pools() -> Mapping[str, Pool]:
    """The pools that come with the package."""
    return {name: read_pool(name, given) for name, given in packaged().items()}


def packaged() -> dict[str, Any]:
    """The file of pools."""
    return dict(yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")))


def read_pool(name: str, given: Any) -> Pool:
    """A pool as it stands in a mixture: the name of a packaged one, or `ask` and `target`.

    Raises:
        InputError: It is neither.
    """
    if isinstance(given, str):
        if given not in pools():
            raise InputError(f"no templates {given!r}; there are {', '.join(pools())}.")
        return pools()[given]
    shape = isinstance(given, dict) and set(given) <= {"ask", "target"} and "ask" in given
    ask = [given["ask"]] if shape and isinstance(given["ask"], str) else shape and given["ask"]
    target = given.get("target", "{answer}") if shape else None
    if not isinstance(ask, list) or not all(isinstance(text, str) for text in [*ask, target]):
        raise InputError(
            f"templates of {name}: found {given!r}; expected the name of a pool, or `ask` (a list "
            "of texts) and `target` (a text)."
        )
    return Pool(name, tuple(ask), str(target))
