"""Does a language model still do what it is told: instructions whose replies a program can check.

The idea is IFEval's (arXiv 2311.07911): ask only for what can be verified without a judge. The
instructions here are few and simple, since they have to be within reach of a language model of
135 million parameters, and they ask for replies of some length, which a task of one-word answers
may unlearn.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from crome.evaluation.predict import answers
from crome.rows import Row

LONGEST = 64
"""Tokens of a reply."""

TOPICS = (
    "the sea", "bread", "a bicycle", "winter", "the moon", "a library", "gardens", "a river",
    "music", "a lighthouse", "trains", "honey", "a market", "rain", "mountains", "a violin",
)  # fmt: skip


@dataclass(frozen=True)
class Instruction:
    """What is asked, of which kind it is, and whether a reply does it."""

    kind: str
    text: str
    followed: Callable[[str], bool]


def words(reply: str) -> list[str]:
    """Words of a reply, without punctuation."""
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", reply)


def sentences(reply: str) -> int:
    """How many sentences end in a reply."""
    return len(re.findall(r"[.!?](?=\s|$)", reply))


def items(reply: str) -> int:
    """How many lines of a reply are items of a list."""
    return len(re.findall(r"(?m)^\s*(?:[-*•]|\d+[.)])\s+\S", reply))


def copies(sentence: str, reply: str) -> bool:
    """Whether a reply holds a sentence as it stands."""
    return sentence in reply


def uses(word: str, reply: str) -> bool:
    """Whether a reply is a sentence with a word in it."""
    found = words(reply.lower())
    return len(found) >= 5 and word in found


def instructions(topics: Sequence[str] = TOPICS) -> list[Instruction]:
    """Six instructions for each topic."""
    made = []
    for topic in topics:
        word, sentence = topic.split()[-1], f"I like {topic} very much."
        made += [
            Instruction("length", f"Describe {topic} in at least thirty words.",
                        lambda reply: len(words(reply)) >= 30),
            Instruction("sentences", f"Write at least two sentences about {topic}.",
                        lambda reply: sentences(reply) >= 2),
            Instruction("list", f"Give a numbered list of three things that go with {topic}.",
                        lambda reply: items(reply) >= 3),
            Instruction("copy", f"Repeat this sentence word for word: {sentence}",
                        partial(copies, sentence)),
            Instruction("topic", f"Tell me a fact about {topic}. Use the word “{word}”.",
                        partial(uses, word)),
            Instruction("question", f"Write one question that a child may ask about {topic}.",
                        lambda reply: "?" in reply and len(words(reply)) >= 4),
        ]  # fmt: skip
    return made


def follow(model: Any, processor: Any, asked: Sequence[Instruction]) -> list[dict[str, Any]]:
    """The greedy reply to each instruction, without an image.

    Returns:
        "kind", "reply" and "followed", for each.
    """
    rows = [Row((), one.text, "", str(number)) for number, one in enumerate(asked)]
    replies = answers(model, processor, rows, max_new_tokens=LONGEST)
    return [
        {"kind": one.kind, "reply": reply, "followed": float(one.followed(reply))}
        for one, reply in zip(asked, replies, strict=True)
    ]
