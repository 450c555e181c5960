"""Scores of free answers: pure functions of a response and an expected answer, from 0 to 1."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from crome.evaluation.vqa_text import normalize
from crome.matching import exact_match, half_width

Metric = Literal["exact_match", "vqa_accuracy"]
Comparison = Callable[[str, str], float]

TOLERANCE = 0.05  # of ChartQA's relaxed accuracy (arXiv 2203.10244)
ANLS_THRESHOLD = 0.5  # of arXiv 1907.00490: a text further away than half of it is another text
_NUMBER = re.compile(
    r"[^\w.+-]{0,3}([+-]?(?:\d+(?:[,  ]\d{3})+|\d+)?(?:\.\d+)?(?:e[+-]?\d+)?)\s*(%|[^\d\s]{0,12})",
    re.I,
)


def vqa_accuracy(response: str, answer: str) -> float:
    """1 when both are the same in VQAv2's normal form: articles, punctuation, number words.

    For a single expected answer; the official figure over ten annotators is `crome score vqav2`.
    """
    return float(normalize(response) == normalize(answer))


def number(text: str) -> float | None:
    """The number that a short answer is, with or without a unit; None where it is none.

    "1,250 m", "$1250" and "1.25e3" are the same number, "40 %" is 0.4.
    """
    found = _NUMBER.fullmatch(half_width(text).strip().rstrip(". "))
    if not found or not any(character.isdigit() for character in found[1]):
        return None
    value = float(re.sub(r"[,  ]", "", found[1]))
    return value / 100 if found[2] == "%" else value


def within(response: str, answer: str, tolerance: float = TOLERANCE) -> float:
    """1 when both are numbers that differ by the tolerance at most, else by exact match.

    Args:
        response: What was answered.
        answer: What was expected.
        tolerance: Largest difference, relative to the expected number.
    """
    given, expected = number(response), number(answer)
    if given is None or expected is None:
        return exact_match(response, answer)
    # The slack keeps 105 within 5 % of 100, whatever the floats say.
    return float(abs(given - expected) <= tolerance * abs(expected) * (1 + 1e-9))


def anls(response: str, answer: str) -> float:
    """Normalised Levenshtein similarity of two texts, 0 below a half (arXiv 1907.00490).

    Case and runs of space do not count.
    """
    a, b = (" ".join(text.lower().split()) for text in (response, answer))
    longest = max(len(a), len(b))
    if not longest:
        return 1.0
    if abs(len(a) - len(b)) > ANLS_THRESHOLD * longest:
        return 0.0
    similarity = 1 - edit_distance(a, b) / longest
    return similarity if similarity >= ANLS_THRESHOLD else 0.0


def edit_distance(a: str, b: str) -> int:
    """Least number of characters to insert, delete or replace to make one text of the other."""
    row = list(range(len(b) + 1))
    for i, first in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, second in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(
                row[j] + 1, row[j - 1] + 1, diagonal + (first != second)
            )  # fmt: skip
    return row[-1]


def best(comparison: Comparison, response: str, accepted: Sequence[str]) -> float:
    """The score against the accepted answer that fits best."""
    return max(comparison(response, answer) for answer in accepted)


METRICS: dict[Metric, Comparison] = {
    "exact_match": exact_match,
    "vqa_accuracy": vqa_accuracy,
}
COMPARISONS: dict[str, Comparison] = {
    "exact-match": exact_match,
    "vqa-accuracy": vqa_accuracy,
    "number": partial(within, tolerance=0.0),
    "within-1": partial(within, tolerance=0.01),
    "within-5": within,
    "within-10": partial(within, tolerance=0.10),
    "anls": anls,
}
"""Protocols of people's own rows that compare texts; within-5 allows numbers 5 % either way."""
