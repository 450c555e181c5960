"""The next token of one answer, from its logits alone: rows of a batch never share a draw.

Shapes: V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How the tokens of an answer are chosen.

    Attributes:
        temperature: 0 for the likeliest token.
        top_p: Only the likeliest tokens with this much probability together are drawn from.
        seed: Makes the draws repeatable.
        logprobs: How many alternatives to report beside each token; None for no report.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    logprobs: int | None = None

    def generator(self) -> torch.Generator | None:
        """A source of draws of its own."""
        if self.temperature == 0:
            return None
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


@dataclass(frozen=True)
class Token:
    """A generated token, and what was reported about the choice."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens with their log-probabilities, before temperature and `top_p`."""


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator | None) -> Token:
    """Chooses a token.

    Args:
        logits: (V,).
        sampling: How.
        generator: Source of draws; None for the likeliest token.

    Raises:
        FloatingPointError: The logits are not finite numbers.
    """
    logits = logits.float().cpu()
    best = int(logits.argmax())
    if not torch.isfinite(logits[best]):
        raise FloatingPointError("the language model gave no finite logits.")
    chosen = best if generator is None else _draw(logits, sampling, generator)
    if sampling.logprobs is None:
        return Token(chosen)
    logprobs = logits.log_softmax(-1)
    values, ids = logprobs.topk(min(sampling.logprobs, len(logprobs)))
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return Token(chosen, float(logprobs[chosen]), top)


def _draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    temperature = max(sampling.temperature, 1e-5)  # colder, logits would grow beyond float32
    probabilities, ids = (logits / temperature).softmax(-1).sort(descending=True)
    if sampling.top_p < 1:
        before = probabilities.cumsum(-1) - probabilities
        before[0] = -1  # the first always stays
        probabilities = probabilities * (before < sampling.top_p)
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])
