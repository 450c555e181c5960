"""Scores of free answers to people's own rows: pure functions of two strings."""

import re
from collections.abc import Callable, Sequence
from typing import Literal

Metric = Literal["exact_match", "vqa_accuracy"]

NUMBERS = dict(
    zip(
        "none zero one two three four five six seven eight nine ten".split(),
        "0 0 1 2 3 4 5 6 7 8 9 10".split(),
        strict=True,
    )
)
ARTICLES = {"a", "an", "the"}
PUNCTUATION = re.compile(r"[;/\[\]\"{}()=+\\_\-<>@`?!]")
INSIDE_NUMBER = re.compile(r"(?<=\d),(?=\d)")
LONE_PERIOD = re.compile(r"(?<!\d)\.|\.(?!\d)")


def exact_match(response: str, answer: str) -> float:
    """1 when both say the same but for case, outer space, and a full stop at the end."""
    return float(_plain(response) == _plain(answer))


def vqa_accuracy(response: str, answers: str | Sequence[str]) -> float:
    """Accuracy of VQAv2: a third for each annotator that agrees, at most 1.

    Both sides are normalised as in the official evaluation (lower case, no articles and
    punctuation, digits for number words). With ten annotators the official figure is the mean over
    all leave-one-out subsets, which is what is computed; a single answer counts fully.

    Args:
        response: What the model said.
        answers: The answer, or those of all annotators.
    """
    given = vqa_normalize(response)
    gold = [vqa_normalize(a) for a in ([answers] if isinstance(answers, str) else answers)]
    if len(gold) == 1:
        return float(given == gold[0])
    agree = sum(given == g for g in gold)
    left_out = [agree - (given == g) for g in gold]
    return sum(min(1.0, n / 3) for n in left_out) / len(gold)


def vqa_normalize(text: str) -> str:
    """An answer in VQAv2's normal form."""
    text = text.replace("\n", " ").replace("\t", " ").strip().lower()
    text = PUNCTUATION.sub(" ", INSIDE_NUMBER.sub("", text))
    text = LONE_PERIOD.sub("", text).replace(",", " ").replace(":", " ")
    words = (NUMBERS.get(word, word) for word in text.split())
    return " ".join(word for word in words if word not in ARTICLES)


METRICS: dict[Metric, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "vqa_accuracy": vqa_accuracy,
}


def _plain(text: str) -> str:
    return text.strip().rstrip(".").strip().casefold()
