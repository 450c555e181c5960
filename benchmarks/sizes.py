"""Models with random weights, and batches for them: what a step costs does not ask what it says.

The mid-size model: vision 12 × 384 (patch 14, 257 tokens), Q-Former 6 × 256, Llama 12 × 576 with 9
heads over 3 and a tied vocabulary of 49,152; 32 queries, 16 tokens of prompt, 32 of answer.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
)

from crome.model.configuration import CromeConfig
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.stages import apply_stage


@dataclass(frozen=True)
class Size:
    """A model and a batch."""

    vision: tuple[int, int] = (12, 384)
    """Layers and width, as everywhere here."""
    qformer: tuple[int, int] = (6, 256)
    language: tuple[int, int] = (12, 576)
    heads: tuple[int, int] = (9, 3)
    vocabulary: int = 49_152
    image_side: int = 224
    queries: int = 32
    bottleneck: int = 256
    head: int = 4
    """Text in front of the picture, the same in all rows; part of the prompt."""
    prompt: int = 16
    answer: int = 32
    rows: int = 16
    questions: int = 4
    """Rows about one image."""
    branches: tuple[str, ...] = ("query", "patch")

    @property
    def images(self) -> int:
        """Distinct images of the batch."""
        return max(1, self.rows // self.questions)

    @property
    def patches(self) -> int:
        """Patch tokens of an image, without the class token."""
        return (self.image_side // 14) ** 2

    def wider(self, factor: int) -> "Size":
        """The language model's width times a factor."""
        heads = (self.heads[0] * factor, self.heads[1] * factor)
        return replace(self, language=(self.language[0], self.language[1] * factor), heads=heads)


MIDSIZE = Size()
TINY = Size(
    vision=(4, 192), qformer=(2, 384), language=(30, 576), image_side=98,
    queries=8, head=24, prompt=38, answer=2, rows=32,
)  # fmt: skip
"""The shape of `crome-tiny` and its rows: 49 patches, a system message, short answers."""
SMALL = Size((2, 48), (2, 48), (2, 72), (3, 1), 1024, 56, 4, 8, 2, 6, 8, 8)
"""To see in seconds that a benchmark runs; its numbers mean nothing."""


def config(size: Size) -> CromeConfig:
    """Of a model with adapter."""
    inner = {"num_attention_heads": max(1, size.vision[1] // 64), "intermediate_size": None}
    inner["intermediate_size"] = 4 * size.vision[1]
    width = size.language[1]
    return CromeConfig(
        vision_config={
            "model_type": "instructblip_vision_model",
            "hidden_size": size.vision[1],
            "num_hidden_layers": size.vision[0],
            "image_size": size.image_side,
            "patch_size": 14,
            "initializer_range": 0.02,  # transformers' own is 1e-10: a blank picture
            **inner,
        },
        qformer_config={
            "hidden_size": size.qformer[1],
            "num_hidden_layers": size.qformer[0],
            "num_attention_heads": max(1, size.qformer[1] // 64),
            "intermediate_size": 4 * size.qformer[1],
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": width,
            "intermediate_size": width * 8 // 3,
            "num_hidden_layers": size.language[0],
            "num_attention_heads": size.heads[0],
            "num_key_value_heads": size.heads[1],
            "vocab_size": size.vocabulary,
            "tie_word_embeddings": True,
            "max_position_embeddings": 4096,
        },
        num_query_tokens=size.queries,
        branches=list(size.branches),
        adapter_bottleneck=size.bottleneck,
        patch_feature_layer=-1,
    )


def build(size: Size, dtype: torch.dtype) -> CromeForConditionalGeneration:
    """Frozen towers in a type, the bridge in float32, the adapter trained and not at zero."""
    torch.manual_seed(0)
    model = CromeForConditionalGeneration(config(size))
    model.vision_model.to(dtype)
    model.language_model.to(dtype)
    for parameter in model.adapter.parameters():
        nn.init.normal_(parameter, std=0.02)
    apply_stage(model, "finetune")
    return model.train()


def batch(size: Size) -> dict[str, Tensor]:
    """What the collator hands over: each image once."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, size.vocabulary - 1, (size.rows, size.prompt + size.answer),
                        generator=generator)  # fmt: skip
    ids[:, : size.head] = ids[0, : size.head].clone()
    labels = ids.clone()
    labels[:, : size.prompt] = -100
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "visual_position": torch.full((size.rows,), size.head),
        "pixel_values": torch.randn(size.images, 3, size.image_side, size.image_side,
                                    generator=generator),
        "image_index": (torch.arange(size.rows) // size.questions)[:, None] % size.images,
        "qformer_input_ids": torch.randint(5, 1000, (size.rows, size.prompt), generator=generator),
        "qformer_attention_mask": torch.ones(size.rows, size.prompt, dtype=torch.long),
        "labels": labels,
    }  # fmt: skip


class Stock(InstructBlipForConditionalGeneration):
    """transformers' InstructBLIP, shown the patch tokens too where there is a projection for them.

    Everything else is as published: an image for every row through encoder and Q-Former, all tokens
    of every row through the language model, logits at every position.
    """

    def __init__(self, config: InstructBlipConfig) -> None:
        super().__init__(config)
        self.patch_projection: nn.Linear | None = None

    def get_image_features(self, *args: Any, **kwargs: Any) -> Any:
        """Adds the patches in front of the queries."""
        found = super().get_image_features(*args, **kwargs)
        if self.patch_projection is not None:
            patches = self.patch_projection(found.vision_outputs.last_hidden_state[:, 1:])
            found.pooler_output = torch.cat([patches, found.pooler_output], 1)
        return found


def stock(model: CromeForConditionalGeneration, dtype: torch.dtype) -> Stock:
    """The stock model on the same frozen towers, its projections trained."""
    with torch.device("meta"):
        other = Stock(
            InstructBlipConfig(
                vision_config=model.vision_model.config.to_dict(),
                qformer_config=model.qformer.config.to_dict(),
                text_config=model.language_model.config.to_dict(),
                num_query_tokens=model.query_tokens.shape[1],
                image_token_index=model.config.text_config.vocab_size - 1,
            )
        )
    width, inner = model.config.hidden_size, model.qformer.config.hidden_size
    other.vision_model, other.language_model = model.vision_model, model.language_model
    other.qformer = build_qformer(model, dtype)
    other.query_tokens = nn.Parameter(model.query_tokens.detach().to(dtype), requires_grad=False)
    other.language_projection = nn.Linear(inner, width, dtype=dtype)
    if "patch" in model.config.branches:
        other.patch_projection = nn.Linear(
            model.vision_model.config.hidden_size, width, dtype=dtype
        )
    return other.eval()


def build_qformer(model: CromeForConditionalGeneration, dtype: torch.dtype) -> nn.Module:
    """A copy of the Q-Former in the type the stock model runs in."""
    copy = type(model.qformer)(model.qformer.config)
    copy.load_state_dict(model.qformer.state_dict())
    return copy.to(dtype).eval().requires_grad_(False)


def stock_batch(given: dict[str, Tensor], size: Size, dtype: torch.dtype) -> dict[str, Tensor]:
    """The same rows as the stock model takes them: placeholders, and a copy of its image a row."""
    visual = size.queries + size.patches * ("patch" in size.branches)
    widened = {}
    for name, value in {
        "input_ids": size.vocabulary - 1, "attention_mask": 1, "labels": -100
    }.items():  # fmt: skip
        front, rest = given[name][:, : size.head], given[name][:, size.head :]
        widened[name] = torch.cat([front, front.new_full((size.rows, visual), value), rest], 1)
    return {
        **widened,
        "pixel_values": given["pixel_values"][given["image_index"][:, 0]].to(dtype),
        "qformer_input_ids": given["qformer_input_ids"],
        "qformer_attention_mask": given["qformer_attention_mask"],
    }
