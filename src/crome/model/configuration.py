"""`CromeConfig`: which towers, which bridge between them, and how the prompt is laid out."""

from datetime import date
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, InstructBlipQFormerConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.configuration_utils import SubConfigSpec

from crome.adapter import ACTIVATION, CrossModalAdapter
from crome.errors import InputError, positive_whole, switches
from crome.model.encoders import vision_width

VISUAL_ORDERS = ("patches_first", "queries_first")
PROMPT_FORMATS = ("chat", "bare")


@strict
class CromeConfig(PreTrainedConfig):
    """Configuration of `CromeForConditionalGeneration`.

    InstructBLIP and BLIVA are settings of the same class: `branches=["query"]` or
    `["query", "patch"]`, both with `adapter_bottleneck=None`.

    Args:
        vision_config: Configuration of the frozen vision encoder.
        qformer_config: Configuration of the Q-Former; `encoder_hidden_size` follows the encoder.
        text_config: Configuration of the frozen language model.
        vision_model_id: Where the vision encoder's weights come from (hub id, folder or asset).
        language_model_id: Where the language model's weights come from.
        vision_revision: Revision of `vision_model_id` on the hub.
        language_revision: Revision of `language_model_id` on the hub.
        num_query_tokens: Learned queries of the Q-Former.
        instruction_aware: Whether the Q-Former reads the question (InstructBLIP) or its queries see
            the image alone (BLIP-2).
        branches: Token streams shown to the language model: "query", "patch" or both.
        adapter_bottleneck: Inner width m of the adapter; None for no adapter.
        adapter_gated: False for the ungated ablation.
        adapter_shared_up: False for one up-projection per branch.
        adapter_activation: Activation of the gate.
        qformer_feature_layer: Encoder layer whose tokens the Q-Former reads; -1 is the encoder's
            own final output, with its final norm where it has one.
        patch_feature_layer: Encoder layer of the patch branch (`hidden_states[-2]` in BLIVA).
        drop_prefix_tokens: Whether class and register tokens stay out of the patch branch.
        normalize_features: Whether encoder features get a parameter-free LayerNorm before they are
            used: for encoders that end without a norm.
        visual_order: "patches_first" makes the patch tokens a prefix shared by all questions on an
            image; "queries_first" is BLIVA's order.
        prompt_format: "chat" (the language model's own chat template), "bare" (visual block, BOS,
            question: InstructBLIP and BLIVA), or a pair (text before the visual block, text after),
            in which `{question}` and `{bos}` are replaced.
        system_prompt: System message for "chat"; None leaves it to the template.
        max_question_tokens: Longer questions lose their beginning.
        max_answer_tokens: Longer answers lose their end.
        prompt_date: The day (YYYY-MM-DD) that chat templates with a date are given, so that an
            adapter meets the same prompt on every day; None for the day it is.
        enable_thinking: Whether chat templates that can leave time to think do; None leaves it to
            the template. New bridges say False: they learn bare answers.
        share_prefix: Whether the language model reads the tokens that all questions on an image
            share only once, where order and model allow it. Exact up to float rounding.
    """

    model_type = "crome"
    sub_configs_defaults = {  # noqa: RUF012 - the name and form are transformers'
        "vision_config": SubConfigSpec(AutoConfig, model_type="instructblip_vision_model"),
        "qformer_config": SubConfigSpec(InstructBlipQFormerConfig),
        "text_config": SubConfigSpec(AutoConfig, model_type="llama"),
    }

    vision_config: Any = None  # a config, or a dict with its model_type
    qformer_config: Any = None
    text_config: Any = None
    vision_model_id: str | None = None
    language_model_id: str | None = None
    vision_revision: str | None = None
    language_revision: str | None = None
    num_query_tokens: int = 32
    instruction_aware: bool = True
    branches: list[str] | tuple[str, ...] = ("query", "patch")
    adapter_bottleneck: int | None = 256
    adapter_gated: bool = True
    adapter_shared_up: bool = True
    adapter_activation: str = ACTIVATION
    qformer_feature_layer: int = -1
    patch_feature_layer: int = -2
    drop_prefix_tokens: bool = True
    normalize_features: bool = False
    visual_order: str = "patches_first"
    prompt_format: str | list[str] | tuple[str, str] = "chat"
    system_prompt: str | None = None
    max_question_tokens: int = 128
    max_answer_tokens: int = 256
    prompt_date: str | None = "2026-01-01"
    enable_thinking: bool | None = None
    share_prefix: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        positive_whole(
            num_query_tokens=self.num_query_tokens,
            adapter_bottleneck=self.adapter_bottleneck,
            max_question_tokens=self.max_question_tokens,
            max_answer_tokens=self.max_answer_tokens,
        )
        switches(adapter_gated=self.adapter_gated, adapter_shared_up=self.adapter_shared_up)
        self.branches = list(self.branches)
        self.qformer_config.encoder_hidden_size = vision_width(self.vision_config)
        if self.visual_order not in VISUAL_ORDERS:
            raise InputError(
                f"visual_order is {self.visual_order!r}; expected {' or '.join(VISUAL_ORDERS)}."
            )
        if isinstance(self.prompt_format, str) and self.prompt_format not in PROMPT_FORMATS:
            raise InputError(
                f"prompt_format is {self.prompt_format!r}; expected {' or '.join(PROMPT_FORMATS)}, "
                "or a pair of texts before and after the visual block."
            )
        if self.prompt_date is not None and not is_day(self.prompt_date):
            raise InputError(f"prompt_date is {self.prompt_date!r}; expected a day as 2026-01-31.")
        if self.adapter_activation not in ACT2FN:
            raise InputError(
                f"adapter_activation is {self.adapter_activation!r}; expected a name such as silu, "
                "gelu or relu."
            )
        if not self.branches or set(self.branches) - {"query", "patch"}:
            raise InputError(f"branches is {self.branches!r}; expected 'query', 'patch' or both.")

    @property
    def hidden_size(self) -> int:
        """Width of the language model's embeddings; small OPTs widen them inside."""
        text = self.text_config.get_text_config()
        return int(getattr(text, "word_embed_proj_dim", None) or text.hidden_size)


def is_day(text: str) -> bool:
    """Whether a text is a day as YYYY-MM-DD."""
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def new_adapter(config: CromeConfig) -> CrossModalAdapter:
    """An identity adapter of the size and switches a config names."""
    assert config.adapter_bottleneck is not None
    return CrossModalAdapter(
        config.hidden_size,
        config.adapter_bottleneck,
        config.branches,
        gated=config.adapter_gated,
        shared_up=config.adapter_shared_up,
        activation=config.adapter_activation,
    )


AutoConfig.register("crome", CromeConfig)
