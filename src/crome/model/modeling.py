"""`CromeForConditionalGeneration`: two frozen towers and the bridge between them.

Forward, in order: vision encoder (once per distinct image, both layers from one pass) → Q-Former
(once per question, reads the question) → two projections → gated adapter → spliced into the text
embeddings → frozen language model → logits where an answer token is predicted.

Shapes: B rows (questions), I distinct images of the batch, K images a row at most, T text tokens,
R blocks, d width of the language model, L tokens of a row with its visual ones, A answer tokens,
V vocabulary.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, InstructBlipQFormerModel, PreTrainedModel

from crome.adapter import CrossModalAdapter
from crome.model import adapter_files, pretrained
from crome.model.batch import CromeOutput as CromeOutput
from crome.model.batch import PromptBatch
from crome.model.bridge import Bridge
from crome.model.configuration import CromeConfig, new_adapter
from crome.model.conventions import Conventions
from crome.model.encoders import build_vision_model, vision_width
from crome.model.families import (
    keeps_plainly,
    new_cache,
    past_a_limit,
    rows_disturb,
)
from crome.model.generation import behind_embeddings, generate, padded_together, plainly_greedy
from crome.model.kernels import use_kernels
from crome.model.language import build_language_model
from crome.model.losses import mean_loss
from crome.model.prefix import greedy
from crome.model.scoring import (
    independent_options,
    label_losses,
    losses_behind_cache,
    losses_behind_encoder,
    rows_of_one_length,
    whole_logits,
)
from crome.model.slots import records
from crome.model.stages import TOWERS
from crome.model.task_adapters import NamedAdapters


class CromeForConditionalGeneration(Conventions, Bridge, PreTrainedModel):  # type: ignore[misc, override]
    """A frozen vision encoder, a Q-Former, two projections, a gated adapter, a frozen LLM.

    Args:
        config: The configuration.
        vision_model: A loaded encoder; built from `config.vision_config` when None.
        language_model: A loaded language model; built from `config.text_config` when None.
    """

    config_class = CromeConfig
    base_model_prefix = "crome"
    main_input_name = "input_ids"
    config: CromeConfig
    accepts_loss_kwargs = True  # the Trainer then passes num_items_in_batch
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(
        self,
        config: CromeConfig,
        vision_model: nn.Module | None = None,
        language_model: PreTrainedModel | None = None,
    ) -> None:
        # The composite keeps copies: joining configs resets each part's choice of attention, and a
        # language model whose choice is None runs without its causal mask.
        super().__init__(config)
        # The Trainer then counts all labels: an encoder-decoder's first one is a target too.
        self.loss_type = None  # type: ignore[assignment]
        if vision_model is None:
            vision_model = build_vision_model(config.vision_config)
        if language_model is None:
            language_model = build_language_model(config.text_config)
        if not config.text_config.is_encoder_decoder:
            use_kernels(language_model)
        self.vision_model = vision_model
        self.language_model = language_model
        width, branches = config.hidden_size, config.branches
        if "query" in branches:
            inner = config.qformer_config.hidden_size
            self.query_tokens = nn.Parameter(torch.empty(1, config.num_query_tokens, inner))
            nn.init.normal_(self.query_tokens, std=0.02)  # zeros would keep all queries alike
            self.qformer = InstructBlipQFormerModel(config.qformer_config)
            self.query_projection = nn.Linear(inner, width)
        if "patch" in branches:
            self.patch_projection = nn.Linear(vision_width(config.vision_config), width)
        if config.adapter_bottleneck is not None:
            self.adapter = new_adapter(config)
        self.task_adapters = NamedAdapters()
        self.tower_fingerprints: dict[str, str | None] | None = None  # set where FSDP shards
        for name in TOWERS:
            getattr(self, name).requires_grad_(False)
        self.eval()

    # ------------------------------------------------------------------ loading and saving

    @classmethod
    def from_backbones(
        cls,
        vision_model_id: str,
        language_model_id: str,
        *,
        dtype: torch.dtype | str = "auto",
        vision_kwargs: dict[str, Any] | None = None,
        language_kwargs: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Self:
        """Joins two pretrained towers with a fresh bridge.

        Args:
            vision_model_id: Hub id, folder or asset of a vision encoder or image-text pair.
            language_model_id: Hub id, folder, asset or `.gguf` file of a language model.
            dtype: Type of the frozen towers; the bridge is always float32.
            vision_kwargs: Further keywords for the encoder's `from_pretrained`.
            language_kwargs: Further keywords for the language model's (`quantization_config`, …).
            settings: Fields of `CromeConfig`.

        Raises:
            InputError: A setting is no field, or a tower cannot be loaded.
        """
        pretrained.require_fields(settings)
        vision, language = pretrained.load_towers(
            vision_model_id,
            language_model_id,
            dtype,
            {"revision": settings.get("vision_revision"), **(vision_kwargs or {})},
            {"revision": settings.get("language_revision"), **(language_kwargs or {})},
        )
        sizes = ("num_hidden_layers", "num_attention_heads")
        if not all(isinstance(getattr(vision.config, name, None), int) for name in sizes):
            # Inside an encoder of several stages, maps differ in width from its output.
            settings = {"patch_feature_layer": -1, **settings}
        settings = {"enable_thinking": False, **settings}  # a bridge learns bare answers
        config = CromeConfig(
            vision_config=vision.config.to_dict(),
            text_config=language.config.to_dict(),
            vision_model_id=vision_model_id,
            language_model_id=language_model_id,
            **settings,
        )
        model = cls(config, vision, language)
        model.match_embedding_scale()
        return model

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        dtype: torch.dtype | str = "auto",
        vision_kwargs: dict[str, Any] | None = None,
        language_kwargs: dict[str, Any] | None = None,
        **keywords: Any,
    ) -> Self:
        """Loads a checkpoint: the towers from where its config says, then the bridge, strictly.

        Args:
            pretrained_model_name_or_path: A folder, a hub id, or a preset that has weights.
            dtype: Type of the frozen towers; "auto" takes each tower's own.
            vision_kwargs: Further keywords for the encoder's `from_pretrained`.
            language_kwargs: Further keywords for the language model's.
            keywords: Fields of `CromeConfig` to change, such as `share_prefix`, or keywords of
                transformers' loaders: `revision`, `config`, and for the language model
                `attn_implementation`, `device_map`, `quantization_config`.

        Raises:
            InputError: No CROME checkpoint, tensors that do not fit its config, or another keyword.
        """
        loading = pretrained.Loading.sort(dtype, vision_kwargs, language_kwargs, keywords)
        name = pretrained_model_name_or_path
        folder = pretrained.locate_checkpoint(name, loading.revision, **loading.hub)
        config = pretrained.read_config(folder, loading.fields, loading.base)
        config.name_or_path = str(name)
        vision, language = pretrained.load_towers(
            config.vision_model_id,
            config.language_model_id,
            loading.dtype,
            {"revision": config.vision_revision, **loading.vision},
            {"revision": config.language_revision, **loading.language},
        )
        model = cls(config, vision, language)
        pretrained.load_bridge(model, folder)
        return model

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        *,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool | str = False,
        base: str | None = None,
        **keywords: Any,
    ) -> None:
        """Writes `config.json` and the bridge; the towers stay where they came from.

        Args:
            save_directory: Folder, made if absent.
            state_dict: The model's tensors, gathered by a distributed engine.
            push_to_hub: Whether to upload the folder too: True for a repository of the folder's
                name, or the repository's id.
            base: Name of a checkpoint that has all of this bridge but its adapter; the adapter
                alone is then written, and the base named.
            keywords: Those of transformers that change nothing here; others are refused.

        Raises:
            InputError: A keyword that this checkpoint cannot honour.
        """
        pretrained.save_with(self, Path(save_directory), state_dict, push_to_hub, keywords, base)

    def load_trained(self, folder: str | os.PathLike[str]) -> None:
        """Reads what `save_pretrained` wrote."""
        pretrained.load_bridge(self, Path(folder))

    def write_adapter(
        self, folder: Path, adapter: CrossModalAdapter, metadata: dict[str, Any]
    ) -> None:
        """Writes an adapter and the base it belongs to."""
        adapter_files.save_adapter(self, folder, adapter, metadata)

    def read_adapter(self, folder: Path) -> CrossModalAdapter:
        """Builds the adapter in a folder, refusing one that was trained on another base."""
        return adapter_files.load_adapter(self, folder)

    # ------------------------------------------------------------------ modes

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of what trains; towers, and every frozen part, stay in eval mode."""
        super().train(mode)
        for module in self.children():
            if not any(p.requires_grad for p in module.parameters()):
                module.eval()
        return self

    # ------------------------------------------------------------------ forward

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        visual_position: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_index: Tensor | None = None,
        qformer_input_ids: Tensor | None = None,
        qformer_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        features: Sequence[Tensor | None] | None = None,
        adapter_names: Sequence[str | None] | None = None,
        num_items_in_batch: Tensor | int | None = None,
        output_hidden_states: bool = False,
    ) -> CromeOutput:
        """Loss on the answers, or logits.

        Args:
            input_ids: (B, T); this and what follows as in `PromptBatch`.
            attention_mask: (B, T).
            visual_position: (B,).
            pixel_values: (I, 3, H, W).
            image_index: (B, K).
            qformer_input_ids: (B, S).
            qformer_attention_mask: (B, S).
            labels: (B, T) with -100 outside answers; for an encoder-decoder (B, answer length).
            features: Frozen features instead of `pixel_values`.
            adapter_names: The name of an adapter for each row.
            num_items_in_batch: Answer tokens over all accumulated batches and devices.
            output_hidden_states: Whether a pass without labels also returns the hidden states of
                the language model's layers.

        Raises:
            InputError: Parts of the batch disagree, or a row is longer than the model can read.
        """
        batch = PromptBatch(
            input_ids, attention_mask, visual_position, pixel_values, image_index,
            qformer_input_ids, qformer_attention_mask, features, adapter_names,
        )  # fmt: skip
        prompts = self.prompts(batch, labels)
        if labels is None:
            return whole_logits(self, prompts, output_hidden_states)
        logits, losses = label_losses(self, prompts)
        loss = mean_loss(losses, num_items_in_batch)
        if prompts.blocks is None and self.training:
            # Text-only batches touch everything that trains, so that all ranks have gradients.
            loss = loss + sum(0.0 * p.sum() for p in self.parameters() if p.requires_grad)
        return CromeOutput(loss=loss, logits=logits, token_losses=losses)

    @torch.no_grad()
    def generate(self, **keywords: Any) -> Tensor:
        """Generates answers: greedy, sampled, by beams or streamed, as transformers does it.

        Lengths, and settings that count tokens such as a repetition penalty, concern the answer.

        Args:
            keywords: Fields of `PromptBatch`, and settings of the language model's `generate`;
                bound the length with `max_new_tokens`.

        Returns:
            (B, new tokens) ids; an encoder-decoder's begin with its start token.

        Raises:
            InputError: A setting cannot be honoured, or a row is longer than the model can read.
        """
        batch, settings = PromptBatch.split(keywords)
        prompts, model = self.prompts(batch), self.language_model
        encodes = self.config.text_config.is_encoder_decoder
        plain = plainly_greedy(settings, model)
        settings = behind_embeddings(settings, model, self.config.max_answer_tokens)
        length = 0 if encodes else settings["max_new_tokens"]
        self.require_room(prompts.lengths, length)
        if plain is not None and (prefix := self.prefix(prompts, length)):
            return greedy(model, *prefix.read(model), *plain)
        if rows_disturb(model.config, prompts.lengths, length):
            groups = rows_of_one_length(prompts.lengths)
            parts = [self.generate(**vars(batch.rows(rows)), **settings) for rows in groups]
            return padded_together(parts, torch.cat(groups), settings.get("pad_token_id") or 0)
        if plain is not None and not encodes and self.may_run_twice and records(model):
            embeds, mask, _ = self.spliced(prompts)
            return greedy(model, new_cache(model), embeds, mask, *plain)
        # Encoders may count positions from the first place, padding or not.
        embeds, mask, _ = self.spliced(prompts, "right" if encodes else "left")
        return generate(model, embeds, mask, settings)

    @torch.no_grad()
    def prompt_embeddings(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *positional: Any,
        side: str = "left", **batch: Any,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """What the language model reads: the prompts' embeddings, visual blocks in their place.

        Args:
            input_ids: (B, T); this and what follows are the fields of `PromptBatch`.
            attention_mask: (B, T).
            positional: Further fields, in their order.
            side: The side on which shorter rows are padded.
            batch: Further fields, by name.

        Returns:
            (B, L, d) embeddings and (B, L) mask.
        """
        prompted = PromptBatch(input_ids, attention_mask, *positional, **batch)
        embeds, mask, _ = self.spliced(self.prompts(prompted), side)
        return embeds, mask

    @torch.no_grad()
    def option_losses(self, option_ids: Tensor, option_rows: Tensor, **batch: Any) -> Tensor:
        """Losses of candidate answers, for ranking them: the likeliest has the smallest sum.

        An image's tokens are read once for all its questions, and a question once for all its
        options; equal, up to float rounding, to the `token_losses` of a row for each option.

        Args:
            option_ids: (N, A) the options of all rows, -100 behind each one's end; with
                `option_rows` from `CromeProcessor.options`.
            option_rows: (N,) the row each option answers; rows may have any number of them.
            batch: Fields of a `PromptBatch` of prompts without answers.

        Returns:
            (N, A) cross-entropy of each token of each option, 0 behind its end.
        """
        prompted, options = PromptBatch(**batch), (option_ids, option_rows)
        prompts, model = self.prompts(prompted), self.language_model
        encodes, width = self.config.text_config.is_encoder_decoder, option_ids.shape[1]
        self.require_room(prompts.lengths, 0 if encodes else width)
        if encodes and not rows_disturb(model.config, prompts.lengths):
            embeds, mask, _ = self.spliced(prompts)
            return losses_behind_encoder(model, embeds, mask, *options)
        plain = self.config.share_prefix and keeps_plainly(model)
        longest = int(prompts.lengths.max()) + width
        if encodes or not plain or past_a_limit(model.config, longest):
            return independent_options(self, *options, prompted)
        if (prefix := self.prefix(prompts, width)) is not None:
            return losses_behind_cache(model, *prefix.read(model), *options)
        embeds, mask, _ = self.spliced(prompts)
        return losses_behind_cache(model, new_cache(model), embeds, mask, *options)


AutoModelForImageTextToText.register(CromeConfig, CromeForConditionalGeneration)
