"""Token ids → text that streams: nothing is sent that a later token could change."""

from collections.abc import Sequence
from typing import Any

UNFINISHED = "\ufffd"  # what a decoder writes for the first bytes of a longer character


class TextStream:
    """The text of one answer as it grows, up to the first stop string.

    Held back are half characters, space that may turn out to be the last, and the beginning of
    what may become a stop string.

    Args:
        tokenizer: Of the language model.
        stop: The answer ends before the first of these.
        strip: Whether outer space is left out, as in `CromeProcessor.batch_decode`.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), strip: bool = True) -> None:
        self.tokenizer = tokenizer
        self.stop = [word for word in stop if word]
        self.strip = strip
        self.text = ""
        self.stopped = False
        self._ids: list[int] = []
        self._context, self._read, self._sent = 0, 0, 0

    def push(self, token: int) -> str:
        """Takes a token and returns the text that has become certain."""
        self._ids.append(token)
        if (piece := self._undecoded()).endswith(UNFINISHED):
            return ""
        self._add(piece)
        return self._send(
            len(self.text) if self.stopped else len(self.text) - self._possible_stop()
        )

    def finish(self) -> str:
        """What was held back, once no token follows."""
        if not self.stopped:
            self._add(self._undecoded())
        return self._send(len(self.text))

    def _undecoded(self) -> str:
        """Text of the tokens not read yet."""
        # Decoded with the piece before it: joining spaces and bytes depends on the neighbour.
        known = self._decode(self._ids[self._context : self._read])
        return self._decode(self._ids[self._context :])[len(known) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)) if ids else ""

    def _add(self, piece: str) -> None:
        self._context, self._read = self._read, len(self._ids)
        if self.strip and not self.text:
            piece = piece.lstrip()
        start = max(0, len(self.text) - max(map(len, self.stop), default=0))
        self.text += piece
        found = [i for word in self.stop if (i := self.text.find(word, start)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    def _possible_stop(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        return max(
            (
                n
                for word in self.stop
                for n in range(1, min(len(word), len(self.text) + 1))
                if self.text.endswith(word[:n])
            ),
            default=0,
        )

    def _send(self, end: int) -> str:
        if self.strip:
            end = len(self.text[:end].rstrip())
        piece = self.text[self._sent : end]
        self._sent = max(self._sent, end)
        return piece
