"""Scores of free answers to people's own rows: pure functions of two strings."""

from collections.abc import Callable
from typing import Literal

from crome.evaluation.tasks import vqav2

Metric = Literal["exact_match", "vqa_accuracy"]


def exact_match(response: str, answer: str) -> float:
    """1 when both say the same but for case, outer space, and a full stop at the end."""
    return float(_plain(response) == _plain(answer))


def vqa_accuracy(response: str, answer: str) -> float:
    """1 when both are the same in VQAv2's normal form: articles, punctuation, number words.

    Rows have one answer each; the official figure over ten annotators is `crome score vqav2`.
    """
    return float(vqav2.normalize(response) == vqav2.normalize(answer))


METRICS: dict[Metric, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "vqa_accuracy": vqa_accuracy,
}


def _plain(text: str) -> str:
    return text.strip().rstrip(".").strip().casefold()
