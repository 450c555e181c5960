"""The running answers: their rows side by side, and one decoding step for all of them.

Rows are padded on the left to a common length; a mask hides the padding, and positions count real
tokens only. So a row's tokens stay contiguous, which sliding windows rely on.

Shapes: B running rows, L length of the longest with padding, H heads, D head width, V vocabulary.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from crome.serving.engine.layers import Layers, cache_of, layers_of, ones_of, side_by_side
from crome.serving.engine.prefill import device_of
from crome.serving.engine.protocol import EngineModel, Finish, Piece, Request
from crome.serving.engine.sampling import Choices, Token, choose
from crome.serving.engine.text import TextStream

logger = logging.getLogger(__name__)


class Row:
    """A running request.

    Args:
        request: What was asked.
        tokenizer: Of the language model.
        processors: Of the model's own generation settings.
    """

    def __init__(self, request: Request, tokenizer: Any, processors: Any = None) -> None:
        self.request = request
        self.text = TextStream(tokenizer, request.stop, request.strip)
        self.choices = Choices(
            request.sampling,
            request.prompt.ids[0].tolist(),
            processors,
            None if request.grammar is None else request.grammar(),
        )
        self.last = 0

    @property
    def tokens(self) -> int:
        """Places that the prompt and the longest answer take."""
        return self.request.prompt.length + self.request.max_new_tokens

    def take(self, token: Token) -> bool:
        """Delivers a token, and says whether the answer goes on."""
        request = self.request
        self.last = token.id
        if token.id in request.end_ids:
            request.deliver(Piece(self.text.finish(), (), "stop"))
            return False
        self.choices.add(token.id)
        text = self.text.push(token.id)
        finish: Finish | None = None
        if len(self.choices.ids) >= request.max_new_tokens:
            text, finish = text + self.text.finish(), "length"
        if self.text.stopped:
            finish = "stop"
        request.deliver(Piece(text, (token,), finish))
        return finish is None


def take_all(rows: Sequence[Row], logits: Tensor) -> list[int]:
    """Chooses and delivers a token for each row; returns the places of those that go on.

    Args:
        rows: B of them.
        logits: (B, V).
    """
    try:
        tokens = choose(logits, [row.choices for row in rows])
    except Exception as error:
        if len(rows) == 1:
            logger.exception("a token could not be chosen")
            rows[0].request.fail(error)
            return []
        # One row's settings must not end the others' answers.
        return [i for i, row in enumerate(rows) if take_all([row], logits[i : i + 1])]
    return [i for i, (row, token) in enumerate(zip(rows, tokens, strict=True)) if _take(row, token)]


def _take(row: Row, token: Token | None) -> bool:
    try:
        if token is None:
            raise FloatingPointError("the language model gave no finite logits.")
        return row.take(token)
    except Exception as error:
        logger.exception("a token could not be delivered")
        row.request.fail(error)
        return False


class Batch:
    """The running rows with their keys and values side by side.

    Args:
        model: Its language model decodes.
    """

    def __init__(self, model: EngineModel) -> None:
        self.model = model
        self.rows: list[Row] = []
        self.cache = DynamicCache()
        self.mask = torch.zeros(0, 0, dtype=torch.long)  # (B, L)

    def join(self, rows: Sequence[tuple[Row, Layers]]) -> None:
        """Puts rows beside the running ones, all padded on the left to the longest."""
        parts = [(layers_of(self.cache), self.mask)] if self.rows else []
        parts += [(layers, ones_of(layers)) for _, layers in rows]
        self.cache, self.mask = side_by_side(parts)
        self.rows += [row for row, _ in rows]

    def keep(self, chosen: Sequence[int]) -> None:
        """Drops all other rows, and the padding that none of those left needs."""
        if len(chosen) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in chosen]
        self.mask = self.mask[list(chosen)]
        start = int(self.mask.any(0).int().argmax()) if chosen else 0
        self.mask = self.mask[:, start:]  # rows end together, so padding is in front
        layers: list[Any] = self.cache.layers
        for layer in layers:
            layer.keys = layer.keys[list(chosen), :, start:]
            layer.values = layer.values[list(chosen), :, start:]

    def part(self, chosen: Sequence[int]) -> "Batch":
        """A batch of some of the rows, whose tokens stay as they are here."""
        part = Batch(self.model)
        part.rows, part.mask = self.rows, self.mask
        part.cache = cache_of(layers_of(self.cache))
        part.keep(chosen)
        return part

    @classmethod
    def beside(cls, parts: Sequence["Batch"]) -> "Batch":
        """A batch of the rows of others."""
        joined = cls(parts[0].model)
        filled = [part for part in parts if part.rows]
        if filled:
            joined.rows = [row for part in filled for row in part.rows]
            joined.cache, joined.mask = side_by_side(
                [(layers_of(part.cache), part.mask) for part in filled]
            )
        return joined

    def step(self) -> Tensor:
        """Feeds each row its last token; returns the logits (B, V) of the next ones.

        When it fails, keys and values are as they were.
        """
        device = device_of(self.model)
        ids = torch.tensor([[row.last] for row in self.rows], device=device)
        mask = F.pad(self.mask, (0, 1), value=1)
        try:
            logits: Tensor = self.model.language_model(
                inputs_embeds=self.model.get_input_embeddings()(ids),
                # Without padding none is needed, and a faster kernel computes attention on a GPU.
                attention_mask=None if bool(mask.all()) else mask.to(device),
                position_ids=(mask.sum(1, keepdim=True) - 1).to(device),
                past_key_values=self.cache,
                use_cache=True,
            ).logits  # (B, 1, V)
        except BaseException:
            self._crop(self.mask.shape[1])
            raise
        self.mask = mask
        return logits[:, -1]

    def _crop(self, length: int) -> None:
        """Takes back what a step that failed has added to some layers."""
        layers: list[Any] = self.cache.layers
        for layer in layers:
            layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]
