"""What the multiple-choice benchmarks share: reading a letter, ranking, baselines.

A record of these tasks has `options` (letter → text) and `answer` (a letter).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from crome.errors import InputError
from crome.evaluation.cells import LETTERS
from crome.evaluation.predictions import Prediction
from crome.evaluation.replies import tolerant_letter
from crome.evaluation.task import Protocol, Record, Tally


def own_protocols(tally: Tally) -> dict[str, Protocol]:
    """The protocols that every multiple-choice benchmark has beside its official one.

    Ranking by summed loss, as published, and by loss per token, as an extra; a tolerant reading of
    generated answers.
    """
    return {
        "rank": Protocol(ranked, tally, "rank"),
        "rank-per-token": Protocol(partial(ranked, per_token=True), tally, "rank-per-token"),
        "tolerant": Protocol(tolerant, tally),
    }


def tolerant(record: Record, prediction: Prediction) -> str | None:
    """The letter that a response states anywhere; no benchmark's rule, see `replies`."""
    return tolerant_letter(prediction.response, record["options"])


def first_character(record: Record, prediction: Prediction) -> str | None:
    """The first character of the response when it is one of the options' letters."""
    first = prediction.response.strip()[:1].upper()
    return first if first in (record["options"] or LETTERS) else None


def ranked(record: Record, prediction: Prediction, *, per_token: bool = False) -> str:
    """The letter of the candidate with the smallest loss; the first of equals.

    Args:
        record: A record with its options in the order of the candidates.
        prediction: A prediction with one loss per option.
        per_token: Whether the losses must be means over tokens instead of sums.

    Raises:
        InputError: The prediction has no losses, too many or too few, or of the other kind.
    """
    losses, options = prediction.losses, list(record["options"])
    if losses is None:
        raise InputError(
            f"prediction {prediction.id}: ranking needs the candidates' losses, and this file "
            "was made by generation: choose another --protocol."
        )
    if len(losses) != len(options):
        raise InputError(
            f"prediction {prediction.id}: {len(losses)} losses for {len(options)} options."
        )
    if bool(prediction.generation.get("length_normalised", False)) != per_token:
        has, wants = ("sums", "means") if per_token else ("means", "sums")
        raise InputError(
            f"prediction {prediction.id}: its losses are {has} over tokens, the protocol wants "
            f"{wants} (generation.length_normalised in the predictions file)."
        )
    return str(options[min(range(len(losses)), key=losses.__getitem__)])


def most_frequent(
    records: Sequence[Record], normal: Callable[[str], str] = str
) -> dict[str, dict[str, str]]:
    """The constant answer that most records have, in the form that answers are compared in."""
    common = normal(Counter(record["answer"] for record in records).most_common(1)[0][0])
    return {f"always {common}": {record["id"]: common for record in records}}


def split_options(text: str) -> tuple[str, dict[str, str]]:
    """Cuts a text of LLaVA's question files into the question and its `A. …` lines."""
    question, mark, tail = text.partition("\nA. ")
    options: dict[str, str] = {}
    for line in (mark.lstrip("\n") + tail).split("\n"):
        letter = LETTERS[len(options)]
        if line.startswith(f"{letter}. "):
            options[letter] = line[3:]
        elif options:  # an option of several lines
            options[LETTERS[len(options) - 1]] += f"\n{line}"
    return question, options
