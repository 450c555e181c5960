"""The front end alone: everything of CROME that runs before the language model, as one function.

It takes the processor's tensors and gives prompt embeddings, so a runtime that has the language
model needs nothing else of CROME. The splice is written with index arithmetic where `forward` loops
over rows: one graph for all batch sizes, lengths and positions of the visual block.

Shapes: B rows with an image each, I distinct images, T text tokens, S instruction tokens, V visual
tokens of an image, d width of the language model, L = V + T.
"""

import copy

import torch
from torch import Tensor, nn

from crome.errors import InputError
from crome.model.modeling import CromeForConditionalGeneration


class FrontEnd(nn.Module):
    """Encoder, Q-Former, projections, one adapter and the word embeddings, without what follows.

    Args:
        model: Shared, not copied.
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
        visual = self.visual_tokens(
            pixel_values, image_index[:, 0], qformer_input_ids, qformer_attention_mask
        ).to(text.dtype)
        return splice(text, attention_mask, visual, visual_position)

    def visual_tokens(
        self, pixel_values: Tensor, images: Tensor, ids: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """(B, V, d): both branches in the order in which the language model reads them."""
        features = self.bridge.visual_features(pixel_values)
        tokens: dict[str, Tensor] = {}
        if hasattr(self.bridge, "qformer"):
            queries = self.bridge._queries(features.queries[images], ids, mask)
            tokens["query"] = self.bridge.query_projection(queries)
        if hasattr(self.bridge, "patch_projection"):
            projection = self.bridge.patch_projection
            tokens["patch"] = projection(features.patches[images].to(projection.weight.dtype))
        if self.adapter is not None:
            tokens = self.adapter(tokens)
        return torch.cat([tokens[branch] for branch in self.order if branch in tokens], 1)


def splice(
    text: Tensor, attention_mask: Tensor, visual: Tensor, visual_position: Tensor
) -> tuple[Tensor, Tensor]:
    """Puts each row's visual block in its place.

    Position j of the result is text token j in front of the block, visual token j - start inside
    it, and text token j - V behind it: one gather from [visual, text].

    Args:
        text: (B, T, d).
        attention_mask: (B, T).
        visual: (B, V, d).
        visual_position: (B,).

    Returns:
        (B, V + T, d) and (B, V + T).
    """
    block = visual.shape[1]
    start = visual_position[:, None]  # (B, 1)
    j = torch.arange(block + text.shape[1], device=text.device)[None]  # (1, L)
    source = torch.where(j < start, j + block, torch.where(j < start + block, j - start, j))
    both = torch.cat([visual, text], 1)  # (B, L, d)
    seen = torch.cat([attention_mask.new_ones(visual.shape[:2]), attention_mask], 1)
    embeds = both.gather(1, source[:, :, None].expand(-1, -1, text.shape[-1]))
    return embeds, seen.gather(1, source)
