"""People's text as token ids and back: what the processors of both kinds of model have in common.

Shapes: N options over all rows, A tokens of the longest.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from crome.errors import InputError


class Wording:
    """The text side of a processor.

    Attributes:
        tokenizer: Tokenizer of the language model.
        max_question_tokens: Longer questions lose their beginning.
        max_answer_tokens: Longer answers lose their end.
        end_ids: Tokens that end an answer; empty where the tokenizer has none.
    """

    tokenizer: Any
    max_question_tokens: int
    max_answer_tokens: int
    end_ids: Any

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer behind a prompt, with its end; a cut answer has none."""
        raise NotImplementedError

    def words(self, text: str) -> str:
        """People's text with a space inside whatever would be read as a special token.

        Else a question could end its own turn and speak for the model.
        """
        return self._special.sub(lambda m: f"{m[0][0]} {m[0][1:]}", text.replace("\x00", ""))

    @cached_property
    def _special(self) -> re.Pattern[str]:
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        tokens = {token.content for token in added if token.special and len(token.content) > 1}
        longest_first = sorted(tokens, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def cut(self, question: str) -> str:
        """The last `max_question_tokens` of a question, truncated from the left as in LAVIS.

        It is cut to characters first, so that one of many megabytes is not tokenised whole.
        """
        question = question.strip()[-20 * self.max_question_tokens :]
        ids = self._ids(question)
        if len(ids) <= self.max_question_tokens:
            return question
        return str(self.tokenizer.decode(ids[-self.max_question_tokens :]))

    def reads_whole(self, question: str, answer: str = "") -> bool:
        """Whether a question and an answer are short enough not to be cut."""
        question, limit = question.strip(), self.max_question_tokens
        if len(question) > 20 * limit or len(self._ids(question)) > limit:
            return False
        return len(self._ids(self.words(answer))) < self.max_answer_tokens

    def options(self, options: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        """Candidate answers of each row, for a model's `option_losses`.

        Each is encoded as an answer is in training, with its end, so that "A" does not win
        against "A." for being shorter.

        Args:
            options: The candidates of each row; at least one each.

        Returns:
            `option_ids` (N, A) padded with -100, and `option_rows` (N,).

        Raises:
            InputError: A row without candidates.
        """
        if bare := [row for row, candidates in enumerate(options) if not candidates]:
            raise InputError(f"row {bare[0]} of the batch has no options; ranking needs some.")
        pairs = [(row, option) for row, candidates in enumerate(options) for option in candidates]
        return {
            "option_ids": pad([self.answer_ids(option) for _, option in pairs], -100),
            "option_rows": torch.tensor([row for row, _ in pairs]),
        }

    @property
    def pad_token_id(self) -> int:
        """The tokenizer's pad id, or its EOS where it has none (padding is always masked)."""
        candidates = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(i for i in candidates if i is not None)

    @property
    def generation_kwargs(self) -> dict[str, Any]:
        """End and pad ids for `generate`, from the tokenizer: configs on the hub disagree."""
        return {"eos_token_id": self.end_ids, "pad_token_id": self.pad_token_id}

    def batch_decode(self, ids: Tensor, **kwargs: Any) -> list[str]:
        """Generated ids → answers, without special tokens and outer space."""
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True, **kwargs)
        return [text.strip() for text in texts]


def pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows of unequal length → (rows, longest), padded on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], dtype=torch.long)
