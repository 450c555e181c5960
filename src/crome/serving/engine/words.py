"""The bytes of a token, which are not always whole characters."""

import re
from functools import cache
from typing import Any

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE = "▁"  # SentencePiece's


def token_bytes(tokenizer: Any, token: int) -> bytes:
    """What a token adds to the text, in UTF-8; part of a character for some tokens."""
    if token in _added(tokenizer):
        return _added(tokenizer)[token].encode()
    piece = tokenizer.convert_ids_to_tokens(token)
    if piece is None:  # a place of the vocabulary that nothing is at
        return b""
    if _by_bytes(tokenizer):
        return bytes(_BYTES[c] for c in piece if c in _BYTES)
    if found := BYTE.fullmatch(piece):
        return bytes([int(found[1], 16)])
    return str(piece).replace(SPACE, " ").encode()


@cache
def _added(tokenizer: Any) -> dict[int, str]:
    return {i: token.content for i, token in tokenizer.added_tokens_decoder.items()}


@cache
def _by_bytes(tokenizer: Any) -> bool:
    """Whether each character of a token stands for a byte, as in GPT-2's vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = getattr(backend, "decoder", None)
    return decoder is not None and b"ByteLevel" in decoder.__getstate__()


def _byte_characters() -> dict[str, int]:
    """GPT-2's characters for bytes: those that can be printed stand for themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTES = _byte_characters()
