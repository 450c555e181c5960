"""What a language model knows of plain text: perplexity, and the right continuation out of four.

The packaged text is the reference manual that every CPython carries (`pydoc_data`), so there is
nothing to fetch; which version of it was read is part of the result. The continuation questions are
made from it mechanically: a paragraph without its last sentence, and four last sentences.

Shapes: T tokens of a sequence.
"""

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from crome.errors import InputError
from crome.model.losses import IGNORED
from crome.model.modeling import CromeForConditionalGeneration

OPTIONS = 4
SHORTEST = 200  # characters of a paragraph that is prose rather than a caption
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")

Reader = Callable[[Sequence[list[int]]], list[Tensor]]
"""Sequences of token ids → the (T - 1,) losses of the tokens after the first, of each."""


@dataclass(frozen=True)
class Continuation:
    """A beginning, four endings, and which of them is the right one."""

    beginning: str
    endings: tuple[str, ...]
    right: int


def paragraphs(path: Path | None = None) -> list[str]:
    """Paragraphs of prose, a line each.

    Args:
        path: A text file with blank lines between paragraphs; None for Python's own manual.

    Raises:
        InputError: There is no such file, or fewer than eight paragraphs of 200 characters in it.
    """
    if path is None:
        from pydoc_data.topics import topics

        texts = [topics[name] for name in sorted(topics)]
    elif path.is_file():
        texts = [path.read_text(encoding="utf-8")]
    else:
        raise InputError(f"{path}: there is no such text file.")
    found = [
        " ".join(block.split())
        for text in texts
        for block in re.split(r"\n\s*\n", text)
        if len(block) >= SHORTEST
        and "::=" not in block  # a grammar, not prose
        and not any(line.startswith("   ") for line in block.split("\n"))
    ]
    if len(found) < 2 * OPTIONS:
        raise InputError(
            f"{path}: {len(found)} paragraphs of at least {SHORTEST} characters; expected "
            f"{2 * OPTIONS} or more, with blank lines between them."
        )
    return found


def passages(texts: Sequence[str], tokenizer: Any, length: int, count: int) -> list[list[int]]:
    """At most `count` passages of exactly `length` tokens, spread evenly over the text."""
    ids = tokenizer("\n\n".join(texts), add_special_tokens=False)["input_ids"]
    pieces = [ids[k : k + length] for k in range(0, len(ids) - length + 1, length)]
    count = min(count, len(pieces))
    return [pieces[k * len(pieces) // count] for k in range(count)]


def continuations(texts: Sequence[str], count: int, seed: int = 0) -> list[Continuation]:
    """At most `count` questions; the wrong endings are other paragraphs' last sentences."""
    cut = [_SENTENCE.split(text) for text in texts]
    pairs = [(" ".join(parts[:-1]), parts[-1]) for parts in cut if len(parts) > 1]
    generator = random.Random(seed)
    generator.shuffle(pairs)
    made = []
    for number, (beginning, ending) in enumerate(pairs[:count]):
        others = [other for k, (_, other) in enumerate(pairs) if k != number and other != ending]
        endings = generator.sample(others, OPTIONS - 1)
        right = generator.randrange(OPTIONS)
        endings.insert(right, ending)
        made.append(Continuation(beginning, tuple(endings), right))
    return made


def bare(language_model: Any) -> Reader:
    """Reads through the language model's own forward, as if there were no CROME."""

    def read(sequences: Sequence[list[int]]) -> list[Tensor]:
        ids, mask = _batch(sequences, language_model.device)
        logits = language_model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        losses = F.cross_entropy(
            logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
        )
        rows = losses.view(len(ids), -1).cpu()
        return [row[: len(sequence) - 1] for row, sequence in zip(rows, sequences, strict=True)]

    return read


def through(model: CromeForConditionalGeneration) -> Reader:
    """Reads through CROME with text and no image."""

    def read(sequences: Sequence[list[int]]) -> list[Tensor]:
        device = model.get_input_embeddings().weight.device
        ids, mask = _batch(sequences, device)
        labels = ids.masked_fill(mask == 0, IGNORED)
        losses = model(input_ids=ids, attention_mask=mask, labels=labels).token_losses
        return list(losses.cpu().split([len(sequence) - 1 for sequence in sequences]))

    return read


@torch.inference_mode()
def passage_losses(read: Reader, texts: Sequence[list[int]], batch_size: int = 8) -> list[float]:
    """Mean token loss of each passage; the exponential of their mean is the perplexity."""
    return [
        float(losses.mean())
        for start in range(0, len(texts), batch_size)
        for losses in read(texts[start : start + batch_size])
    ]


@torch.inference_mode()
def choose(
    read: Reader, tokenizer: Any, questions: Sequence[Continuation], context: int | None = None
) -> list[bool]:
    """Whether the right ending has the smallest loss a token, for each question.

    Args:
        read: Reader of the language model.
        tokenizer: Tokenizer of the language model.
        questions: To answer.
        context: Tokens that the language model reads; longer beginnings lose their first words.
    """
    right = []
    for question in questions:
        begin = tokenizer(question.beginning, add_special_tokens=False)["input_ids"]
        ends = [
            tokenizer(f" {ending}", add_special_tokens=False)["input_ids"]
            for ending in question.endings
        ]
        if context is not None:
            begin = begin[-max(1, context - max(map(len, ends))) :]
        losses = read([begin + end for end in ends])
        means = [float(ending[len(begin) - 1 :].mean()) for ending in losses]
        right.append(means.index(min(means)) == question.right)
    return right


def digest(texts: Sequence[str]) -> str:
    """Names a text by what it holds."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]


def _batch(sequences: Sequence[list[int]], device: Any) -> tuple[Tensor, Tensor]:
    ids = [torch.tensor(sequence) for sequence in sequences]
    mask = [torch.ones_like(of) for of in ids]
    return (
        pad_sequence(ids, batch_first=True).to(device),
        pad_sequence(mask, batch_first=True).to(device),
    )
