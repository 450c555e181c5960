"""What the house needs of a model and of its processor: the whole surface, in one place.

Two models fulfil it: `CromeForConditionalGeneration`, and `crome.attached.AttachedModel` on any
vision-language model of transformers. Training, evaluation and serving name these types and ask
for nothing else.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from transformers import BatchFeature

from crome.rows import Row


class VisionLanguageModel(Protocol):
    """A frozen model with adapters before its language model.

    Attributes:
        task_adapters: Loaded adapters by name.
        active_adapter: The one that rows use by default; None for the model's own.
        training: Whether it is in train mode.
        config: A configuration of transformers.
    """

    task_adapters: Any
    active_adapter: str | None
    training: bool
    config: Any

    @property
    def hidden_size(self) -> int:
        """Width of the language model's embeddings."""

    def base_identity(self) -> dict[str, Any]:
        """What an adapter is valid for; names of fingerprints end in `_fingerprint`."""

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of training that this model has; `finetune` trains the adapter alone."""

    @property
    def language_model(self) -> Any:
        """The frozen language model inside."""

    @property
    def device(self) -> torch.device:
        """Where it is."""

    def parts(self) -> dict[str, nn.Module | nn.Parameter]:
        """Frozen and trainable parts by name; the one that `finetune` trains is `adapter`."""

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """All parameters."""

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Freezes or thaws every parameter."""

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of what trains; frozen parts stay in eval mode."""

    def eval(self) -> Self:
        """Sets eval mode."""

    def get_input_embeddings(self) -> Any:
        """The word embeddings; inputs go to their device."""

    def get_output_embeddings(self) -> Any:
        """The head."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """A processor's batch → `loss`, `logits`, `token_losses`.

        With `labels` the loss, over `num_items_in_batch` tokens where given; `adapter_names` has an
        adapter for each row.
        """

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """A processor's batch → (B, new tokens) ids."""

    def option_losses(self, option_ids: Tensor, option_rows: Tensor, **batch: Any) -> Tensor:
        """Losses of candidate answers, (N, A); see `Processor.options`."""

    def load_adapter(
        self,
        path: str | os.PathLike[str],
        name: str = "task",
        *,
        revision: str | None = None,
        subfolder: str = "",
    ) -> None:
        """Loads an adapter beside the others and makes it the active one."""

    def save_adapter(self, path: str | os.PathLike[str], **metadata: Any) -> None:
        """Writes the active adapter."""

    def set_adapter(self, name: str | None) -> None:
        """Chooses the adapter that rows use by default."""

    def get_adapter(self, name: str | None) -> Any:
        """The adapter of a name, the model's own for None."""

    def delete_adapter(self, name: str) -> None:
        """Unloads an adapter."""

    def disable_adapter(self) -> AbstractContextManager[None]:
        """A block in which rows pass no adapter."""

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Writes what trains, and nothing of what is frozen."""

    def load_trained(self, folder: str | os.PathLike[str]) -> None:
        """Reads what `save_pretrained` wrote: how an interrupted run goes on."""


class Processor(Protocol):
    """Rows → the batch that its model takes, and ids → answers.

    Attributes:
        media: What it takes besides text: `image`, `video`, `audio`.
        tokenizer: Tokenizer of the language model.
        max_question_tokens: Longer questions lose their beginning.
        max_answer_tokens: Longer answers lose their end.
    """

    media: tuple[str, ...]
    tokenizer: Any
    max_question_tokens: int
    max_answer_tokens: int

    def encode(self, rows: Sequence[Row], answers: bool = False) -> BatchFeature:
        """Prepares rows, with labels from their answers where these are wanted."""

    def options(self, options: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        """Candidate answers of each row: `option_ids` (N, A) and `option_rows` (N,)."""

    def render(
        self, question: str, has_image: bool, history: Sequence[tuple[str, str]] = ()
    ) -> str:
        """A prompt as text, for logs and predictions."""

    def reads_whole(self, question: str, answer: str = "") -> bool:
        """Whether question and answer are short enough not to be cut."""

    @property
    def end_ids(self) -> list[int]:
        """Tokens that end an answer; empty where the tokenizer has none."""

    @property
    def generation_kwargs(self) -> dict[str, Any]:
        """End and pad ids for `generate`."""

    def batch_decode(self, ids: Tensor, **kwargs: Any) -> list[str]:
        """Generated ids → answers."""

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> Any:
        """Writes what of it is not in the base."""
