"""One question with its answer: the row that every room of this package passes on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image

from crome.errors import InputError
from crome.images import View

Medium = Literal["image", "video", "audio"]
Picture = Path | View | Image.Image
Video = Path | tuple[Path, ...]
"""A film, or its frames as pictures in order."""


class Place(NamedTuple):
    """Where a picture, video or recording stands in the text of a row.

    Attributes:
        medium: What stands there.
        turn: In which question: 0 for that of `history[0]`, `len(history)` for `question`.
        offset: In front of which character of that question.
    """

    medium: Medium
    turn: int
    offset: int


@dataclass(frozen=True)
class Row:
    """One question with its answer.

    Attributes:
        images: Files or pictures, in order; empty for a row without.
        question: The text of the question.
        answer: The answer that is expected.
        id: Name of the row, unique in its file.
        choices: The options of a multiple-choice question.
        history: Earlier (question, answer) turns of the same conversation.
        kind: A group of rows whose score is also reported separately.
        videos: Files of videos, or the frames of each.
        audios: Files of recordings.
        places: Where media stand in the text, in reading order: the n-th place of a medium is that
            of the n-th image, video or recording. Media without a place stand in front of the
            first question.
        system: The system message of this row; None for that of the model.
        answers: Further answers that are right, too, for scoring.
    """

    images: tuple[Picture, ...]
    question: str
    answer: str
    id: str
    choices: tuple[str, ...] | None = None
    history: tuple[tuple[str, str], ...] = ()
    kind: str | None = None
    videos: tuple[Video, ...] = ()
    audios: tuple[Path, ...] = ()
    places: tuple[Place, ...] = ()
    system: str | None = None
    answers: tuple[str, ...] = ()

    @property
    def media(self) -> dict[Medium, tuple[Any, ...]]:
        """The media that the row shows, by kind; kinds that it does not show are absent."""
        kinds: dict[Medium, tuple[Any, ...]] = {
            "image": self.images,
            "video": self.videos,
            "audio": self.audios,
        }
        return {kind: items for kind, items in kinds.items() if items}

    def messages(self) -> list[dict[str, Any]]:
        """The row as the messages of a chat, as transformers' chat templates take them.

        Returns:
            `{"role", "content"}` of the system message, the earlier turns and the question, not of
            the answer. A content is a list of `{"type": "text", "text": …}` and of `{"type":
            "image", "image": …}` (`video`, `audio`), each at its place.
        """
        messages = [message("system", self.system)] if self.system is not None else []
        questions = [*(question for question, _ in self.history), self.question]
        placed = self._by_turn(len(questions))
        for turn, question in enumerate(questions):
            messages.append({"role": "user", "content": interleaved(question, placed[turn])})
            if turn < len(self.history):
                messages.append(message("assistant", self.history[turn][1]))
        return messages

    def _by_turn(self, turns: int) -> list[list[tuple[int, Medium, Any]]]:
        """(offset, medium, what) of the media of each turn, in reading order."""
        placed: list[list[tuple[int, Medium, Any]]] = [[] for _ in range(turns)]
        rest = {medium: iter(items) for medium, items in self.media.items()}
        later = [(place, next(rest[place.medium])) for place in self.places]
        for medium, left in rest.items():
            placed[0] += [(0, medium, item) for item in left]
        for place, item in later:
            placed[place.turn].append((place.offset, place.medium, item))
        return placed


def message(role: str, text: str) -> dict[str, Any]:
    """A chat message of text alone."""
    return {"role": role, "content": [{"type": "text", "text": text}]}


def laid_out(parts: Sequence[str | None]) -> tuple[str, list[int]]:
    """The text of a message that is written in parts, and where in it each part begins.

    Texts stand on lines of their own. Where a medium stands between two of them and one has white
    space on that side ("compare ", picture, " with ", picture), that white space is all there is.

    Args:
        parts: Texts, and None for each picture, video or recording.

    Returns:
        The text without white space around it, and an offset in it for each part.
    """
    pieces: list[str] = []
    starts, length, tail, behind = [], 0, "", False  # behind: a medium, since the last words
    for part in parts:
        words = "" if part is None else part.strip()
        new = []
        if part is None:
            new, tail, behind = [tail], "", True
        elif words and pieces:
            lead, _, _ = part.partition(words)
            new = [lead if behind and (lead or pieces[-1][-1:].isspace()) else "\n"]
        length += sum(map(len, new))
        starts.append(length)
        if part is not None and words:
            new.append(words)
            length, tail, behind = length + len(words), part[len(part.rstrip()) :], False
        pieces += filter(None, new)
    whole = "".join(pieces).rstrip()
    return whole, [min(start, len(whole)) for start in starts]


def interleaved(text: str, placed: Sequence[tuple[int, Medium, Any]]) -> list[dict[str, Any]]:
    """The content of a chat message: text, and media at their offsets in it."""
    content: list[dict[str, Any]] = []
    start = 0
    for offset, medium, item in placed:
        if text[start:offset].strip():
            content.append({"type": "text", "text": text[start:offset]})
        content.append({"type": medium, medium: item})
        start = max(start, offset)
    if text[start:].strip() or not content:
        content.append({"type": "text", "text": text[start:]})
    return content


def require_media(rows: Iterable[Row], known: Iterable[str]) -> None:
    """Refuses rows that show what a model has no encoder for.

    Args:
        rows: That a model is given.
        known: The media it takes, as `image`.

    Raises:
        InputError: The message names the first such row.
    """
    takes = set(known)
    for row in rows:
        for medium in row.media.keys() - takes:
            raise InputError(
                f"row {row.id} has {medium}, and this model takes "
                f"{' and '.join(sorted(takes)) or 'text alone'}; leave such rows out."
            )
