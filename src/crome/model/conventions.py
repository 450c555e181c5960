"""What users of transformers expect of a model: supported where it makes sense, else refused."""

from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from crome.errors import InputError
from crome.model.bridge import Bridge
from crome.model.recompute import checkpoint_activations, keep_activations


class Conventions(Bridge):
    """Methods of a transformers model that a composite of frozen towers has in its own way."""

    _modules: dict[str, Any]

    @classmethod
    def can_generate(cls) -> bool:
        """Whether `generate` works: it does."""
        return True

    @property
    def generation_config(self) -> GenerationConfig | None:
        """The language model's own; a new one takes its place."""
        own: GenerationConfig | None = getattr(
            self._modules.get("language_model"), "generation_config", None
        )
        return own

    @generation_config.setter
    def generation_config(self, value: GenerationConfig | None) -> None:
        if (language_model := self._modules.get("language_model")) is not None:
            language_model.generation_config = value

    def get_input_embeddings(self) -> nn.Module:
        """The language model's, so that libraries find the text vocabulary."""
        words: nn.Module = self.language_model.get_input_embeddings()
        return words

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head."""
        head: nn.Module = self.language_model.get_output_embeddings()
        return head

    def set_input_embeddings(self, value: nn.Module) -> NoReturn:
        """Refused: the language model is frozen.

        Raises:
            InputError: Always.
        """
        raise InputError(
            "the language model is frozen: its embeddings are neither replaced nor resized. Visual "
            "tokens need no entry of the vocabulary."
        )

    def resize_token_embeddings(self, *_: Any, **__: Any) -> NoReturn:
        """Refused: the language model is frozen.

        Raises:
            InputError: Always.
        """
        self.set_input_embeddings(nn.Identity())

    def set_output_embeddings(self, value: nn.Module) -> NoReturn:
        """Refused: the language model is frozen.

        Raises:
            InputError: Always.
        """
        self.set_input_embeddings(value)

    def init_weights(self) -> None:
        """Does nothing: the towers are loaded and the bridge is drawn where the model is built."""

    def tie_weights(self, *_: Any, **__: Any) -> None:
        """Does nothing: each tower was tied when it was loaded, and is never tied again."""

    def get_decoder(self) -> Any:
        """The language model's decoder."""
        return self.language_model.get_decoder()

    @property
    def dtype(self) -> torch.dtype:
        """Type of the frozen language model; the bridge may have another."""
        return next(p.dtype for p in self.language_model.parameters() if p.is_floating_point())

    @torch.no_grad()
    def get_image_features(
        self,
        pixel_values: Tensor,
        qformer_input_ids: Tensor | None = None,
        qformer_attention_mask: Tensor | None = None,
    ) -> Tensor:
        """The visual tokens of pictures, as the language model reads them.

        Args:
            pixel_values: (I, 3, H, W).
            qformer_input_ids: (I, S) the question on each picture, for a Q-Former that reads it.
            qformer_attention_mask: (I, S).

        Returns:
            (I, V, d).

        Raises:
            InputError: The Q-Former reads a question, and there is none.
        """
        if self.config.instruction_aware and "query" in self.config.branches:
            if qformer_input_ids is None:
                raise InputError(
                    "the visual tokens of this model depend on the question; give "
                    "qformer_input_ids and qformer_attention_mask from the processor."
                )
        index = torch.arange(len(pixel_values))[:, None]
        blocks = self.visual_blocks(
            self.visual_features(pixel_values), index, qformer_input_ids, qformer_attention_mask
        )
        return blocks.joined(self.visual_order)

    # ------------------------------------------------------------------ activation checkpointing

    @property
    def supports_gradient_checkpointing(self) -> bool:
        """Whether activations can be checkpointed, which the language model's layers allow."""
        return True

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether the language model's layers compute activations again in the backward pass."""
        return any("forward" in vars(m) for m in self.language_model.modules())

    def gradient_checkpointing_enable(self, *_: Any, **__: Any) -> None:
        """Keeps no activations inside the language model's layers, in eval mode too.

        Raises:
            InputError: The language model has no layers that could.
        """
        checkpoint_activations(self.language_model)

    def gradient_checkpointing_disable(self) -> None:
        """Keeps the activations again."""
        keep_activations(self.language_model)
