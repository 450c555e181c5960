"""Answers that must have a form: which tokens may come next, by llguidance (extra `json`)."""

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crome.errors import InputError

MAX_SCHEMA = 50_000  # characters; while a larger one is compiled, nothing else runs in Python
COMPACT: Any = {"whitespace_flexible": False}
"""Otherwise a small model may go on with spaces for ever."""


class Grammars:
    """Makes constraints for one language model.

    Args:
        tokenizer: A fast tokenizer of transformers.
        vocabulary: Entries of the model's head, which may be more than the tokenizer's.
        end_ids: Tokens that end an answer.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, end_ids: Sequence[int]) -> None:
        self._source = tokenizer
        self._vocabulary = vocabulary
        self._end_ids = list(end_ids)

    def json(self, schema: dict[str, Any]) -> Callable[[], "Constraint"]:
        """A maker of constraints to JSON that fits a schema; takes its time, so not for the loop.

        Raises:
            InputError: The package is missing, or the schema cannot be obeyed.
        """
        if find_spec("llguidance") is None:
            raise InputError(
                "this server answers in free text only; it needs the extra `json`: "
                "pip install 'crome[json]'."
            )
        from llguidance import LLMatcher

        text = json.dumps(schema)
        if len(text) > MAX_SCHEMA:
            raise InputError(
                f"the schema has {len(text):,} characters; expected at most {MAX_SCHEMA:,}."
            )
        try:
            grammar = LLMatcher.grammar_from_json_schema(text, overrides=COMPACT)
        except ValueError as error:
            raise InputError(f"the schema cannot be read: {error}.") from error
        first = LLMatcher(self._tokenizer, grammar, log_level=0)
        if first.is_error():
            raise InputError(f"the schema cannot be obeyed: {first.get_error()[:300]}.")
        return lambda: Constraint(first.deep_copy(), self._end_ids)

    @cached_property
    def _tokenizer(self) -> Any:
        from llguidance.hf import from_tokenizer

        return from_tokenizer(self._source, self._vocabulary, self._end_ids or None)


class Constraint:
    """Where an answer is in its form.

    Args:
        matcher: Of llguidance, at the beginning.
        end_ids: Tokens that end an answer.
    """

    def __init__(self, matcher: Any, end_ids: Sequence[int]) -> None:
        self._matcher = matcher
        self._end_ids = end_ids

    def mask(self, logits: Tensor) -> None:
        """Rules out, in (V,) logits, all tokens that may not come next.

        Raises:
            InputError: The form has become too complex.
        """
        if self._matcher.is_stopped():
            allowed = torch.zeros(len(logits), dtype=torch.bool)
            allowed[list(self._end_ids)] = True
        else:
            bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
            found = np.unpackbits(bits, bitorder="little")[: len(logits)].astype(bool)
            allowed = torch.from_numpy(found)
        if self._matcher.is_error():
            raise InputError(f"the schema cannot be obeyed: {self._matcher.get_error()[:300]}.")
        logits.masked_fill_(~allowed.to(logits.device), -float("inf"))

    def add(self, token: int) -> None:
        """Takes a token that was chosen."""
        self._matcher.consume_token(token)
