"""The wordings in which a question is put to a model.

`llava` is the default: its three sentences are part of the LLaVA-1.5 mixture, so a model trained on
that mixture has seen exactly these. `instructblip` has the forms of InstructBLIP and BLIVA, `rank`
the bare form whose continuation is an option's text, `official` the wording of the benchmark's own
files where it has one.
"""

from collections.abc import Mapping

from crome.errors import InputError

STYLES = ("llava", "instructblip", "rank", "official")
SHORT_ANSWER = "Answer the question using a single word or phrase."
OPTION_LETTER = "Answer with the option's letter from the given choices directly."


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
) -> tuple[str, tuple[str, ...]]:
    """A question with options.

    Args:
        question: Its text.
        options: Letter → text.
        style: One of `STYLES`.
        context: What stands before the question, as a hint or a passage.

    Returns:
        The prompt, and the candidates that continue it: letters where the options carry letters,
        the options' texts otherwise.
    """
    check_style(style)
    if style == "rank":
        return f"{_before(context)}Question: {question}\nAnswer:", tuple(options.values())
    if style == "instructblip":
        listed = " ".join(f"({letter.lower()}) {text}" for letter, text in options.items())
        front = f"context: {context} " if context else ""
        prompt = f"{front}Question: {question} Options: {listed}. Answer:"
        return prompt, tuple(options.values())
    lines = "\n".join(f"{letter}. {text}" for letter, text in options.items())
    return f"{_before(context)}{question}\n{lines}\n{OPTION_LETTER}", tuple(options)


def check_style(style: str) -> None:
    """Refuses an unknown style.

    Raises:
        InputError: It is not one of `STYLES`.
    """
    if style not in STYLES:
        raise InputError(f"prompt style {style!r} is unknown: use one of {', '.join(STYLES)}.")


def _before(context: str) -> str:
    return f"{context}\n" if context else ""
