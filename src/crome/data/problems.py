"""What is wrong with the entries of a file, and how a message shows what was found."""

import difflib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Problem:
    """What is wrong with one field of one entry."""

    place: str
    field: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.place}, {self.field}: found {self.found}; expected {self.expected}"


@dataclass
class Problems:
    """The first problems of a file in full, and the number of all of them by kind.

    Attributes:
        keep: How many problems are kept in full: a file may be wrong in millions of places.
        first: Those problems.
        reasons: How many problems there are of each kind.
    """

    keep: int = 50
    first: list[Problem] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, problem: Problem) -> None:
        """Counts a problem, and keeps it if it is among the first."""
        place = re.sub(r"\[\d+\]", "", problem.field)
        self.reasons[f"{place} is not {problem.expected}"] += 1
        if len(self.first) < self.keep:
            self.first.append(problem)

    def __len__(self) -> int:
        return self.reasons.total()

    def summary(self) -> str:
        """The kinds with their numbers, the most frequent first."""
        return "; ".join(f"{number:,} × {reason}" for reason, number in self.reasons.most_common())


def show(value: object) -> str:
    """A value as it was found in a file, short enough for a message."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def show_path(path: object) -> str:
    """A path for a message: of a long one the end, which says more than the beginning."""
    text = show(str(path))
    whole = repr(str(path))
    return text if text == whole or not str(path).isprintable() else f"'…{whole[-77:]}"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: "1 row", "2,000 rows"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def unknown_keys(given: dict[Any, Any], known: Iterable[str]) -> list[str]:
    """A line about each key that is none of the known ones."""
    return [
        f"unknown key {key!r}{instead(str(key), known)}" for key in given if key not in set(known)
    ]


def instead(key: str, known: Iterable[str]) -> str:
    """What a misspelt key may have meant, and which keys there are."""
    names = list(known)
    near = difflib.get_close_matches(key, names, 1)
    meant = f", meant {near[0]!r}?" if near else ""
    return f"{meant} (there are {', '.join(names)})"
