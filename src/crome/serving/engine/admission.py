"""Which requests may begin, by the memory they need and the time that their pictures take."""

from collections.abc import Sequence

from crome.serving.engine.prefill import Prefill
from crome.serving.engine.protocol import Request, RoomError


class Admission:
    """Keeps count of what a batch may hold.

    Rows of a batch are as long as its longest, so a batch needs its rows times that length.

    Args:
        prefill: Knows the lengths of prompts and the memory of a token.
        max_batch: Rows at most.
        gap: Seconds that pictures may hold up running answers.
        cache_bytes: Keys and values of all rows together; None for no bound yet.
    """

    def __init__(
        self, prefill: Prefill, max_batch: int, gap: float, cache_bytes: int | None
    ) -> None:
        self.cache_bytes = cache_bytes
        self._prefill = prefill
        self._max_batch = max_batch
        self._gap = gap
        self._picture_seconds = 0.05

    def tokens(self, request: Request) -> int:
        """Places that a prompt and its longest answer take."""
        return self._prefill.length(request.prompt) + request.max_new_tokens

    def reserved(self, taken: Sequence[int]) -> int:
        """Bytes that rows of these lengths need."""
        return max(taken, default=0) * len(taken) * self._prefill.token_bytes

    def has_place(self, request: Request, taken: Sequence[int]) -> bool:
        """Whether a request fits beside rows of these lengths; one that never fits is refused."""
        if len(taken) >= self._max_batch:
            return False
        tokens = self.tokens(request)
        needed = self.reserved([*taken, tokens])
        if self.cache_bytes is None or needed <= self.cache_bytes:
            return True
        if taken:
            return False
        request.fail(
            RoomError(
                f"the prompt and its answer may have {tokens} tokens, which need "
                f"{needed >> 20} MiB of keys and values; the server keeps "
                f"{self.cache_bytes >> 20} MiB. Ask for a shorter answer."
            )
        )
        return True

    def too_slow(self, pictures: int) -> bool:
        """Whether encoding so many new pictures takes longer than running answers can wait."""
        return pictures * self._picture_seconds > self._gap

    def learn(self, pictures: int, seconds: float) -> None:
        """Updates the time that a picture takes with a new measurement."""
        if pictures:
            self._picture_seconds += 0.3 * (seconds / pictures - self._picture_seconds)
