"""The wordings in which a question is put to a model.

`llava` is the default: its three sentences are part of the LLaVA-1.5 mixture, so a model trained on
that mixture has seen exactly these. `instructblip` has the forms of InstructBLIP and BLIVA, `rank`
the bare form whose continuation is an option's text, `official` the wording of the benchmark's own
files where it has one.
"""

from collections.abc import Mapping

from crome.errors import InputError
from crome.evaluation.task import Question, Record

STYLES = ("llava", "instructblip", "rank", "official")
SHORT_ANSWER = "Answer the question using a single word or phrase."
OPTION_LETTER = "Answer with the option's letter from the given choices directly."


def short_question(record: Record, style: str) -> Question:
    """A record's question, to be answered with a word or a phrase."""
    return Question(short_answer(record["question"], style))


def yes_no_question(record: Record, style: str) -> Question:
    """A record's question, to be answered with yes or no."""
    return Question(short_answer(record["question"], style), ("yes", "no"))


def choice_question(record: Record, style: str) -> Question:
    """A record's question with its options."""
    return multiple_choice(record["question"], record["options"], style)


def bare_question(record: Record, style: str) -> Question:
    """A record's question, which is the whole prompt whatever the style."""
    return Question(record["question"])


def short_answer(question: str, style: str) -> str:
    """A question whose answer is a word or a phrase."""
    check_style(style)
    match style:
        case "llava":
            return f"{question}\n{SHORT_ANSWER}"
        case "instructblip":
            return f"Question: {question} Short answer:"
        case "rank":
            return f"Question: {question}\nAnswer:"
    return question


def multiple_choice(
    question: str, options: Mapping[str, str], style: str, context: str = ""
) -> Question:
    """A question with options.

    Args:
        question: Its text.
        options: Letter → text.
        style: One of `STYLES`.
        context: What stands before the question, as a hint or a passage.

    Returns:
        The prompt, and as candidates letters where the options carry letters, else their texts.
    """
    check_style(style)
    if style == "instructblip":
        front = f"context: {context} " if context else ""
        listed = " ".join(f"({letter.lower()}) {text}" for letter, text in options.items())
        prompt = f"{front}Question: {question} Options: {listed}. Answer:"
        return Question(prompt, tuple(options.values()))
    front = f"{context}\n" if context else ""
    if style == "rank":
        return Question(f"{front}Question: {question}\nAnswer:", tuple(options.values()))
    lines = "\n".join(f"{letter}. {text}" for letter, text in options.items())
    return Question(f"{front}{question}\n{lines}\n{OPTION_LETTER}", tuple(options))


def check_style(style: str) -> None:
    """Refuses an unknown style.

    Raises:
        InputError: It is not one of `STYLES`.
    """
    if style not in STYLES:
        raise InputError(f"prompt style {style!r} is unknown: use one of {', '.join(STYLES)}.")
