"""Conversations in the form of transformers' chat templates, as questions of a `CromeProcessor`."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers import BatchFeature

from crome.errors import InputError
from crome.model.prompting import Prompting

Message = Mapping[str, Any]


class Conversation(NamedTuple):
    """A conversation whose last question is to be answered."""

    images: list[Any]
    question: str
    history: list[tuple[str, str]]
    system: str | None


class Conversations(Prompting):
    """`apply_chat_template`, which pipelines of transformers call."""

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Sequence[Message] | Sequence[Sequence[Message]],
        *,
        tokenize: bool = False,
        return_dict: bool = False,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        processor_kwargs: Mapping[str, Any] | None = None,
        **keywords: Any,
    ) -> str | list[str] | BatchFeature | Any:
        """Renders conversations, or prepares them as a batch.

        All images of a conversation stand in front of its first question.

        Args:
            conversation: Messages with `role` and `content` (text, or a list of parts), or several
                conversations.
            tokenize: Whether to prepare tensors instead of text.
            return_dict: With `tokenize`: whether to return all tensors, or `input_ids` alone.
            add_generation_prompt: Must be true: prompts end where the answer begins.
            continue_final_message: Must be false.
            processor_kwargs: Further keywords of the processor's call.
            keywords: The same.

        Raises:
            InputError: A conversation does not end with a question, or has other media.
        """
        if continue_final_message or not add_generation_prompt:
            raise InputError(
                "a prompt ends where the answer begins; leave continue_final_message and "
                "add_generation_prompt out, and end the conversation with a question."
            )
        one = bool(conversation) and isinstance(conversation[0], Mapping)
        several: Any = [conversation] if one else conversation
        read = [read_conversation(messages) for messages in several]
        if not tokenize:
            texts = [self.render(c.question, bool(c.images), c.history, c.system) for c in read]
            return texts[0] if one else texts
        batch: BatchFeature = self(
            images=[c.images for c in read],
            text=[c.question for c in read],
            histories=[c.history for c in read],
            systems=[c.system for c in read],
            **{**(processor_kwargs or {}), **keywords},
        )
        return batch if return_dict else batch["input_ids"]


def read_conversation(messages: Sequence[Message]) -> Conversation:
    """Messages as a question with what stands before it.

    Raises:
        InputError: They are no alternation of questions and answers that ends with a question.
    """
    system: str | None = None
    turns: list[tuple[str, str]] = []
    images: list[Any] = []
    question: str | None = None
    for message in messages:
        role = message.get("role")
        text, shown = read_content(message.get("content"))
        if role == "system" and question is None and not turns:
            system = text if system is None else f"{system}\n{text}"
        elif role == "user" and question is None:
            question = text
            images += shown
        elif role == "assistant" and question is not None:
            turns.append((question, text))
            question = None
        else:
            raise InputError(
                f"a message of role {role!r} out of turn; expected a system message at most, then "
                "user and assistant by turns, and user at the end."
            )
    if question is None:
        raise InputError("the conversation ends without a question; end it with a user message.")
    return Conversation(images, question, turns, system)


def read_content(content: Any) -> tuple[str, list[Any]]:
    """The text and the images of a message.

    Raises:
        InputError: It has another medium, or an image that is not there.
    """
    if isinstance(content, str):
        return content, []
    texts: list[str] = []
    images: list[Any] = []
    for part in content or ():
        kind = part.get("type")
        if kind == "text":
            texts.append(str(part.get("text", "")))
        elif kind == "image":
            found = [part[k] for k in ("image", "path", "url") if part.get(k) is not None]
            if not found:
                raise InputError("an image without content; give its picture, path or url.")
            images.append(found[0])
        else:
            raise InputError(f"a part of type {kind!r}; expected text or image.")
    return "\n".join(texts), images
