"""`apply_chat_template` of an attached processor: messages as people write them → a batch."""

from collections.abc import Mapping, Sequence
from typing import Any

from crome.attached.rows import as_pictures
from crome.errors import InputError
from crome.model.processing import refuse_others
from crome.model.prompting import conversations
from crome.rows import Row, message


class Conversing:
    """The part of an `AttachedProcessor` that reads conversations."""

    media: tuple[str, ...]
    template: Any
    system_prompt: str | None
    _encode: Any
    _safe: Any
    batch_decode: Any

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        *,
        tokenize: bool = False,
        return_dict: bool = False,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        processor_kwargs: Mapping[str, Any] | None = None,
        **keywords: Any,
    ) -> Any:
        """Renders conversations, or prepares them as a batch, media at their places.

        Args:
            conversation: Messages with `role` and `content` (text, or a list of parts), or several
                conversations.
            tokenize: Whether to prepare tensors instead of text.
            return_dict: With `tokenize`: whether to return all tensors, or `input_ids` alone.
            add_generation_prompt: Must be true: prompts end where the answer begins.
            continue_final_message: Must be false.
            processor_kwargs: As of `__call__`.
            keywords: The same.

        Raises:
            InputError: A conversation does not end with a question, or has what this model does not
                take.
        """
        refuse_others({**(processor_kwargs or {}), **keywords})
        one, several = conversations(conversation, continue_final_message, add_generation_prompt)
        read = [self._messages_of(messages) for messages in several]
        if not tokenize:
            texts = [self.template.render(messages) for messages in read]
            return texts[0] if one else texts
        rows = [
            Row((), "", "", str(number), system=system_of(messages))
            for number, messages in enumerate(read)
        ]
        batch = self._encode(rows, None, dialogues=read)
        return batch if return_dict else batch["input_ids"]

    def post_process_image_text_to_text(self, ids: Any, **_: Any) -> list[str]:
        """Generated ids → answers, as pipelines of transformers ask for them."""
        texts: list[str] = self.batch_decode(ids)
        return texts

    def _messages_of(self, messages: Sequence[Any]) -> list[dict[str, Any]]:
        """Messages as people write them, as this processor reads them."""
        read = [{"role": m.get("role"), "content": typed_parts(m.get("content"))} for m in messages]
        if not read or read[-1]["role"] != "user":
            raise InputError(
                "the conversation ends without a question; end it with a user message."
            )
        if self.system_prompt is not None and read[0]["role"] != "system":
            read.insert(0, message("system", self.system_prompt))
        for kind in {part["type"] for m in read for part in m["content"]} - {"text", *self.media}:
            raise InputError(f"a conversation has {kind}, and this model does not take it.")
        return [m | {"content": [self._safe(part) for part in m["content"]]} for m in read]


def system_of(messages: Sequence[Any]) -> str | None:
    """The text of the system message that a conversation begins with."""
    if messages[0]["role"] != "system":
        return None
    return "".join(part.get("text", "") for part in messages[0]["content"])


def typed_parts(content: Any) -> list[dict[str, Any]]:
    """The content of a chat message as typed parts.

    Raises:
        InputError: A part is of no known type, or lacks what it shows.
    """
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    parts: list[dict[str, Any]] = []
    for part in content or ():
        kind = part.get("type")
        if kind not in ("text", "image", "video", "audio"):
            raise InputError(f"a part of type {kind!r}; expected text, image, video or audio.")
        found = [part[k] for k in (kind, "path", "url") if part.get(k) is not None]
        if not found:
            raise InputError(f"a part of type {kind!r} without content; give its {kind} or path.")
        medium = found[0] if kind == "audio" else as_pictures(found[0])
        parts.append({"type": kind, kind: medium})
    return parts
