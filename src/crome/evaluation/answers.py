"""Scores of free answers to people's own rows: pure functions of two strings."""

from collections.abc import Callable
from typing import Literal

from crome.evaluation.tasks import vqav2
from crome.matching import exact_match as exact_match

Metric = Literal["exact_match", "vqa_accuracy"]


def vqa_accuracy(response: str, answer: str) -> float:
    """1 when both are the same in VQAv2's normal form: articles, punctuation, number words.

    Rows have one answer each; the official figure over ten annotators is `crome score vqav2`.
    """
    return float(vqav2.normalize(response) == vqav2.normalize(answer))


METRICS: dict[Metric, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "vqa_accuracy": vqa_accuracy,
}
