"""Pieces of answers → OpenAI's JSON, whole and as server-sent events."""

import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from crome.serving.engine.protocol import Piece, Request
from crome.serving.engine.sampling import Token
from crome.serving.engine.words import token_bytes
from crome.serving.http.body import beside

FLOOR = -9999.0  # OpenAI's word for "impossible"; JSON has no minus infinity


@dataclass
class Reply:
    """One answer to a completion request, in either endpoint's form.

    Attributes:
        model: As the client named it.
        chat: Whether the form is that of chat completions.
        tokenizer: Says what a token looks like.
        requests: The engine's, of each choice.
        logprobs: Whether they are reported.
        id: Of the reply.
        created: Seconds since the epoch.
    """

    model: str
    chat: bool
    tokenizer: Any
    requests: Sequence[Request]
    logprobs: bool = False
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._texts = [b""] * len(self.requests)

    def usage(self, tokens: int) -> dict[str, Any]:
        """Counts of tokens."""
        read, reused = prompt_tokens(self.requests)
        return {
            "prompt_tokens": read,
            "completion_tokens": tokens,
            "total_tokens": read + tokens,
            "prompt_tokens_details": {"cached_tokens": reused},
        }

    async def whole(self, pieces: AsyncIterator[tuple[int, Piece]]) -> dict[str, Any]:
        """The answer once it is complete."""
        texts = [""] * len(self.requests)
        tokens: list[list[Token]] = [[] for _ in self.requests]
        finish: list[str | None] = [None] * len(self.requests)
        async for index, piece in pieces:
            texts[index] += piece.text
            tokens[index] += piece.tokens
            finish[index] = piece.finish
        return await beside(self._whole, texts, tokens, finish)

    def _whole(
        self, texts: Sequence[str], tokens: Sequence[list[Token]], finish: Sequence[str | None]
    ) -> dict[str, Any]:
        choices = []
        for index, text in enumerate(texts):
            content = {"message": {"role": "assistant", "content": text, "refusal": None}}
            choices.append(
                {
                    "index": index,
                    **(content if self.chat else {"text": text}),
                    "logprobs": self._logprobs(index, tokens[index]),
                    "finish_reason": finish[index],
                }
            )
        return self._frame(False) | {
            "choices": choices, "usage": self.usage(sum(map(len, tokens)))
        }  # fmt: skip

    async def events(
        self, pieces: AsyncIterator[tuple[int, Piece]], include_usage: bool
    ) -> AsyncIterator[str]:
        """The answer as it is generated: `data:` lines, `[DONE]` last."""
        tokens = 0
        none: dict[str, None] = {"usage": None} if include_usage else {}
        if self.chat:
            for index in range(len(self.requests)):
                yield self._event(index, {"role": "assistant", "content": ""}, Piece(), none)
        async for index, piece in pieces:
            tokens += len(piece.tokens)
            if piece.text or piece.finish or (self.logprobs and piece.tokens):
                yield self._event(index, {"content": piece.text}, piece, none)
        if include_usage:
            yield sse(self._frame(True) | {"choices": [], "usage": self.usage(tokens)})
        yield "data: [DONE]\n\n"

    def _event(self, index: int, delta: dict[str, str], piece: Piece, more: dict[str, None]) -> str:
        if piece.finish and not piece.text:
            delta = {}
        choice = {
            "index": index,
            **({"delta": delta} if self.chat else {"text": piece.text}),
            "logprobs": self._logprobs(index, piece.tokens),
            "finish_reason": piece.finish,
        }
        return sse(self._frame(True) | {"choices": [choice]} | more)

    def _frame(self, chunk: bool) -> dict[str, Any]:
        kind = "text_completion"
        if self.chat:
            kind = "chat.completion.chunk" if chunk else "chat.completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _logprobs(self, index: int, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        if self.chat:
            return {
                "content": [
                    self._entry(t.id, t.logprob)
                    | {"top_logprobs": [self._entry(*alternative) for alternative in t.top]}
                    for t in tokens
                ],
                "refusal": None,
            }
        offsets = []
        for token in tokens:
            # Characters in front of it; one that it goes on with counts from its first byte.
            offsets.append(len(self._texts[index].decode(errors="ignore")))
            self._texts[index] += token_bytes(self.tokenizer, token.id)
        return {
            "tokens": [self._word(t.id) for t in tokens],
            "token_logprobs": [_floor(t.logprob) for t in tokens],
            "top_logprobs": [{self._word(i): _floor(p) for i, p in t.top} for t in tokens],
            "text_offset": offsets,
        }

    def _entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        data = list(token_bytes(self.tokenizer, token))
        return {"token": self._word(token), "logprob": _floor(logprob), "bytes": data}

    def _word(self, token: int) -> str:
        """A token as text; the bytes of half a character as OpenAI writes them."""
        data = token_bytes(self.tokenizer, token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def prompt_tokens(requests: Sequence[Request]) -> tuple[int, int]:
    """Tokens of prompts, and how many of those were known; one with several choices counts once."""
    prompts = {r.prompt.ids.data_ptr(): r.prompt for r in requests}.values()
    return sum(prompt.length for prompt in prompts), sum(prompt.reused for prompt in prompts)


def sse(value: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(value)}\n\n"


def _floor(logprob: float | None) -> float:
    return FLOOR if logprob is None or logprob < FLOOR else logprob
