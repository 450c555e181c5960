"""Messages as clients send them → the turns of a prompt.

Clients send what their users made: two messages of one side, an answer that was broken off, several
system messages. Neighbours of one role are joined, and an answer at the end is continued.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from crome.serving.errors import ApiError, field_path
from crome.serving.schema import ImagePart, Message, RefusalPart

SYSTEM = ("system", "developer")


@dataclass(frozen=True)
class Picture:
    """A picture in a request.

    Attributes:
        url: Where it is, or the data itself.
        param: The field that has it, for errors.
    """

    url: str
    param: str


@dataclass(frozen=True)
class Conversation:
    """What was said, in the form in which a prompt takes it.

    Attributes:
        question: The last thing that the user said.
        history: (question, answer) of earlier turns.
        system: All system messages, joined; None without one.
        begun: The beginning of the answer, to be continued.
        pictures: All pictures, in their order.
        param: The field that has all this, for errors.
    """

    question: str
    history: tuple[tuple[str, str], ...] = ()
    system: str | None = None
    begun: str = ""
    pictures: tuple[Picture, ...] = ()
    param: str = "messages"

    def without_system(self) -> "Conversation":
        """The same, with the system's words in front of the user's first ones."""
        if self.system is None:
            return self
        if not self.history:
            return replace(self, question=f"{self.system}\n{self.question}".strip(), system=None)
        (question, answer), *rest = self.history
        first = (f"{self.system}\n{question}".strip(), answer)
        return replace(self, history=(first, *rest), system=None)


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
    pictures = tuple(
        p for i, message in enumerate(messages) for p in _pictures(message, [param, i - first])
    )
    system = [text for m in messages if m.role in SYSTEM and (text := words(m)).strip()]
    spoken = [
        m for m in messages if m.role not in SYSTEM and (words(m).strip() or _pictures(m, []))
    ]
    turns = [
        (role, "\n".join(filter(None, map(words, neighbours))))
        for role, neighbours in groupby(spoken, lambda message: message.role)
    ]
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
    if not turns or not (turns[-1][1].strip() or pictures or begun):
        raise ApiError(400, "the messages ask nothing.", "invalid_value", param)
    texts = [text for _, text in turns]
    history = tuple(zip(texts[:-1:2], texts[1::2], strict=True))
    return Conversation(texts[-1], history, "\n\n".join(system) or None, begun, pictures, param)


def words(message: Message) -> str:
    """The text of a message."""
    if isinstance(message.content, str):
        return message.content
    texts = [
        part.refusal if isinstance(part, RefusalPart) else part.text
        for part in message.content
        if not isinstance(part, ImagePart)
    ]
    return "\n".join(texts)


def _pictures(message: Message, place: list[str | int]) -> list[Picture]:
    """The pictures of a message.

    Raises:
        ApiError: It is not the user's.
    """
    if isinstance(message.content, str):
        return []
    found = [
        Picture(part.image_url.url, field_path([*place, "content", i, "image_url"]))
        for i, part in enumerate(message.content)
        if isinstance(part, ImagePart)
    ]
    if found and message.role != "user":
        raise ApiError(
            400, "only messages of the user may show pictures.", "invalid_value", found[0].param
        )
    return found
