"""Answers by a model's own `generate`, several requests at a time: for attached adapters.

A vision-language model that an adapter is attached to may count positions in three dimensions, add
features inside its language model or look at a picture's tokens in both directions. Its own
`generate` knows all that. What the server adds stands around it: requests with different adapters
share a batch, each is sampled by its own settings, its text streams while others go on, and it
leaves when it is done. A request that comes while a batch is decoded waits for its end.

Shapes: B requests of a batch, T prompt tokens, V vocabulary.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    ExponentialDecayLengthPenalty,
    LogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    StoppingCriteria,
)

from crome.attached.collating import moved
from crome.errors import InputError
from crome.serving.engine.batch import Row, take_all
from crome.serving.engine.defaults import model_sampling
from crome.serving.engine.grammar import Grammars
from crome.serving.engine.intake import Intake
from crome.serving.engine.protocol import Gauges, Prompt, RemovedError, Request
from crome.serving.engine.sampling import Sampling
from crome.serving.engine.thread import ModelThread

logger = logging.getLogger(__name__)
ONE_EACH: dict[str, Any] = {
    "num_beams": 1, "num_return_sequences": 1, "return_dict_in_generate": False,
    "exponential_decay_length_penalty": None, "forced_eos_token_id": None, "guidance_scale": None,
}  # fmt: skip
"""What a model's own settings may say otherwise, and a batch of requests cannot be, or needs the
tokens that end each of them."""


class GenerateEngine:
    """Takes requests from any thread and answers them in batches on its own.

    Args:
        model: An `AttachedModel` in eval mode, used by nobody else while the engine runs.
        processor: The model's own.
        max_batch: Requests answered together at most.
        thread: The thread on which the model was loaded; a new one by default.
    """

    def __init__(
        self, model: Any, processor: Any, *, max_batch: int = 32, thread: ModelThread | None = None
    ) -> None:
        self.model = model
        self.processor = processor
        self.max_batch = max_batch
        config = model.vlm.config.get_text_config()
        self.max_length: int | None = getattr(config, "max_position_embeddings", None)
        vocabulary = model.get_output_embeddings().weight.shape[0]
        self._grammars = Grammars(processor.tokenizer, vocabulary, processor.end_ids)
        self.steps = 0
        self._rows: list[Row] = []
        self._intake = Intake(thread)

    # ------------------------------------------------------------------ from any thread

    def start(self) -> None:
        """Begins to answer."""
        self._intake.start(self._run)

    def submit(self, request: Request) -> None:
        """Queues a request.

        Raises:
            ClosedError: The engine is shutting down.
        """
        self._intake.put(request)

    def close(self, timeout: float | None = None) -> None:
        """Answers what was taken, refuses anything new, and stops."""
        self._intake.close(timeout)

    @property
    def alive(self) -> bool:
        """Whether requests are being answered."""
        return self._intake.alive

    @property
    def waiting(self) -> int:
        """Requests that nobody works on yet."""
        return len(self._intake.waiting)

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return len(self._rows)

    def length(self, prompt: Prompt) -> int:
        """Tokens of a prompt; those of its pictures are placeholders in it."""
        return int(prompt.ids.shape[1])

    @property
    def sampling(self) -> Sampling:
        """How the model's own settings choose tokens."""
        # As in `generate`, where the prompt is token ids: its words count as used, too.
        return replace(model_sampling(self.model.vlm), penalize_prompt=True)

    def grammar(self, schema: dict[str, Any]) -> Any:
        """Prepares answers in JSON that fits a schema, on the caller's thread.

        Raises:
            InputError: The package for it is missing, or the schema cannot be obeyed.
        """
        return self._grammars.json(schema)

    def add_adapter(self, key: str, folder: Path) -> None:
        """Loads an adapter, on the caller's thread.

        Raises:
            InputError: It belongs to another base, or holds numbers that are not finite.
        """
        self.model.task_adapters[key] = self.model.read_adapter(folder)

    def remove_adapter(self, key: str) -> None:
        """Forgets an adapter; requests that wait with it fail."""
        self.model.delete_adapter(key)

    def attention(self, prompt: Prompt) -> Tensor:
        """There are no queries whose attention could be shown.

        Raises:
            InputError: Always.
        """
        raise InputError("this model has no queries that look at the picture.")

    def gauges(self) -> Gauges:
        """Levels for an operator's monitoring."""
        return {
            "decoding_steps": ("Steps since the start.", lambda: self.steps),
            "decoding_rows": ("Answers in the last step.", lambda: len(self._rows)),
            "adapters": ("Adapters loaded.", lambda: len(self.model.task_adapters)),
        }

    # ------------------------------------------------------------------ on the engine's thread

    def _run(self) -> None:
        intake, queue = self._intake, self._intake.waiting
        while True:
            with intake.changed:
                intake.changed.wait_for(lambda: queue or intake.closed)
                if not queue:
                    return
                taken: list[Any] = [queue.popleft() for _ in range(self.max_batch) if queue]
            requests = [request for request in taken if self._wanted(request)]
            if requests:
                self._answer(requests)

    def _wanted(self, request: Request) -> bool:
        """Whether somebody still waits for the answer, with an adapter that is still there."""
        key = request.prompt.adapter
        if key is not None and key not in self.model.task_adapters:
            request.fail(RemovedError("the adapter was removed."))
        return request.wanted()

    def _answer(self, requests: Sequence[Request]) -> None:
        """Answers requests together; where that fails, each alone, so that one ends no other."""
        try:
            self._rows = [Row(request, self.processor.tokenizer) for request in requests]
            with torch.inference_mode():
                self._generate(self._rows)
        except Exception as error:
            # Answers that have begun cannot begin again and fail like the one at fault.
            begun = {id(row.request) for row in self._rows if row.choices.ids}
            for request in [request for request in requests if not request.cancelled]:
                if id(request) in begun or len(requests) == 1:
                    logger.exception("a request could not be answered")
                    request.fail(error)
                elif self._wanted(request):
                    self._answer([request])
        finally:
            self._rows = []

    def _generate(self, rows: Sequence[Row]) -> None:
        prompts = [row.request.prompt for row in rows]
        for prompt in prompts:
            prompt.length = self.length(prompt)
        turn = Turn(self, rows)
        batch = joined(prompts, self.processor.pad_token_id, self.model.device)
        own = end_processors(
            self.model.vlm, self.processor.end_ids, batch["input_ids"].shape[1], self.model.device
        )
        self.model.generate(
            **batch,
            **ONE_EACH,
            adapter_names=[prompt.adapter for prompt in prompts],
            do_sample=False,
            repetition_penalty=1.0,  # each request has its own
            max_new_tokens=max(row.request.max_new_tokens for row in rows),
            pad_token_id=self.processor.pad_token_id,
            eos_token_id=None,
            logits_processor=[*own, turn],
            stopping_criteria=[Done(turn)],
        )


def end_processors(
    vlm: Any, end_ids: Sequence[int], prompt: int, device: torch.device
) -> list[LogitsProcessor]:
    """What a model's own settings do to the tokens that end an answer.

    `generate` is told of no such token here, since each request has its own, and would leave these
    settings out.

    Args:
        vlm: Whose settings count.
        end_ids: Tokens that end an answer.
        prompt: Columns of the prompts with their padding.
        device: Of the logits.
    """
    config, ends = vlm.generation_config, torch.tensor(list(end_ids), device=device)
    found: list[LogitsProcessor] = []
    if config.min_new_tokens and end_ids:
        found.append(Shortest(prompt, config.min_new_tokens, ends))
    if config.exponential_decay_length_penalty is not None and end_ids:
        found.append(Decay(config.exponential_decay_length_penalty, ends, prompt))
    return found


class Shortest(MinNewTokensLengthLogitsProcessor):
    """Transformers' own; it counts columns and reads no ids."""

    blind = True


class Decay(ExponentialDecayLengthPenalty):
    """Transformers' own; it counts columns and reads no ids."""

    blind = True


class Turn(LogitsProcessor):
    """Chooses and delivers the next token of every row, and makes `generate` take it.

    Args:
        engine: Counts the steps.
        rows: Of the batch.
    """

    blind = True  # each row has its own ids

    def __init__(self, engine: GenerateEngine, rows: Sequence[Row]) -> None:
        self.engine = engine
        self.rows = rows
        self.going = list(range(len(rows)))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) scores of which only those of the chosen tokens are finite."""
        self.engine.steps += 1
        wanted = [i for i in self.going if self.rows[i].request.wanted()]
        places = take_all([self.rows[i] for i in wanted], scores[wanted]) if wanted else []
        self.going = [wanted[place] for place in places]
        chosen = torch.tensor([row.last for row in self.rows], device=scores.device)
        forced = torch.full_like(scores, float("-inf"))
        return forced.scatter(1, chosen[:, None], 0.0)


class Done(StoppingCriteria):
    """Ends the rows whose answers are finished.

    Args:
        turn: Knows which go on.
    """

    blind = True

    def __init__(self, turn: Turn) -> None:
        self.turn = turn

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """(B,) which rows are done."""
        done = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        done[self.turn.going] = False
        return done


def joined(prompts: Sequence[Prompt], pad: int, device: torch.device) -> dict[str, Any]:
    """Prompts as one batch: text padded on the right, media behind each other.

    Args:
        prompts: Each with the tensors of its row.
        pad: The token id of padding.
        device: Of the model.
    """
    length = max(prompt.ids.shape[1] for prompt in prompts)
    batch: dict[str, Any] = {
        "input_ids": torch.cat([padded(prompt.ids, length, pad) for prompt in prompts]),
        "attention_mask": torch.cat(
            [padded(torch.ones_like(prompt.ids), length, 0) for prompt in prompts]
        ),
    }
    media: list[Any] = []
    index: list[int] = []
    beside: dict[str, list[Tensor | None]] = {}
    for number, prompt in enumerate(prompts):
        tensors = dict(prompt.batch or {})
        sets = tensors.pop("media", [])
        index.append(len(media) if sets else -1)
        media += moved(sets, device)
        for name in tensors.keys() - {"input_ids", "attention_mask", "media_index"}:
            beside.setdefault(name, [None] * len(prompts))[number] = tensors[name]
    for name, values in beside.items():
        batch[name] = torch.cat(
            [
                padded(torch.zeros_like(prompt.ids) if value is None else value, length, 0)
                for prompt, value in zip(prompts, values, strict=True)
            ]
        )
    batch = {name: value.to(device) for name, value in batch.items()}
    if media:
        batch |= {"media": media, "media_index": torch.tensor(index)}
    return batch


def padded(values: Tensor, length: int, value: int) -> Tensor:
    """(1, T) padded on the right to a length."""
    return F.pad(values, (0, length - values.shape[1]), value=value)
