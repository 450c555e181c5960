"""What stands between the towers: features of an image → visual tokens of the language model.

Shapes: B rows (questions), I distinct images, K images a row at most, R blocks (an image of a row
each), N encoder tokens, P patch tokens, Q queries, S instruction tokens of the Q-Former, D encoder
width, d width of the language model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crome.errors import InputError
from crome.model.batch import Layout, PromptBatch, on_host
from crome.model.configuration import CromeConfig
from crome.model.families import keeps_plainly, past_a_limit, require_room
from crome.model.hub import whole_name
from crome.model.kernels import obeys_packing
from crome.model.language import embed_words
from crome.model.prefix import SharedPrefix
from crome.model.pretrained import bridge_state, without_adapter
from crome.model.splicing import VisualBlocks, splice
from crome.model.stages import BRIDGE, STAGES, TOWERS
from crome.model.task_adapters import TaskAdapters
from crome.model.tensors import fingerprint
from crome.model.vision import VisualFeatures, visual_features


@dataclass(frozen=True)
class Prompts:
    """A batch on its way to the language model.

    Attributes:
        batch: The tensors of the processor.
        layout: The batch's numbers on the CPU.
        text: (B, T, d) word embeddings.
        blocks: Visual tokens; None where no row shows an image.
        lengths: (B,) tokens of each row, visual ones included, on the CPU.
    """

    batch: PromptBatch
    layout: Layout
    text: Tensor
    blocks: VisualBlocks | None
    lengths: Tensor


class Bridge(TaskAdapters):
    """The Q-Former, the projections and the adapters of a `CromeForConditionalGeneration`.

    The model's `__init__` builds them; this class holds what they compute.
    """

    config: CromeConfig
    vision_model: Any
    language_model: Any
    qformer: Any
    query_tokens: Any
    query_projection: Any
    patch_projection: Any
    tower_fingerprints: dict[str, str | None] | None

    @property
    def hidden_size(self) -> int:
        """Width d of the language model's embeddings."""
        return self.config.hidden_size

    def base_identity(self) -> dict[str, Any]:
        """What an adapter of this model is valid for: both towers, and the bridge without it."""
        config = self.config
        return {
            "checkpoint": whole_name(str(config.name_or_path)),
            "vision_model": config.vision_model_id,
            "language_model": config.language_model_id,
            "width": config.hidden_size,
            "dtype": str(self.language_model.dtype).removeprefix("torch."),
            **(self.tower_fingerprints or tower_fingerprints(self)),
            "bridge_fingerprint": fingerprint(without_adapter(bridge_state(self))),
        }

    @property
    def stages(self) -> tuple[str, ...]:
        """All stages of training."""
        return tuple(STAGES)

    def parts(self) -> dict[str, nn.Module | nn.Parameter]:
        """The towers and the bridge parts this configuration has, by attribute name."""
        named = {name: getattr(self, name, None) for name in TOWERS + BRIDGE}
        return {name: part for name, part in named.items() if part is not None}

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
            features: Frozen features of I images.
            image_index: (B, K) the images of each row in order, -1 for none; best on the CPU.
            qformer_input_ids: (B, S) instruction tokens; None for queries that see no text.
            qformer_attention_mask: (B, S).
            adapter_names: See `PromptBatch`.
        """
        rows, images = block_index(image_index)
        every = torch.arange(len(rows))
        tokens: dict[str, Tensor] = {}
        if "query" in self.config.branches:
            outputs = features.outputs
            if outputs is None:
                instructions = (qformer_input_ids, qformer_attention_mask)
                outputs = self.qformer_outputs(features, image_index, *instructions)
            tokens["query"] = self.query_projection(outputs)
        names = self.names_of_rows(adapter_names, len(image_index))
        uniform = len(set(names)) == 1
        if "patch" in self.config.branches:
            weight = self.patch_projection.weight
            patches = self.patch_projection(features.patches.to(weight.device, weight.dtype))
            tokens["patch"] = patches if uniform else patches[images.to(patches.device)]
        index = {"query": every, "patch": images if uniform else every}
        if not uniform:
            tokens = self.adapt_by_name(tokens, [names[row] for row in rows.tolist()])
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
        rows, images = block_index(image_index)

        def select(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[rows.to(x.device)]

        keys = features.queries[images.to(features.queries.device)]
        return self.read_by_queries(keys, select(qformer_input_ids), select(qformer_attention_mask))

    def read_by_queries(self, keys: Tensor, ids: Tensor | None, mask: Tensor | None) -> Tensor:
        """(R, N, D) encoder tokens and (R, S) instructions → (R, Q, width of the Q-Former).

        Raises:
            InputError: An instruction is longer than the Q-Former has positions.
        """
        num_rows, num_queries = keys.shape[0], self.query_tokens.shape[1]
        device = self.query_tokens.device
        longest = self.config.qformer_config.max_position_embeddings
        if ids is not None and ids.shape[1] > longest:
            raise InputError(
                f"qformer_input_ids has {ids.shape[1]} tokens, and the Q-Former has positions for "
                f"{longest}; the processor of this checkpoint cuts them."
            )
        visible = torch.ones((num_rows, num_queries), dtype=torch.long, device=device)
        output = self.qformer(
            input_ids=None if ids is None else ids.to(device),
            attention_mask=visible if mask is None else torch.cat([visible, mask.to(device)], 1),
            query_embeds=self.query_tokens.expand(num_rows, -1, -1),
            encoder_hidden_states=keys.to(device, self.query_tokens.dtype),
        )
        return output.last_hidden_state[:, :num_queries]

    @property
    def visual_order(self) -> tuple[str, ...]:
        """Branches in the order in which the language model reads them."""
        patches_first = self.config.visual_order == "patches_first"
        return ("patch", "query") if patches_first else ("query", "patch")

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

    def prompts(self, batch: PromptBatch, labels: Tensor | None = None) -> Prompts:
        """A batch as embeddings of its words and blocks of visual tokens.

        Args:
            batch: The prompts.
            labels: Labels, which the layout then holds.

        Raises:
            InputError: A row is longer than the language model can read, or its image is missing.
        """
        layout = Layout.plan(batch, labels)
        blocks = self._blocks(batch, layout)
        text = embed_words(self.language_model, batch.input_ids)  # (B, T, d)
        lengths = layout.lengths
        if blocks is not None:
            block = sum(tokens.shape[1] for tokens in blocks.tokens.values())
            lengths = lengths + block * torch.bincount(blocks.rows, minlength=len(lengths))
        self.require_room(lengths)
        return Prompts(batch, layout, text, blocks, lengths)

    def _blocks(self, batch: PromptBatch, layout: Layout) -> VisualBlocks | None:
        if layout.image_index is None:
            self.names_of_rows(batch.adapter_names, len(batch.input_ids))  # checks the names
            return None
        if batch.features is not None:  # a plain list where they come from a cache
            features = VisualFeatures(*batch.features)  # type: ignore[arg-type]
        elif batch.pixel_values is not None:
            features = self.visual_features(batch.pixel_values)
        else:
            raise InputError("image_index names images, and there are no pixel_values.")
        num_images = len(next(x for x in (features.queries, features.patches) if x is not None))
        if (largest := int(layout.image_index.max())) >= num_images:
            raise InputError(f"image_index names image {largest}, and the batch has {num_images}.")
        return self.visual_blocks(
            features,
            layout.image_index,
            batch.qformer_input_ids,
            batch.qformer_attention_mask,
            batch.adapter_names,
        )

    def require_room(self, lengths: Tensor, new_tokens: int = 0) -> None:
        """Refuses rows that are longer than the language model has positions for.

        Args:
            lengths: (B,) tokens of each row.
            new_tokens: The most tokens that may follow them.

        Raises:
            InputError: The message names the longest row.
        """
        require_room(self.language_model.config, lengths, new_tokens)

    def spliced(
        self, prompts: Prompts, side: str = "right", labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Embeddings, mask and labels with the visual blocks at their place; see `splice`."""
        layout = prompts.layout
        return splice(
            prompts.text, layout.real.long(), layout.visual_position, prompts.blocks,
            self.visual_order, labels, side=side, length=int(prompts.lengths.max()),
        )  # fmt: skip

    def prefix(
        self, prompts: Prompts, new_tokens: int = 0, packed: bool = False
    ) -> SharedPrefix | None:
        """What the questions on an image share; None where layout, model or rows do not allow it.

        Args:
            prompts: The batch.
            new_tokens: The most tokens that may follow the prompts.
            packed: Whether prefixes and questions will be packed into one pass. Otherwise the
                prefix is read in a pass of its own.
        """
        model = self.language_model
        allowed = (
            self.config.share_prefix
            and self.visual_order[0] == "patch"
            and not self.config.text_config.is_encoder_decoder
            and keeps_plainly(model)
            and (obeys_packing(model) if packed else self.may_run_twice)
            and not past_a_limit(model.config, int(prompts.lengths.max()) + new_tokens)
        )
        return SharedPrefix.cut(prompts.text, prompts.layout, prompts.blocks) if allowed else None

    @property
    def may_run_twice(self) -> bool:
        """False where FSDP shards the towers: all processes must then run equally many passes."""
        return self.tower_fingerprints is None

    @torch.no_grad()
    def match_embedding_scale(self, probe: int = 4096) -> float:
        """Draws fresh projections so that visual tokens start at the scale of word embeddings.

        Tokens much larger than the language model's own stall training. Inputs of both projections
        are taken to have unit variance, which holds behind a LayerNorm.

        Args:
            probe: Number of vocabulary entries that are looked up to measure the scale. They are
                looked up because some models multiply their embeddings on the way out.

        Returns:
            The root mean square of the embeddings.
        """
        vocabulary = self.config.text_config.get_text_config().vocab_size
        device = self.language_model.get_input_embeddings().weight.device
        ids = torch.arange(min(probe, vocabulary), device=device)
        scale = float(embed_words(self.language_model, ids).float().pow(2).mean().sqrt())
        for name in ("query_projection", "patch_projection"):
            if (projection := getattr(self, name, None)) is not None:
                nn.init.normal_(projection.weight, std=scale / projection.in_features**0.5)
                nn.init.zeros_(projection.bias)
        return scale


def block_index(image_index: Tensor) -> tuple[Tensor, Tensor]:
    """(R,) the row and (R,) the image of each block, on the CPU.

    Args:
        image_index: (B, K) the images of each row in order, -1 for none.
    """
    (index,) = on_host(image_index)
    assert index is not None
    rows, slots = (index >= 0).nonzero(as_tuple=True)
    return rows, index[rows, slots]


def tower_fingerprints(model: Any) -> dict[str, str | None]:
    """Fingerprints of both towers.

    A quantised language model has None, because its values are not those on disk.
    """
    language_model = model.language_model
    language: str | None = getattr(language_model, "crome_fingerprint", None)
    if language is None and not getattr(language_model, "is_quantized", False):
        language = fingerprint(language_model.state_dict())
    return {
        "vision_fingerprint": fingerprint(model.vision_model.state_dict()),
        "language_fingerprint": language,
    }
