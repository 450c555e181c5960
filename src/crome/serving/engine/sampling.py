"""The next token of every row of a batch, chosen on the device where the logits are.

Rows never share a draw: each has its own source of random numbers, so company changes nothing.

Shapes: B rows, S rows that are drawn, V vocabulary, K likeliest tokens.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

COLDEST = 1e-5
"""The lowest temperature that is drawn with; colder, logits would grow beyond float32."""
LIKELIEST = 1024
"""Tokens among which a nucleus is looked for first; all are sorted only if it is larger."""


@dataclass(frozen=True)
class Sampling:
    """How the tokens of an answer are chosen.

    Attributes:
        temperature: 0 for the likeliest token.
        top_p: Only the likeliest tokens with this much probability together are drawn from; 0 for
            the likeliest alone.
        top_k: Only so many of the likeliest tokens are drawn from; 0 for all.
        min_p: Only tokens are drawn from that are at least this likely, the likeliest being 1.
        repetition_penalty: Logits of tokens that were used are divided by it where they are
            positive, and multiplied where they are negative (CTRL, arXiv 1909.05858).
        penalize_prompt: Whether `repetition_penalty` looks at the prompt's words, too. A client's
            does; that of a model's own settings does not, as in `generate` behind embeddings.
        presence_penalty: Subtracted from the logits of tokens that the answer has used.
        frequency_penalty: Subtracted as often as the answer has used them.
        seed: Makes the draws repeatable.
        logprobs: How many alternatives to report beside each token; None for no report.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    penalize_prompt: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
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

    @property
    def penalizes(self) -> bool:
        """Whether tokens that were used count less or more."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)


@dataclass(frozen=True)
class Token:
    """A generated token, and what was reported about the choice.

    Attributes:
        id: Its number.
        logprob: Its log-probability before penalties, temperature and `top_p`.
        top: The likeliest tokens with theirs.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class Choices:
    """What is known of an answer when its next token is chosen.

    Attributes:
        sampling: How tokens are chosen.
        prompt: The words in front of the answer.
        processors: Of the model's own generation settings; None without any.
        grammar: Says which tokens may come next; None for free text.
    """

    sampling: Sampling
    prompt: Sequence[int] = ()
    processors: Any = None
    grammar: Any = None
    ids: list[int] = field(default_factory=list)
    counts: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.generator = self.sampling.generator()

    def add(self, token: int) -> None:
        """Takes note of a token that was chosen."""
        self.ids.append(token)
        self.counts[token] += 1
        if self.grammar is not None:
            self.grammar.add(token)


def choose(logits: Tensor, rows: Sequence[Choices]) -> list[Token | None]:
    """Chooses the next token of each row.

    Args:
        logits: (B, V) on any device.
        rows: What is known of each.

    Returns:
        A token for each row, and None for one whose logits are not finite numbers.
    """
    raw = logits.float()
    scores = _adjusted(raw, rows)
    ids = scores.argmax(-1)
    finite = scores.gather(1, ids[:, None]).squeeze(1).isfinite()
    drawn = [i for i, row in enumerate(rows) if row.generator is not None]
    if drawn:
        places = torch.tensor(drawn, device=logits.device)
        ids[places] = _draw(scores[places], [rows[i] for i in drawn])
    reports = _reports(raw, ids, rows)
    chosen = torch.stack([ids, finite.long()]).tolist()  # one transfer for all rows
    return [
        Token(token, *reports.get(i, ())) if known else None
        for i, (token, known) in enumerate(zip(*chosen, strict=True))
    ]


def _adjusted(logits: Tensor, rows: Sequence[Choices]) -> Tensor:
    """The logits after the model's own settings, penalties and grammars."""
    if any(row.processors or row.sampling.penalizes or row.grammar is not None for row in rows):
        logits = logits.clone()
    for i, row in enumerate(rows):
        if row.processors:
            ids = torch.tensor([row.ids], dtype=torch.long, device=logits.device)
            logits[i : i + 1] = row.processors(ids, logits[i : i + 1])
    logits = _penalized(logits, rows)
    for i, row in enumerate(rows):
        if row.grammar is not None:
            row.grammar.mask(logits[i])
    return logits


def _penalized(logits: Tensor, rows: Sequence[Choices]) -> Tensor:
    """The logits with all rows' penalties, in one pass over the tokens that were used."""
    used: list[tuple[int, int, float, float]] = []  # row, token, factor, summand
    for i, row in enumerate(rows):
        sampling = row.sampling
        if not sampling.penalizes:
            continue
        repeated = set(row.prompt) if sampling.penalize_prompt else set()
        for token in repeated | row.counts.keys():
            count = row.counts[token]
            summand = sampling.frequency_penalty * count + sampling.presence_penalty * (count > 0)
            used.append((i, token, sampling.repetition_penalty, summand))
    if not used:
        return logits
    places, tokens, factors, summands = (
        torch.tensor(column, device=logits.device) for column in zip(*used, strict=True)
    )
    values = logits[places, tokens]
    values = torch.where(values > 0, values / factors, values * factors) - summands
    logits[places, tokens] = values.to(logits.dtype)
    return logits


def _draw(logits: Tensor, rows: Sequence[Choices]) -> Tensor:
    """(S, V) logits → (S,) tokens, by the inverse of each row's distribution function."""
    device = logits.device
    sampling = [row.sampling for row in rows]
    temperatures = torch.tensor([max(s.temperature, COLDEST) for s in sampling], device=device)
    shares = (logits / temperatures[:, None]).softmax(-1)
    uniform = torch.cat([torch.rand(1, generator=row.generator) for row in rows]).to(device)
    ids = torch.empty(len(rows), dtype=torch.long, device=device)
    # Whether a row is sorted depends on its own settings alone, so company changes no rounding.
    cut = [s.top_p < 1 or s.min_p > 0 or 0 < s.top_k < shares.shape[1] for s in sampling]
    for is_cut in (False, True):
        chosen = [i for i, c in enumerate(cut) if c is is_cut]
        if chosen:
            places = torch.tensor(chosen, device=device)
            own = shares[places]
            picked, order = (
                _likeliest(own, [sampling[i] for i in chosen]) if is_cut else (own, None)
            )
            found = _inverse(picked, uniform[places])
            ids[places] = found if order is None else order.gather(1, found[:, None]).squeeze(1)
    return ids


def _likeliest(shares: Tensor, sampling: Sequence[Sampling]) -> tuple[Tensor, Tensor]:
    """Probabilities (S, K) that may be drawn, others zero, and their tokens, likeliest first."""
    top_p, top_k, min_p = (
        torch.tensor(column, device=shares.device)[:, None]
        for column in (
            [s.top_p for s in sampling],
            [s.top_k or shares.shape[1] for s in sampling],
            [s.min_p for s in sampling],
        )
    )
    for number in (min(LIKELIEST, shares.shape[1]), shares.shape[1]):
        found, order = shares.topk(number)
        before = found.cumsum(-1) - found
        kept = (before < top_p) & (found >= min_p * found[:, :1])
        kept &= torch.arange(number, device=shares.device) < top_k
        kept[:, 0] = True  # the first always stays
        if number == shares.shape[1] or not kept[:, -1].any():
            break
    return found * kept, order


def _inverse(shares: Tensor, uniform: Tensor) -> Tensor:
    """(S, K) weights and (S,) numbers in [0, 1) → (S,) places, none of weight zero."""
    cumulated = shares.cumsum(-1)
    places = torch.searchsorted(cumulated, (uniform * cumulated[:, -1])[:, None], right=True)
    last = shares.shape[1] - 1 - (shares > 0).flip(1).int().argmax(1, keepdim=True)
    return torch.minimum(places, last).squeeze(1)


def _reports(
    logits: Tensor, ids: Tensor, rows: Sequence[Choices]
) -> dict[int, tuple[float, tuple[tuple[int, float], ...]]]:
    """Log-probabilities of the chosen tokens and their alternatives, for rows that want them."""
    wanted = [i for i, row in enumerate(rows) if row.sampling.logprobs is not None]
    if not wanted:
        return {}
    places = torch.tensor(wanted, device=logits.device)
    logprobs = logits[places].log_softmax(-1)
    number = min(max(rows[i].sampling.logprobs or 0 for i in wanted), logits.shape[1])
    values, tokens = logprobs.topk(number)
    own = logprobs.gather(1, ids[places][:, None]).squeeze(1).tolist()
    tops = zip(tokens.tolist(), values.tolist(), strict=True)
    return {
        i: (p, tuple(zip(*top, strict=True))[: rows[i].sampling.logprobs])
        for i, p, top in zip(wanted, own, tops, strict=True)
    }
