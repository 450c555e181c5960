"""Messages as clients send them → the turns of a prompt.

Clients send what their users made: two messages of one side, an answer that was broken off, several
system messages. Neighbours of one role are joined, and an answer at the end is continued.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from crome.rows import Medium, Place, laid_out
from crome.serving.errors import ApiError, field_path
from crome.serving.schema import (
    AudioPart,
    AudioUrlPart,
    ImagePart,
    Message,
    Part,
    RefusalPart,
    TextPart,
)

SYSTEM = ("system", "developer")


@dataclass(frozen=True)
class Attachment:
    """A picture or a recording in a request.

    Attributes:
        url: Where it is, or the data itself.
        param: The field that has it, for errors.
        medium: What it is.
    """

    url: str
    param: str
    medium: Medium = "image"


@dataclass(frozen=True)
class Conversation:
    """What was said, in the form in which a prompt takes it.

    Attributes:
        question: The last thing that the user said.
        history: (question, answer) of earlier turns.
        system: All system messages, joined; None without one.
        begun: The beginning of the answer, to be continued.
        media: All pictures and recordings, in their order.
        places: Where each of them stands.
        param: The field that has all this, for errors.
    """

    question: str
    history: tuple[tuple[str, str], ...] = ()
    system: str | None = None
    begun: str = ""
    media: tuple[Attachment, ...] = ()
    param: str = "messages"
    places: tuple[Place, ...] = ()

    def without_system(self) -> "Conversation":
        """The same, with the system's words in front of the user's first ones."""
        if self.system is None:
            return self
        front = f"{self.system.lstrip()}\n"
        places = tuple(
            place._replace(offset=place.offset + len(front))
            if place.turn == 0 and place.offset  # pictures in front of all words stay there
            else place
            for place in self.places
        )
        if not self.history:
            question = f"{front}{self.question}".strip()
            return replace(self, question=question, system=None, places=places)
        (question, answer), *rest = self.history
        first = (f"{front}{question}".strip(), answer)
        return replace(self, history=(first, *rest), system=None, places=places)


def conversation(
    messages: Sequence[Message], param: str = "messages", first: int = 0
) -> Conversation:
    """Joins messages into turns of user and assistant.

    Args:
        messages: In their order.
        param: The field that they came in.
        first: How many of them came from elsewhere.

    Raises:
        ApiError: Nobody asks anything, or somebody else than the user shows a picture.
    """
    media = tuple(
        one for i, message in enumerate(messages) for one in _media(message, [param, i - first])
    )
    system = [text for m in messages if m.role in SYSTEM and (text := words(m)).strip()]
    spoken = [m for m in messages if m.role not in SYSTEM and (words(m).strip() or _media(m, []))]
    turns: list[tuple[str, str]] = []
    places: list[Place] = []
    for role, group in groupby(spoken, lambda message: message.role):
        neighbours = list(group)
        if role == "user":
            parts = [part for message in neighbours for part in parts_of(message)]
            text, starts = laid_out(list(map(text_of, parts)))
            turn = (len(turns) + 1) // 2
            for part, start in zip(parts, starts, strict=True):
                if (one := attachment(part)) is not None:
                    places.append(Place(one.medium, turn, start))
        else:
            text = "\n".join(filter(None, map(words, neighbours)))
        turns.append((role, text))
    if messages[-1].role == "user" and not (turns and turns[-1][0] == "user"):
        where = field_path([param, len(messages) - 1 - first, "content"])
        raise ApiError(400, "the last message has no text.", "invalid_value", where)
    begun = turns.pop()[1] if turns and turns[-1][0] == "assistant" else ""
    if turns and turns[0][0] == "assistant":  # a greeting, which answers nothing
        turns.insert(0, ("user", ""))
    if not turns and system:  # some clients put a whole task into the system message
        turns, system = [("user", "\n\n".join(system))], []
    if not turns and begun:
        turns = [("user", "")]
    if not turns or not (turns[-1][1].strip() or media or begun):
        raise ApiError(400, "the messages ask nothing.", "invalid_value", param)
    texts = [text for _, text in turns]
    history = tuple(zip(texts[:-1:2], texts[1::2], strict=True))
    return Conversation(
        texts[-1], history, "\n\n".join(system) or None, begun, media, param, tuple(places)
    )


def words(message: Message) -> str:
    """The text of a message."""
    return "\n".join(text for part in parts_of(message) if (text := text_of(part)) is not None)


def parts_of(message: Message) -> Sequence[str | Part]:
    """The parts of a message, whose content may be a text alone."""
    return [message.content] if isinstance(message.content, str) else message.content


def text_of(part: str | Part) -> str | None:
    """The text of a part; None where a picture or a recording stands."""
    match part:
        case str():
            return part
        case TextPart():
            return part.text
        case RefusalPart():
            return part.refusal
        case _:
            return None


def attachment(part: str | Part, where: str = "") -> Attachment | None:
    """The picture or recording that a part is; None for words.

    Args:
        part: Of a message.
        where: The part's own field, for errors.
    """
    match part:
        case ImagePart():
            return Attachment(part.image_url.url, f"{where}.image_url")
        case AudioPart():
            return Attachment(part.input_audio.data, f"{where}.input_audio", "audio")
        case AudioUrlPart():
            return Attachment(part.audio_url.url, f"{where}.audio_url", "audio")
        case _:
            return None


def _media(message: Message, place: list[str | int]) -> list[Attachment]:
    """The pictures and recordings of a message.

    Raises:
        ApiError: It is not the user's.
    """
    found = [
        one
        for i, part in enumerate(parts_of(message))
        if (one := attachment(part, field_path([*place, "content", i]))) is not None
    ]
    if found and message.role != "user":
        raise ApiError(
            400, "only messages of the user may show pictures.", "invalid_value", found[0].param
        )
    return found
