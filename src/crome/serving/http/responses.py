"""`POST /v1/responses`: the same answers in OpenAI's newer form, for text and pictures.

Nothing is kept between requests: a conversation is sent whole, and `previous_response_id` refused.
"""

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from crome.serving.engine.protocol import Piece, Request
from crome.serving.http.body import validation_error
from crome.serving.http.wire import prompt_tokens, sse
from crome.serving.schema import (
    Body,
    ChatRequest,
    Count,
    Ignored,
    JsonSchema,
    Name,
    Parts,
    Text,
    neutral,
)


class InputItem(Body):
    """A message."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Parts
    id: Ignored = None
    status: Ignored = None
    phase: Ignored = None


class ReasoningItem(Body):
    """What another model has thought, sent back; it says nothing to this one."""

    type: Literal["reasoning"]
    id: Ignored = None
    status: Ignored = None
    summary: Ignored = None
    content: Ignored = None
    encrypted_content: Ignored = None


class TextFormat(JsonSchema):
    """The form of an answer; a schema stands in it, not below it."""

    type: Literal["text", "json_object", "json_schema"]


class TextSettings(Body):
    """How the text of an answer is."""

    format: TextFormat | None = None
    verbosity: Annotated[Any, neutral("medium")] = None


class ResponsesRequest(Body):
    """`POST /v1/responses`."""

    model: Name
    input: Text | Annotated[list[InputItem | ReasoningItem], Field(min_length=1, max_length=256)]
    instructions: Text | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stream: bool = False
    text: TextSettings | None = None
    tools: Annotated[list[Any], neutral()] | None = None
    tool_choice: Annotated[Any, neutral("none", "auto")] = None
    previous_response_id: Annotated[Any, neutral()] = None
    conversation: Annotated[Any, neutral()] = None
    background: Annotated[bool, neutral()] = False
    include: Annotated[list[Any], neutral()] | None = None
    truncation: Annotated[Any, neutral("disabled")] = None
    reasoning: Ignored = None
    parallel_tool_calls: Ignored = None
    stream_options: Ignored = None
    store: Ignored = None
    metadata: Annotated[dict[Name, Text], Field(max_length=16)] | None = None
    user: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    max_tool_calls: Ignored = None
    top_logprobs: Annotated[int, neutral()] | None = None

    def chat(self) -> ChatRequest:
        """The same as a chat request.

        Raises:
            ApiError: Its text is no conversation's.
        """
        messages = [{"role": "system", "content": self.instructions}] if self.instructions else []
        if isinstance(self.input, str):
            messages.append({"role": "user", "content": self.input})
        else:
            messages += [_message(item) for item in self.input]
        chosen = {
            "temperature": self.temperature, "top_p": self.top_p,
            "max_tokens": self.max_output_tokens, "response_format": self._format(),
        }  # fmt: skip
        body = {"model": self.model, "stream": self.stream, "messages": messages}
        body |= {name: value for name, value in chosen.items() if value is not None}
        try:
            return ChatRequest.model_validate(body)
        except ValidationError as error:
            raise validation_error(body, error.errors(include_url=False)) from None

    def _format(self) -> dict[str, Any] | None:
        wanted = self.text.format if self.text else None
        if wanted is None or wanted.type == "text":
            return None
        if wanted.type == "json_object":
            return {"type": "json_object"}
        schema = {"name": wanted.name, "schema": wanted.schema_}
        return {"type": "json_schema", "json_schema": schema}


def _message(item: InputItem | ReasoningItem) -> dict[str, Any]:
    if isinstance(item, ReasoningItem):  # an answer without words is passed over
        return {"role": "assistant"}
    return {"role": item.role, "content": item.content}


@dataclass
class ResponseReply:
    """An answer in the form of a response.

    Attributes:
        body: What was asked.
        requests: The engine's; one.
        id: Of the response.
        created: Seconds since the epoch.
    """

    body: ResponsesRequest
    requests: Sequence[Request]
    id: str = field(default_factory=lambda: f"resp_{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    async def whole(self, pieces: AsyncIterator[tuple[int, Piece]]) -> dict[str, Any]:
        """The response once it is complete."""
        text, tokens, finish = "", 0, None
        async for _, piece in pieces:
            text, tokens, finish = text + piece.text, tokens + len(piece.tokens), piece.finish
        return self._response(text, tokens, finish)

    async def events(
        self, pieces: AsyncIterator[tuple[int, Piece]], with_usage: bool = False
    ) -> AsyncIterator[str]:
        """The response as it is generated: typed and numbered events."""
        number, text, tokens = 0, "", 0
        finish: str | None = None
        place = {"item_id": self._item_id, "output_index": 0}
        inside = {**place, "content_index": 0}

        def event(kind: str, **fields: Any) -> str:
            nonlocal number
            body = {"type": f"response.{kind}", "sequence_number": number, **fields}
            number += 1
            return f"event: response.{kind}\n{sse(body)}"

        begun = self._response("", 0, None, "in_progress") | {"output": [], "usage": None}
        yield event("created", response=begun)
        yield event("in_progress", response=begun)
        item = self._item("", "in_progress") | {"content": []}
        yield event("output_item.added", output_index=0, item=item)
        yield event("content_part.added", **inside, part=_part(""))
        async for _, piece in pieces:
            text, tokens, finish = text + piece.text, tokens + len(piece.tokens), piece.finish
            if piece.text:
                yield event("output_text.delta", **inside, delta=piece.text, logprobs=[])
        yield event("output_text.done", **inside, text=text, logprobs=[])
        yield event("content_part.done", **inside, part=_part(text))
        whole = self._response(text, tokens, finish)
        yield event("output_item.done", output_index=0, item=whole["output"][0])
        yield event(whole["status"], response=whole)

    @property
    def _item_id(self) -> str:
        return "msg_" + self.id.removeprefix("resp_")

    def _item(self, text: str, status: str) -> dict[str, Any]:
        return {
            "id": self._item_id, "type": "message", "role": "assistant", "status": status,
            "content": [_part(text)],
        }  # fmt: skip

    def _response(
        self, text: str, tokens: int, finish: str | None, status: str = ""
    ) -> dict[str, Any]:
        body = self.body
        status = status or ("incomplete" if finish == "length" else "completed")
        read, reused = prompt_tokens(self.requests)
        return {
            "id": self.id, "object": "response", "created_at": self.created, "status": status,
            "model": body.model, "output": [self._item(text, status)], "error": None,
            "incomplete_details":
                {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions, "max_output_tokens": body.max_output_tokens,
            "temperature": body.temperature, "top_p": body.top_p, "tools": [],
            "tool_choice": "none", "parallel_tool_calls": False, "previous_response_id": None,
            "metadata": body.metadata or {}, "store": False, "truncation": "disabled",
            "text": {"format": {"type": body.text.format.type if body.text and body.text.format
                                else "text"}},
            "usage": {
                "input_tokens": read, "input_tokens_details": {"cached_tokens": reused},
                "output_tokens": tokens, "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": read + tokens,
            },
        }  # fmt: skip


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
