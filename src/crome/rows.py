"""One question with its answer: the row that every room of this package passes on."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image


@dataclass(frozen=True)
class Row:
    """One question with its answer.

    Attributes:
        images: Files or pictures, in order; empty for a text-only row.
        question: The text of the question.
        answer: The answer that is expected.
        id: Name of the row, unique in its file.
        choices: The options of a multiple-choice question.
        history: Earlier (question, answer) turns of the same conversation.
        kind: A group of rows whose score is also reported separately.
    """

    images: tuple[Path | Image.Image, ...]
    question: str
    answer: str
    id: str
    choices: tuple[str, ...] | None = None
    history: tuple[tuple[str, str], ...] = ()
    kind: str | None = None
