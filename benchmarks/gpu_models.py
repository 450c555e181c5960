"""Models with random weights at real sizes on a device, and the contenders of a training step.

`DeviceBench` has the sizes of crome-vicuna-7b, `VlmBench` those of Qwen3-VL-2B and -8B as their
published configurations give them. With `--tiny` the same code builds models of toy size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sizes
import torch
import torch.nn.functional as F
from measure import Step
from torch import Tensor, nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

import training
from crome.attached.modeling import AttachedModel
from crome.checkpoints.presets import preset_config
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.stages import apply_stage

SEVEN = sizes.Size(
    vision=(39, 1408), qformer=(12, 768), language=(32, 4096), heads=(32, 32), vocabulary=32_000
)
"""The batch of a step at the sizes of crome-vicuna-7b, whose weights are made by its preset."""
IMAGE, START, END = 3, 2, 4
"""Ids of the placeholder of a picture's token, and of the marks around a picture."""


@contextmanager
def made_in(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Weights are made in this type and place, so that a model is never held twice."""
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(torch.float32)


class DeviceBench(training.Bench):
    """A case of `benchmarks/training.py` on a device.

    Args:
        size: Of model and batch.
        dtype: Of the frozen towers: fp32 or bf16.
        device: Where everything is.
        preset: Whose sizes the model has; None for those of `size`.
    """

    def __init__(
        self, size: sizes.Size, dtype: str, device: torch.device, preset: str | None
    ) -> None:
        self.device, self.preset = device, preset
        super().__init__(size, dtype)

    def __post_init__(self) -> None:
        kind = training.DTYPES[self.dtype]
        if self.preset is None:
            self.model = sizes.build(self.size, kind).to(self.device)
        else:
            self.model = seven(self.preset, kind, self.device)
        self.batch = {name: t.to(self.device) for name, t in sizes.batch(self.size).items()}
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6)
        self.kept = self.features()

    @property
    def tokens(self) -> int:
        """Different tokens that a step reads."""
        size = self.size
        return size.rows * (size.prompt + size.answer + size.queries) + size.images * size.patches

    def operations(self, cached: bool) -> float:
        """Of our step, by the count of `operations_of`; the Q-Former and the adapter are left out.

        Args:
            cached: Whether the vision encoder is left out too.
        """
        size, model = self.size, self.model
        seen = 0 if cached else 2 * count(model.vision_model) * size.images * (size.patches + 1)
        return seen + operations_of(
            model.language_model.get_decoder(), model.get_output_embeddings(),
            self.tokens, size.rows * size.answer,
        )  # fmt: skip

    @contextmanager
    def lora(self) -> Iterator[Step]:
        """LoRA of rank 16 on q and v of the same language model, taken off again afterwards."""
        self.attention("sdpa")
        with self.device:
            other = sizes.stock(self.model, training.DTYPES[self.dtype]).requires_grad_(False)
        with low_rank(other.language_model) as adapted:
            other.language_model = adapted
            yield self._stock_step(other, [p for p in other.parameters() if p.requires_grad])


@contextmanager
def low_rank(model: nn.Module) -> Iterator[nn.Module]:
    """The model with PEFT's LoRA, r = 16 on q and v of its language model, for a while."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=16, lora_alpha=32, target_modules=r"^(?!.*visual).*\.(q_proj|v_proj)$")
    adapted = get_peft_model(model, settings)
    yield adapted
    adapted.unload()


def seven(preset: str, dtype: torch.dtype, device: torch.device) -> CromeForConditionalGeneration:
    """A preset with random weights, its towers frozen in a type, its adapter not at zero."""
    torch.manual_seed(0)
    config = preset_config(preset, vision_model_id=None, language_model_id=None)
    config.vision_config.initializer_range = 0.02  # transformers' own is a blank picture
    with made_in(dtype, device):
        model = CromeForConditionalGeneration(config)
    for name, part in model.parts().items():
        if isinstance(part, nn.Parameter):
            part.data = part.data.float()
        elif name not in ("vision_model", "language_model"):
            part.float()
    open_adapter(model)
    apply_stage(model, "finetune")
    return model.train()


def count(module: nn.Module) -> int:
    """Weights of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def operations_of(decoder: Any, head: nn.Module, tokens: int, answers: int) -> float:
    """Multiplications and additions that a frozen language model needs in a training step.

    Two for each weight and token forward, and as many for the gradient of its input; attention
    between tokens is not counted.
    """
    weights = count(decoder) - count(decoder.get_input_embeddings())
    return 4.0 * (weights * tokens + count(head) * answers)


def open_adapter(model: Any) -> None:
    """Gives an adapter weights that change what the language model reads."""
    for parameter in model.adapter.parameters():
        nn.init.normal_(parameter, std=0.02)


# ---------------------------------------------------------------------- attached


@dataclass(frozen=True)
class VlmSize:
    """A Qwen3-VL and a batch.

    Attributes:
        language: Layers, width, inner width, heads and key-value heads.
        vision: Layers, width and inner width.
        deep: Layers of the vision tower whose features go into deeper layers.
        grid: Patches of a picture on a side; a token stands for two by two of them.
        rows: Rows of a batch, `questions` of them on each picture.
        tied: Whether the head is the word embeddings.
    """

    language: tuple[int, int, int, int, int]
    vision: tuple[int, int, int]
    deep: tuple[int, ...]
    vocabulary: int = 151_936
    head_width: int = 128
    grid: int = 28
    rows: int = 16
    questions: int = 4
    head: int = 4
    prompt: int = 16
    answer: int = 32
    tied: bool = False

    @property
    def images(self) -> int:
        """Distinct pictures of the batch."""
        return self.rows // self.questions

    @property
    def visual(self) -> int:
        """Tokens of a picture."""
        return (self.grid // 2) ** 2


VLMS = {
    "2b": VlmSize((28, 2048, 6144, 16, 8), (24, 1024, 4096), (5, 11, 17), tied=True),
    "8b": VlmSize((36, 4096, 12288, 32, 8), (27, 1152, 4304), (8, 16, 24)),
    "tiny": VlmSize(
        (2, 64, 96, 4, 2), (2, 32, 48), (0,), 512, 16, 4, rows=4, questions=2, prompt=8, answer=4
    ),
}


def qwen3_vl(size: VlmSize) -> Qwen3VLForConditionalGeneration:
    """A Qwen3-VL with random weights."""
    layers, width, inner, heads, pairs = size.language
    depth, seen, seen_inner = size.vision
    half = size.head_width // 2
    sections = [half - 2 * (half * 5 // 16), half * 5 // 16, half * 5 // 16]
    config = Qwen3VLConfig(
        text_config={
            "num_hidden_layers": layers, "hidden_size": width, "intermediate_size": inner,
            "num_attention_heads": heads, "num_key_value_heads": pairs,
            "head_dim": size.head_width, "vocab_size": size.vocabulary,
            "max_position_embeddings": 32_768,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6,
                                "mrope_section": sections, "mrope_interleaved": True},
        },
        vision_config={
            "depth": depth, "hidden_size": seen, "intermediate_size": seen_inner,
            "num_heads": max(2, seen // 64), "out_hidden_size": width,
            "deepstack_visual_indexes": list(size.deep),
        },
        image_token_id=IMAGE, vision_start_token_id=START, vision_end_token_id=END,
        video_token_id=5,
        tie_word_embeddings=size.tied,
    )  # fmt: skip
    return Qwen3VLForConditionalGeneration(config).eval()


class VlmBench:
    """An attached model, its batch, and every contender as a step.

    Args:
        size: Of model and batch.
        dtype: Of the frozen model.
        device: Where everything is.
    """

    def __init__(self, size: VlmSize, dtype: torch.dtype, device: torch.device) -> None:
        torch.manual_seed(0)
        self.size, self.device = size, device
        with made_in(dtype, device):
            self.vlm = qwen3_vl(size)
        self.model: Any = AttachedModel(self.vlm, bottleneck=256, branches=["image"])
        open_adapter(self.model)
        apply_stage(self.model, "finetune")
        self.model.train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6)
        self.batch = {name: t.to(device) for name, t in vlm_rows(size).items()}
        self.media = [self._picture(number) for number in range(size.images)]
        self.index = torch.arange(size.rows) // size.questions
        with torch.no_grad():
            self.kept = [self.model.encode(one) for one in self.media]
        self.tokens = size.rows * (size.prompt + size.answer) + size.images * size.visual

    def _picture(self, number: int) -> dict[str, Tensor]:
        config = self.vlm.config.vision_config
        values = config.in_channels * config.temporal_patch_size * config.patch_size**2
        generator = torch.Generator().manual_seed(number)
        pixels = torch.randn(self.size.grid**2, values, generator=generator)
        return {
            "pixel_values": pixels.to(self.device),
            "image_grid_thw": torch.tensor(
                [[1, self.size.grid, self.size.grid]], device=self.device
            ),
        }

    def ours(self) -> None:
        """The step from pixels."""
        self._step(media=self.media)

    def cached(self) -> None:
        """The step from kept features."""
        self._step(media=self.media, features=self.kept)

    def _step(self, **visual: Any) -> None:
        self.model(**self.batch, media_index=self.index, **visual).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def operations(self, cached: bool) -> float:
        """Of our step, by the count of `operations_of`; the adapter is left out.

        Args:
            cached: Whether the vision tower is left out too.
        """
        size, model = self.size, self.vlm.model
        seen = 0 if cached else 2 * count(model.visual) * size.images * size.grid**2
        return seen + operations_of(
            model.language_model, self.vlm.lm_head, self.tokens, size.rows * size.answer
        )

    @contextmanager
    def lora(self) -> Iterator[Step]:
        """LoRA as PEFT and transformers do it, a picture for every row."""
        shown = [self.media[number] for number in self.index.tolist()]
        pixels = {name: torch.cat([one[name] for one in shown]) for name in self.media[0]}
        pixels["pixel_values"] = pixels["pixel_values"].to(self.vlm.dtype)
        with low_rank(self.vlm) as other:
            trained = [p for p in other.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=1e-6)

            def step() -> None:
                other(**self.batch, **pixels).loss.backward()
                optimizer.step()
                optimizer.zero_grad()

            yield step

    def floor(self) -> Step:
        """The language model alone on as many tokens as there are different ones."""
        size, language_model = self.size, self.vlm.model.language_model
        behind = size.prompt - size.head + size.answer - 1
        each = size.visual + behind * size.questions
        shape = (size.images, each, size.language[1])
        embeds = torch.randn(shape, dtype=self.vlm.dtype, device=self.device, requires_grad=True)
        rows = torch.arange(size.rows * size.answer, device=self.device) % (size.images * each)
        targets = torch.randint(5, size.vocabulary - 1, (len(rows),), device=self.device)

        def step() -> None:
            read = language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
            logits = self.vlm.lm_head(read.flatten(0, 1)[rows])
            F.cross_entropy(logits.float(), targets).backward()
            embeds.grad = None

        return step


def vlm_rows(size: VlmSize) -> dict[str, Tensor]:
    """Token ids with a picture's placeholders between its marks, mask, kinds and labels."""
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(
        10, size.vocabulary - 1, (size.rows, size.prompt + size.answer), generator=generator
    )
    text[:, : size.head] = text[0, : size.head]
    text[:, size.head - 1], text[:, size.head] = START, END
    labels = text.clone()
    labels[:, : size.prompt] = -100

    def widened(values: Tensor, filling: int) -> Tensor:
        visual = values.new_full((size.rows, size.visual), filling)
        return torch.cat([values[:, : size.head], visual, values[:, size.head :]], 1)

    ids = widened(text, IMAGE)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IMAGE).int(),
        "labels": widened(labels, -100),
    }
