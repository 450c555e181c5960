"""What users of transformers expect of a model: supported where it makes sense, else refused."""

from typing import Any, ClassVar, NoReturn, Self

import torch
from torch import nn
from transformers import GenerationConfig

from crome.errors import InputError
from crome.model.quantised import keep_differentiable
from crome.model.recompute import checkpoint_activations, keep_activations


class Conventions:
    """Methods of a transformers model that a model around frozen ones has in its own way.

    Attributes:
        GENERATOR: Name of the frozen model inside that generates.
    """

    GENERATOR: ClassVar[str] = "language_model"
    language_model: Any
    _modules: dict[str, Any]

    @property
    def _generator(self) -> Any:
        return self._modules[self.GENERATOR]

    @classmethod
    def can_generate(cls) -> bool:
        """Whether `generate` works: it does."""
        return True

    @property
    def generation_config(self) -> GenerationConfig | None:
        """The language model's own; a new one takes its place."""
        inside = self._modules.get(self.GENERATOR)  # none while the model is built
        return getattr(inside, "generation_config", None)

    @generation_config.setter
    def generation_config(self, value: GenerationConfig | None) -> None:
        if (inside := self._modules.get(self.GENERATOR)) is not None:
            inside.generation_config = value

    def get_input_embeddings(self) -> nn.Module:
        """The language model's, so that libraries find the text vocabulary."""
        return self._generator.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head."""
        return self._generator.get_output_embeddings()

    def set_input_embeddings(self, *_: Any, **__: Any) -> NoReturn:
        """Refused: the language model is frozen.

        Raises:
            InputError: Always.
        """
        raise InputError(
            "the language model is frozen: its embeddings are neither replaced nor resized. Visual "
            "tokens need no entry of the vocabulary."
        )

    set_output_embeddings = resize_token_embeddings = set_input_embeddings

    def train(self, mode: bool = True) -> Self:
        """Sets the mode; what is trained through must let gradients pass."""
        if mode:
            keep_differentiable(self._generator)
        return super().train(mode)  # type: ignore[misc]

    def init_weights(self) -> None:
        """Does nothing: the towers are loaded and the bridge is drawn where the model is built."""

    def tie_weights(self, *_: Any, **__: Any) -> None:
        """Does nothing: each tower was tied when it was loaded, and is never tied again."""

    def get_decoder(self) -> Any:
        """The language model's decoder."""
        return self._generator.get_decoder()

    @property
    def dtype(self) -> torch.dtype:
        """Type of the frozen language model; the bridge may have another."""
        return next(p.dtype for p in self._generator.parameters() if p.is_floating_point())

    # ------------------------------------------------------------------ activation checkpointing

    @property
    def supports_gradient_checkpointing(self) -> bool:
        """Whether activations can be checkpointed, which the language model's layers allow."""
        return True

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether the language model's layers compute activations again in the backward pass."""
        return any("forward" in vars(m) for m in self._generator.modules())

    def gradient_checkpointing_enable(self, *_: Any, **__: Any) -> None:
        """Keeps no activations inside the language model's layers, in eval mode too.

        Raises:
            InputError: The language model has no layers that could.
        """
        checkpoint_activations(self.language_model)

    def gradient_checkpointing_disable(self) -> None:
        """Keeps the activations again."""
        keep_activations(self.language_model)
