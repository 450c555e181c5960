"""The front end alone: everything of CROME that runs before the language model, as one function.

It takes the processor's tensors and gives prompt embeddings, so a runtime that has the language
model needs nothing else of CROME. One graph serves all batch sizes, lengths and positions of the
visual block.

Shapes: B rows with an image each, I distinct images, T text tokens, S instruction tokens, V visual
tokens of an image, d width of the language model, L = V + T.
"""

import copy

import torch
from torch import Tensor, nn

from crome.errors import InputError
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.splicing import VisualBlocks, splice


class FrontEnd(nn.Module):
    """Encoder, Q-Former, projections, one adapter and the word embeddings.

    Args:
        model: Its tensors are shared, not copied.
        adapter: Name of the adapter that is built in; None for the base's own.

    Raises:
        InputError: The language model is an encoder-decoder.
    """

    def __init__(self, model: CromeForConditionalGeneration, adapter: str | None = None) -> None:
        super().__init__()
        if model.config.text_config.is_encoder_decoder:
            raise InputError(
                "the language model is an encoder-decoder, which no runtime takes embeddings for; "
                "expected a decoder-only one."
            )
        self.words = model.get_input_embeddings()
        self.adapter = model.get_adapter(adapter)
        bridge = copy.copy(model)
        # A module of its own over the same parts, so that exporters never meet the language model.
        others = ("language_model", "adapter", "task_adapters")
        bridge._modules = {k: v for k, v in model._modules.items() if k not in others}
        self.bridge = bridge
        self.order = model.visual_order

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        visual_position: Tensor,
        pixel_values: Tensor,
        image_index: Tensor,
        qformer_input_ids: Tensor | None = None,
        qformer_attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embeds prompts.

        Args:
            input_ids: (B, T) padded on the right.
            attention_mask: (B, T).
            visual_position: (B,) text tokens in front of the visual block.
            pixel_values: (I, 3, H, W).
            image_index: (B, 1) which image each row shows.
            qformer_input_ids: (B, S).
            qformer_attention_mask: (B, S).

        Returns:
            (B, L, d) embeddings and their mask (B, L), padded on the right.
        """
        text = self.words(input_ids)  # (B, T, d)
        tokens = self.visual_tokens(
            pixel_values, image_index[:, 0], qformer_input_ids, qformer_attention_mask
        )
        every = torch.arange(input_ids.shape[0], device=input_ids.device)
        blocks = VisualBlocks(every, tokens, dict.fromkeys(tokens, every))
        visual = sum(x.shape[1] for x in tokens.values())
        embeds, mask, _ = splice(
            text, attention_mask, visual_position, blocks, self.order,
            length=visual + input_ids.shape[1],
        )  # fmt: skip
        return embeds, mask

    def visual_tokens(
        self, pixel_values: Tensor, images: Tensor, ids: Tensor | None, mask: Tensor | None
    ) -> dict[str, Tensor]:
        """For each branch the tokens (B, tokens, d) that the language model reads."""
        features = self.bridge.visual_features(pixel_values)
        tokens: dict[str, Tensor] = {}
        if hasattr(self.bridge, "qformer"):
            queries = self.bridge.read_by_queries(features.queries[images], ids, mask)
            tokens["query"] = self.bridge.query_projection(queries)
        if hasattr(self.bridge, "patch_projection"):
            projection = self.bridge.patch_projection
            tokens["patch"] = projection(features.patches[images].to(projection.weight.dtype))
        return tokens if self.adapter is None else self.adapter(tokens)
