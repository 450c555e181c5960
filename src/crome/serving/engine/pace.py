"""How many tokens of prompts are read between two decoding steps of running answers.

A pass over a few tokens takes about as long as a decoding step, because both read all weights; only
more tokens than that take longer. So a bound on time alone could end at passes that read next to
nothing, and a prompt would never be read. The number therefore follows the time of each pass, and
each pass may take as long as two steps.
"""

LEAST = 8
ROOM = 2.0
"""Time that a pass may take at any rate, in decoding steps."""
SHRINK, GROW = 0.5, 1.5
"""Bounds of a change: a pass that was interrupted by another program must not count for much."""


class Pace:
    """The number of prompt tokens in a pass, learnt from the time of passes.

    Args:
        gap: Seconds that a pass may take.
        most: Tokens of a pass at most.
    """

    def __init__(self, gap: float, most: int) -> None:
        self.gap = gap
        self.most = most
        self._tokens = float(most)
        self._step = 0.0

    @property
    def tokens(self) -> int:
        """Tokens to read in the next pass."""
        return int(self._tokens)

    def begin(self, tokens: int, seconds: float) -> None:
        """Starts at the rate of reading that a first prompt had."""
        self._set(tokens / max(seconds, 1e-6) * min(self.gap, 1e6))

    def stepped(self, seconds: float) -> None:
        """Takes note of what a decoding step took."""
        self._step += 0.3 * (seconds - self._step) if self._step else seconds

    def passed(self, tokens: int, seconds: float) -> None:
        """Takes note of a pass. One shorter than allowed can only say that it took too long."""
        aim = max(self.gap, ROOM * self._step)
        change = min(max(aim / max(seconds, 1e-6), SHRINK), GROW)
        if change < 1 or tokens >= self.tokens:
            self._set(self._tokens * change)

    def _set(self, tokens: float) -> None:
        self._tokens = min(max(tokens, LEAST), self.most)
