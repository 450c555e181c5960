"""The step of an attached adapter against LoRA on the same model, and against its floor.

Run through `python benchmarks/training.py --json FILE --cases attach-4q-fp32 attach-4q-bf16`.

The model is a LLaVA with random weights and the widths of the other mid-size cases
(`benchmarks/sizes.py`), 4 questions of 16 tokens an image, answers of 32 tokens.

- `vs-lora`: PEFT's LoRA, r = 16 on q and v of the language model, in transformers' own forward pass
  with labels, an image for every row.
- `vs-floor`: the frozen language model's forward and input-backward on each token once, and its
  head and loss where an answer is predicted; `baseline / ours` is below 1.
- `cached-…`: the same from kept features of the tower and projector.
"""

from typing import Any

import torch
from measure import Step
from sizes import Size
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from crome.attached.modeling import AttachedModel
from crome.model.losses import answer_losses
from crome.model.stages import apply_stage

IMAGE = 4  # the placeholder's token id


class AttachedBench:
    """One case: the attached model, its batch, and every contender as a step.

    Args:
        size: Of model and batch; the Q-Former's numbers are not read.
        dtype: Of the frozen model.
        attention: Of the language model in our step, as `--attention auto` chooses.
    """

    def __init__(self, size: Size, dtype: torch.dtype, attention: str) -> None:
        torch.manual_seed(0)
        self.size, self.dtype, self.chosen = size, dtype, attention
        self.vlm = llava(size).to(dtype)
        self.model: Any = AttachedModel(self.vlm, bottleneck=size.bottleneck)
        for parameter in self.model.adapter.parameters():
            nn.init.normal_(parameter, std=0.02)
        apply_stage(self.model, "finetune")
        self.model.train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6)
        self.batch = rows_of(size)
        self.pixels = torch.randn(size.images, 3, size.image_side, size.image_side)
        self.media = [{"pixel_values": self.pixels[i : i + 1]} for i in range(size.images)]
        self.index = torch.arange(size.rows) // size.questions % size.images
        self.kept = [self.model.encode(one) for one in self.media]

    def attention(self, kind: str) -> None:
        """Chooses the language model's attention."""
        self.vlm.model.language_model.set_attn_implementation(kind)

    def ours(self) -> None:
        """The step from pixels."""
        self._step(media=self.media)

    def cached(self) -> None:
        """The step from kept features."""
        self._step(media=self.media, features=self.kept)

    def _step(self, **visual: Any) -> None:
        self.attention(self.chosen)
        self.model(**self.batch, media_index=self.index, **visual).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def lora(self) -> Step:
        """LoRA on a copy of the language model, as PEFT and transformers do it."""
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        other = llava(self.size).to(self.dtype)
        settings = LoraConfig(
            r=16, lora_alpha=32, target_modules=r".*language_model.*\.(q_proj|v_proj)"
        )
        other = get_peft_model(other, settings)
        optimizer = torch.optim.AdamW([p for p in other.parameters() if p.requires_grad], lr=1e-6)
        given = {**self.batch, "pixel_values": self.pixels[self.index].to(self.dtype)}

        def step() -> None:
            other(**given).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def floor(self) -> Step:
        """The language model alone on as many tokens as there are different ones."""
        size = self.size
        # The last token of an answer predicts nothing, and the opening of all prompts is one.
        behind = size.prompt - size.head + size.answer - 1
        each = size.patches + behind * size.rows // size.images
        embeds = torch.randn(
            size.images, each, size.language[1], dtype=self.dtype, requires_grad=True
        )
        rows = torch.arange(size.rows * size.answer) % (size.images * each)
        targets = torch.randint(5, size.vocabulary - 1, (len(rows),))

        def step() -> None:
            self.attention(self.chosen)
            inputs: dict[str, Any] = {"inputs_embeds": embeds, "use_cache": False}
            answer_losses(self.vlm, rows, targets, **inputs)[1].mean().backward()
            embeds.grad = None

        return step


def llava(size: Size) -> Any:
    """A LLaVA with random weights."""
    width = size.language[1]
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=size.vision[1],
            intermediate_size=4 * size.vision[1],
            num_hidden_layers=size.vision[0],
            num_attention_heads=max(1, size.vision[1] // 64),
            image_size=size.image_side,
            patch_size=14,
        ),
        text_config=LlamaConfig(
            hidden_size=width,
            intermediate_size=width * 8 // 3,
            num_hidden_layers=size.language[0],
            num_attention_heads=size.heads[0],
            num_key_value_heads=size.heads[1],
            vocab_size=size.vocabulary,
            max_position_embeddings=4096,
        ),
        image_token_index=IMAGE,
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration(config).eval()


def rows_of(size: Size) -> dict[str, Tensor]:
    """Token ids with placeholders, mask and labels of a batch."""
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(
        5, size.vocabulary - 1, (size.rows, size.prompt + size.answer), generator=generator
    )
    text[:, : size.head] = text[0, : size.head]
    labels = text.clone()
    labels[:, : size.prompt] = -100

    def widened(values: Tensor, filling: int) -> Tensor:
        visual = values.new_full((size.rows, size.patches), filling)
        return torch.cat([values[:, : size.head], visual, values[:, size.head :]], 1)

    ids = widened(text, IMAGE)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": widened(labels, -100),
    }
