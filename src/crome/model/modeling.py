"""`CromeForConditionalGeneration`: two frozen towers and the bridge between them.

Forward, in order: vision encoder (once per distinct image, both layers from one pass) → Q-Former
(once per question, reads the question) → two projections → gated adapter → spliced into the text
embeddings → frozen language model → logits where an answer token is predicted.

Shapes: B rows (questions), I distinct images of the batch, K images a row at most, T text tokens,
R blocks, N encoder tokens, P patch tokens, Q queries, S instruction tokens of the
Q-Former, D encoder width, d width of the language model, A answer tokens, V vocabulary.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    InstructBlipQFormerModel,
    PreTrainedModel,
)
from transformers.utils.generic import ModelOutput

from crome.errors import InputError
from crome.model import adapters, pretrained
from crome.model.configuration import CromeConfig, new_adapter
from crome.model.encoders import build_vision_model, vision_width
from crome.model.hub import locate
from crome.model.identity import crome_identity
from crome.model.language import (
    build_language_model,
    decoder_inputs,
    embed_words,
    head_rows,
    keeps_plainly,
    new_cache,
    takes_any_mask,
)
from crome.model.losses import IGNORED, answer_losses, predicting_rows
from crome.model.prefix import SharedPrefix, greedy
from crome.model.ranking import losses_behind_cache, losses_behind_encoder
from crome.model.splicing import VisualBlocks, splice
from crome.model.stages import BRIDGE, STAGES, TOWERS
from crome.model.task_adapters import TaskAdapters
from crome.model.vision import VisualFeatures, visual_features

GREEDY = ("max_new_tokens", "eos_token_id", "pad_token_id")
"""What a plainly greedy request names besides `do_sample=False`."""
IDLE_IN_GREEDY = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "max_length", "use_cache"),
    *("do_sample", "temperature", "top_k", "top_p", "min_p"),
    *("output_attentions", "output_hidden_states", "transformers_version", "_from_model_config"),
}
"""Defaults of a language model that greedy decoding overrules or does not read; others, such as a
repetition penalty, are left to transformers."""


@dataclass
class CromeOutput(ModelOutput):
    """What `forward` returns.

    Attributes:
        loss: Cross-entropy over answer tokens, mean or sum / `num_items_in_batch`.
        logits: (A, V) at the positions that predict an answer token when labels were given, None
            where they are so many that losses are computed in chunks (`crome.model.losses`);
            otherwise (B, L, V) over the whole sequence, visual tokens included.
        token_losses: (A,) cross-entropy of each answer token, in row order.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    token_losses: Tensor | None = None


class CromeForConditionalGeneration(TaskAdapters, PreTrainedModel):  # type: ignore[misc]
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
    vision_model: Any
    language_model: Any
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
        self.task_adapters = nn.ModuleDict()
        self.tower_fingerprints: dict[str, str | None] | None = None  # where a tower is in shares
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
            language_kwargs: The same for the language model (`quantization_config`, …).
            settings: Fields of `CromeConfig`.
        """
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
        **config_overrides: Any,
    ) -> Self:
        """Loads a checkpoint: the towers from where its config says, then the bridge, strictly.

        Args:
            pretrained_model_name_or_path: A folder, a hub id, or a preset that has weights.
            dtype: Type of the frozen towers; "auto" takes each tower's own.
            vision_kwargs: Further keywords for the encoder's `from_pretrained`.
            language_kwargs: The same for the language model.
            config_overrides: Fields of `CromeConfig` to change, such as `share_prefix`.

        Raises:
            InputError: The folder is no CROME checkpoint, or its tensors do not fit its config.
        """
        folder = locate(pretrained_model_name_or_path, config_overrides.get("revision"))
        config = pretrained.read_config(folder, config_overrides)
        config.name_or_path = str(pretrained_model_name_or_path)
        revisions = {"revision": config.vision_revision}, {"revision": config.language_revision}
        vision, language = pretrained.load_towers(
            config.vision_model_id,
            config.language_model_id,
            dtype,
            {**revisions[0], **(vision_kwargs or {})},
            {**revisions[1], **(language_kwargs or {})},
        )
        model = cls(config, vision, language)
        pretrained.load_bridge(model, folder)
        return model

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], **kwargs: Any
    ) -> None:
        """Writes `config.json` and the bridge; the towers stay where they came from."""
        pretrained.save_bridge(self, Path(save_directory), kwargs.get("state_dict"))

    def save_adapter(self, path: str | os.PathLike[str], **metadata: Any) -> None:
        """Writes the active adapter: `adapter_model.safetensors` and `adapter_config.json`.

        Args:
            path: Folder, made if absent.
            metadata: Anything worth keeping beside it (training data, metrics); must be JSON.
        """
        adapters.save_adapter(self, Path(path), metadata)

    def load_adapter(  # type: ignore[override]
        self, path: str | os.PathLike[str], name: str = "task"
    ) -> None:
        """Loads a task adapter beside the base's own and makes it the active one.

        Args:
            path: A folder or a hub id.
            name: Under which rows and `set_adapter` choose it.

        Raises:
            InputError: The adapter belongs to another base, or its file is damaged.
        """
        self.task_adapters[name] = adapters.load_adapter(self, adapters.locate_adapter(path))
        self.set_adapter(name)

    def load_trained(self, folder: str | os.PathLike[str]) -> None:
        """Reads what `save_pretrained` wrote."""
        pretrained.load_bridge(self, Path(folder))

    @property
    def hidden_size(self) -> int:
        """Width d of the language model's embeddings."""
        return self.config.hidden_size

    def base_identity(self) -> dict[str, Any]:
        """What an adapter of this model is valid for."""
        return crome_identity(self)

    @property
    def stages(self) -> tuple[str, ...]:
        """All stages of training."""
        return tuple(STAGES)

    def parts(self) -> dict[str, nn.Module | nn.Parameter]:
        """The towers and the bridge parts this configuration has, by attribute name."""
        named = {name: getattr(self, name, None) for name in TOWERS + BRIDGE}
        return {name: part for name, part in named.items() if part is not None}

    # ------------------------------------------------------------------ modes

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of what trains; towers, and every frozen part, stay in eval mode."""
        super().train(mode)
        for module in self.children():
            if not any(p.requires_grad for p in module.parameters()):
                module.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        """The language model's, so that libraries find the text vocabulary."""
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head."""
        return self.language_model.get_output_embeddings()

    # ------------------------------------------------------------------ the bridge

    def visual_features(self, pixel_values: Tensor) -> VisualFeatures:
        """Frozen features of images (I, 3, H, W); see `crome.model.vision`."""
        return visual_features(self.vision_model, pixel_values, self.config)

    def visual_blocks(
        self,
        features: VisualFeatures,
        image_index: Tensor,
        qformer_input_ids: Tensor | None = None,
        qformer_attention_mask: Tensor | None = None,
        adapter_names: Sequence[str | None] | None = None,
    ) -> VisualBlocks:
        """Q-Former, projections and adapter: one block for each image of each row.

        Patch tokens do not depend on the question, so where all rows use one adapter they are
        computed once per image.

        Args:
            features: Of I images.
            image_index: (B, K) the images of each row in order, -1 for none.
            qformer_input_ids: (B, S) instruction tokens; None for queries that see no text.
            qformer_attention_mask: (B, S).
            adapter_names: One a row, None in it for the base's own; all rows the active adapter
                when it is None itself.
        """
        rows, slots = (image_index >= 0).nonzero(as_tuple=True)
        images, every = image_index[rows, slots], torch.arange(len(rows), device=rows.device)
        tokens: dict[str, Tensor] = {}
        if "query" in self.config.branches:
            outputs = features.outputs
            if outputs is None:
                instructions = (qformer_input_ids, qformer_attention_mask)
                outputs = self.qformer_outputs(features, image_index, *instructions)
            tokens["query"] = self.query_projection(outputs)
        names = [self.active_adapter] if adapter_names is None else list(adapter_names)
        uniform = len(set(names)) == 1
        if "patch" in self.config.branches:
            patches = self.patch_projection(features.patches.to(self.patch_projection.weight.dtype))
            tokens["patch"] = patches if uniform else patches[images]
        index = {"query": every, "patch": images if uniform else every}
        if not uniform:
            tokens = self._adapt_by_name(tokens, [names[row] for row in rows.tolist()])
        elif (adapter := self.get_adapter(names[0])) is not None:
            tokens = adapter(tokens)
        return VisualBlocks(rows, tokens, index)

    def qformer_outputs(
        self,
        features: VisualFeatures,
        image_index: Tensor,
        qformer_input_ids: Tensor | None = None,
        qformer_attention_mask: Tensor | None = None,
    ) -> Tensor:
        """(R, Q, ·) what the Q-Former reads from each image of each row; see `visual_blocks`."""
        rows, slots = (image_index >= 0).nonzero(as_tuple=True)
        return self._queries(
            features.queries[image_index[rows, slots]],
            None if qformer_input_ids is None else qformer_input_ids[rows],
            None if qformer_attention_mask is None else qformer_attention_mask[rows],
        )

    @torch.no_grad()
    def match_embedding_scale(self, probe: int = 4096) -> float:
        """Draws fresh projections so that visual tokens start at the scale of word embeddings.

        Tokens much larger than the language model's own stall training. Inputs of both projections
        are taken to have unit variance, which holds behind a LayerNorm.

        Args:
            probe: Number of vocabulary entries that are looked up to measure the scale; the lookup
                matters, since some models multiply their embeddings on the way out.

        Returns:
            The root mean square of the embeddings.
        """
        ids = torch.arange(min(probe, self.config.text_config.get_text_config().vocab_size))
        scale = float(embed_words(self.language_model, ids).float().pow(2).mean().sqrt())
        for name in ("query_projection", "patch_projection"):
            if (projection := getattr(self, name, None)) is not None:
                nn.init.normal_(projection.weight, std=scale / projection.in_features**0.5)
                nn.init.zeros_(projection.bias)
        return scale

    def _features(
        self, features: Sequence[Tensor | None] | None, pixel_values: Tensor | None
    ) -> VisualFeatures | None:
        """The given features, which a cache has as a plain list, or those of the pixels."""
        if features is not None:
            return VisualFeatures(*features)  # type: ignore[arg-type]
        return None if pixel_values is None else self.visual_features(pixel_values)

    def _blocks(
        self, features: VisualFeatures | None, image_index: Tensor | None, *arguments: Any
    ) -> VisualBlocks | None:
        """`visual_blocks`, or None for a batch that shows no image."""
        if features is None or image_index is None or not (image_index >= 0).any():
            return None
        return self.visual_blocks(features, image_index, *arguments)

    def _queries(self, keys: Tensor, input_ids: Tensor | None, mask: Tensor | None) -> Tensor:
        """(R, N, D) encoder tokens and (R, S) instructions → (R, Q, width of the Q-Former)."""
        num_rows, num_queries = keys.shape[0], self.query_tokens.shape[1]
        visible = keys.new_ones((num_rows, num_queries), dtype=torch.long)
        output = self.qformer(
            input_ids=input_ids,
            attention_mask=visible if mask is None else torch.cat([visible, mask], 1),
            query_embeds=self.query_tokens.expand(num_rows, -1, -1),
            encoder_hidden_states=keys.to(self.query_tokens.dtype),
        )
        return output.last_hidden_state[:, :num_queries]

    def _adapt_by_name(
        self, tokens: dict[str, Tensor], names: list[str | None]
    ) -> dict[str, Tensor]:
        """Each row's tokens through the adapter of its name.

        Rows are put in the order of their names and back: an adapter's rows are then a slice, and
        many adapters cost one index each way, not two for each of them.
        """
        if not names:  # of rows without pictures
            return tokens
        rows_of: dict[str | None, list[int]] = {}
        for row, name in enumerate(names):
            rows_of.setdefault(name, []).append(row)
        order = torch.tensor(list(chain.from_iterable(rows_of.values())))
        order = order.to(next(iter(tokens.values())).device)
        counts = [len(rows) for rows in rows_of.values()]
        slices = zip(*(x[order].split(counts) for x in tokens.values()), strict=True)
        parts: list[dict[str, Tensor]] = []
        for name, of_name in zip(rows_of, slices, strict=True):
            adapter, own = self.get_adapter(name), dict(zip(tokens, of_name, strict=True))
            parts.append(own if adapter is None else adapter(own))
        back = order.argsort()
        return {branch: torch.cat([part[branch] for part in parts])[back] for branch in tokens}

    # ------------------------------------------------------------------ forward

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        visual_position: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_index: Tensor | None = None,
        qformer_input_ids: Tensor | None = None,
        qformer_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        features: Sequence[Tensor | None] | None = None,
        adapter_names: Sequence[str | None] | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> CromeOutput:
        """Loss on the answers, or logits.

        Args:
            input_ids: (B, T) text, padded on either side.
            attention_mask: (B, T).
            visual_position: (B,) text tokens in front of a row's visual block; None for none.
            pixel_values: (I, 3, H, W) distinct images of the batch.
            image_index: (B, K) the images of each row in order, -1 for none.
            qformer_input_ids: (B, S).
            qformer_attention_mask: (B, S).
            labels: (B, T) with -100 outside answers; for an encoder-decoder (B, answer length).
            features: Frozen features (fields of `VisualFeatures`) instead of `pixel_values`.
            adapter_names: An adapter for each row.
            num_items_in_batch: Answer tokens over all accumulated batches and devices.
        """
        features = self._features(features, pixel_values)
        instructions = (qformer_input_ids, qformer_attention_mask)
        blocks = self._blocks(features, image_index, *instructions, adapter_names)
        text = embed_words(self.language_model, input_ids)  # (B, T, d)
        prompts = (text, attention_mask, visual_position, blocks, self.visual_order)
        if self.config.text_config.is_encoder_decoder:
            embeds, mask, _ = splice(*prompts)
            output = self._encoder_decoder(embeds, mask, labels)
        elif labels is not None and (
            prefix := self._prefix(
                text, input_ids, attention_mask, visual_position, blocks, packed=True
            )
        ):
            losses = prefix.losses(self.language_model, labels, self._may_run_twice)
            output = CromeOutput(None, *losses)
        else:
            embeds, mask, labels = splice(*prompts, labels)
            output = self._decoder_only(embeds, mask, labels)
        if output.token_losses is not None:
            output.loss = self._reduce(output.token_losses, num_items_in_batch)
            if blocks is None and self.training:
                # Text-only batches touch what trains, so that all ranks have gradients.
                output.loss = output.loss + sum(
                    0.0 * p.sum() for p in self.parameters() if p.requires_grad
                )
        return output

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        visual_position: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_index: Tensor | None = None,
        qformer_input_ids: Tensor | None = None,
        qformer_attention_mask: Tensor | None = None,
        features: Sequence[Tensor | None] | None = None,
        adapter_names: Sequence[str | None] | None = None,
        **generation_kwargs: Any,
    ) -> Tensor:
        """Generates answers: greedy, sampled, by beams or streamed, as transformers does it.

        Args:
            input_ids: As in `forward`, like the arguments that follow.
            attention_mask: See `forward`.
            visual_position: See `forward`.
            pixel_values: See `forward`.
            image_index: See `forward`.
            qformer_input_ids: See `forward`.
            qformer_attention_mask: See `forward`.
            features: See `forward`.
            adapter_names: See `forward`.
            generation_kwargs: Passed to the language model's `generate`; bound the length with
                `max_new_tokens`.

        Returns:
            (B, new tokens) ids; an encoder-decoder's begin with its start token.
        """
        features = self._features(features, pixel_values)
        instructions = (qformer_input_ids, qformer_attention_mask)
        blocks = self._blocks(features, image_index, *instructions, adapter_names)
        text = embed_words(self.language_model, input_ids)
        defaults = self.language_model.generation_config
        if _plainly_greedy(generation_kwargs, defaults) and (
            prefix := self._prefix(text, input_ids, attention_mask, visual_position, blocks)
        ):
            state = prefix.read(self.language_model)
            return greedy(self.language_model, *state, **{k: generation_kwargs[k] for k in GREEDY})
        # Encoders may count positions from the first place, padding or not.
        side = "right" if self.config.text_config.is_encoder_decoder else "left"
        embeds, mask, _ = splice(
            text, attention_mask, visual_position, blocks, self.visual_order, side=side
        )
        with head_rows(self.language_model, None):
            return self.language_model.generate(
                inputs_embeds=embeds, attention_mask=mask, **generation_kwargs
            )

    @torch.no_grad()
    def prompt_embeddings(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        visual_position: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_index: Tensor | None = None,
        qformer_input_ids: Tensor | None = None,
        qformer_attention_mask: Tensor | None = None,
        features: Sequence[Tensor | None] | None = None,
        adapter_names: Sequence[str | None] | None = None,
        side: str = "left",
    ) -> tuple[Tensor, Tensor]:
        """What the language model reads: the prompts' embeddings, visual blocks in their place.

        Args:
            input_ids: As in `forward`, like the arguments that follow.
            attention_mask: See `forward`.
            visual_position: See `forward`.
            pixel_values: See `forward`.
            image_index: See `forward`.
            qformer_input_ids: See `forward`.
            qformer_attention_mask: See `forward`.
            features: See `forward`.
            adapter_names: See `forward`.
            side: Where shorter rows are padded.

        Returns:
            (B, L, d) embeddings and (B, L) mask.
        """
        features = self._features(features, pixel_values)
        instructions = (qformer_input_ids, qformer_attention_mask)
        blocks = self._blocks(features, image_index, *instructions, adapter_names)
        text = embed_words(self.language_model, input_ids)
        embeds, mask, _ = splice(
            text, attention_mask, visual_position, blocks, self.visual_order, side=side
        )
        return embeds, mask

    @torch.no_grad()
    def option_losses(
        self,
        option_ids: Tensor,
        option_rows: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        visual_position: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_index: Tensor | None = None,
        qformer_input_ids: Tensor | None = None,
        qformer_attention_mask: Tensor | None = None,
        features: Sequence[Tensor | None] | None = None,
        adapter_names: Sequence[str | None] | None = None,
    ) -> Tensor:
        """Losses of candidate answers, for ranking them: the likeliest has the smallest sum.

        An image's tokens are read once for all its questions, and a question once for all its
        options; equal, up to float rounding, to the `token_losses` of a row for each option.

        Args:
            option_ids: (N, A) the options of all rows, -100 behind each one's end; with
                `option_rows` from `CromeProcessor.options`.
            option_rows: (N,) the row each option answers; rows may have any number of them.
            input_ids: (B, T) prompts without answers, as in `forward`, like what follows.
            attention_mask: See `forward`.
            visual_position: See `forward`.
            pixel_values: See `forward`.
            image_index: See `forward`.
            qformer_input_ids: See `forward`.
            qformer_attention_mask: See `forward`.
            features: See `forward`.
            adapter_names: See `forward`.

        Returns:
            (N, A) cross-entropy of each token of each option, 0 behind its end.
        """
        features = self._features(features, pixel_values)
        instructions = (qformer_input_ids, qformer_attention_mask)
        options = (option_ids, option_rows)
        plain = self.config.share_prefix and keeps_plainly(self.language_model)
        if not plain and not self.config.text_config.is_encoder_decoder:
            return self._independent_options(
                *options, input_ids, attention_mask, visual_position, image_index, *instructions,
                features=features, adapter_names=adapter_names,
            )  # fmt: skip
        blocks = self._blocks(features, image_index, *instructions, adapter_names)
        text = embed_words(self.language_model, input_ids)
        prefix = self._prefix(text, input_ids, attention_mask, visual_position, blocks)
        if prefix is not None:
            return losses_behind_cache(
                self.language_model, *prefix.read(self.language_model), *options
            )
        embeds, mask, _ = splice(text, attention_mask, visual_position, blocks, self.visual_order)
        if self.config.text_config.is_encoder_decoder:
            return losses_behind_encoder(self.language_model, embeds, mask, *options)
        cache = new_cache(self.language_model)
        return losses_behind_cache(self.language_model, cache, embeds, mask, *options)

    def _independent_options(
        self,
        option_ids: Tensor,
        option_rows: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        *shown: Tensor | None,
        features: VisualFeatures | None,
        adapter_names: Sequence[str | None] | None,
    ) -> Tensor:
        """`option_losses` with a whole row for each option: for models without a plain cache."""
        picked = [None if x is None else x[option_rows] for x in shown]
        if features is not None and features.outputs is not None and shown[1] is not None:
            rows = (shown[1] >= 0).nonzero()[:, 0]  # of the kept outputs
            chosen = torch.cat([(rows == row).nonzero()[:, 0] for row in option_rows])
            features = features._replace(outputs=features.outputs[chosen])
        wanted = option_ids != IGNORED
        mask = attention_mask[option_rows]
        losses = option_ids.new_zeros(option_ids.shape, dtype=torch.float32)
        losses[wanted] = self(
            torch.cat([input_ids[option_rows], option_ids.clamp(min=0)], 1),
            torch.cat([mask, wanted.to(mask.dtype)], 1),
            visual_position=picked[0],
            image_index=picked[1],
            qformer_input_ids=picked[2],
            qformer_attention_mask=picked[3],
            labels=torch.cat([option_ids.new_full(mask.shape, IGNORED), option_ids], 1),
            features=features,
            adapter_names=adapter_names and [adapter_names[row] for row in option_rows.tolist()],
        ).token_losses
        return losses

    # ------------------------------------------------------------------ parts of forward

    @property
    def visual_order(self) -> tuple[str, ...]:
        """Branches in the order in which the language model reads them."""
        patches_first = self.config.visual_order == "patches_first"
        return ("patch", "query") if patches_first else ("query", "patch")

    def _decoder_only(self, embeds: Tensor, mask: Tensor, labels: Tensor | None) -> CromeOutput:
        if labels is None:
            with head_rows(self.language_model, None):
                return CromeOutput(
                    logits=self.language_model(inputs_embeds=embeds, attention_mask=mask).logits
                )
        rows, targets = predicting_rows(labels)
        return self._answers(rows, targets, inputs_embeds=embeds, attention_mask=mask)

    def _encoder_decoder(self, embeds: Tensor, mask: Tensor, labels: Tensor | None) -> CromeOutput:
        if labels is None:
            raise InputError(
                "an encoder-decoder needs labels in forward; use generate for answers."
            )
        decoder_input_ids = decoder_inputs(self.language_model, labels)
        rows = (labels != IGNORED).flatten().nonzero().squeeze(1)
        return self._answers(
            rows,
            labels.flatten()[rows],
            inputs_embeds=embeds,
            attention_mask=mask,
            decoder_input_ids=decoder_input_ids,
        )

    def _answers(self, rows: Tensor, targets: Tensor, **inputs: Any) -> CromeOutput:
        logits, losses = answer_losses(
            self.language_model, rows, targets, use_cache=False, **inputs
        )
        return CromeOutput(logits=logits, token_losses=losses)

    def _prefix(self, *prompts: Any, packed: bool = False) -> SharedPrefix | None:
        """What the questions on an image share, where layout, model and rows let them.

        Args:
            prompts: Of `SharedPrefix.of`.
            packed: Whether it is for one pass over packed rows, or for a pass of its own, which
                cannot be where other processes hold layers.
        """
        allowed = (
            self.config.share_prefix
            and self.visual_order[0] == "patch"
            and not self.config.text_config.is_encoder_decoder
            and keeps_plainly(self.language_model)
            and (takes_any_mask(self.language_model) if packed else self._may_run_twice)
        )
        return SharedPrefix.of(*prompts) if allowed else None

    @property
    def _may_run_twice(self) -> bool:
        """Not where other processes hold layers: all must run as many passes."""
        return self.tower_fingerprints is None

    @staticmethod
    def _reduce(token_losses: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
        if not len(token_losses):
            raise InputError("no token of this batch is an answer: labels are -100 throughout.")
        if num_items_in_batch is None:
            return token_losses.mean()
        if torch.is_tensor(num_items_in_batch):
            num_items_in_batch = num_items_in_batch.to(token_losses.device)
        return token_losses.sum() / num_items_in_batch


def _plainly_greedy(generation_kwargs: dict[str, Any], defaults: GenerationConfig) -> bool:
    """Whether a request, over the language model's defaults, is greedy decoding and no more."""
    names = {"do_sample", *GREEDY}
    return (
        generation_kwargs.keys() == names
        and generation_kwargs["do_sample"] is False
        and defaults.to_diff_dict().keys() <= IDLE_IN_GREEDY
    )


AutoModelForImageTextToText.register(CromeConfig, CromeForConditionalGeneration)
