"""Which vision-language models have the way in, and why the others have not."""

import inspect
from typing import Any

from transformers import PreTrainedModel

from crome.attached.encoding import MODALITIES, Encoder, feature_function
from crome.attached.hearing import hears
from crome.attached.prefix import BLOCKS, allows_sharing
from crome.errors import InputError

WITHOUT = {
    "mllama": "its language model looks at pictures through cross-attention, not as tokens",
    "idefics": "its language model looks at pictures through cross-attention, not as tokens",
    "evolla": "its language model looks at proteins through cross-attention, not as tokens",
    "florence2": "it is an encoder-decoder without mm_encoder_outputs",
    "t5gemma2": "it is an encoder-decoder without mm_encoder_outputs",
    "kosmos-2": "its forward pass takes no mm_encoder_outputs",
    "kosmos-2.5": "its forward pass takes no mm_encoder_outputs",
    "git": "it joins pictures and words inside its own decoder",
    "blip": "its decoder looks at pictures through cross-attention, not as tokens",
    "udop": "it joins pictures, words and boxes inside its own encoder",
    "pix2struct": "it is an encoder-decoder that reads pictures alone",
    "vision-encoder-decoder": "its decoder looks at pictures through cross-attention",
    "pp_formulanet": "its decoder looks at pictures through cross-attention",
    "pi0": "it answers with actions, not with words",
    "diffusion_gemma": "it fills in blocks of text and does not predict the next token",
    "fuyu": "its processor writes prompts of its own around pictures",
    "blip-2": "its generate insists on pixel_values",
    "llama4": "its projector runs inside forward, behind what can be given to it",
    "instructblip": "it insists on pixel_values; `crome convert` makes a CROME checkpoint of it",
    "instructblipvideo": "it insists on pixel_values",
}
"""Families without the way in, by model type."""
THINKERS = {
    "qwen2_5_omni": "Qwen2_5OmniThinkerForConditionalGeneration",
    "qwen3_omni_moe": "Qwen3OmniMoeThinkerForConditionalGeneration",
}
"""Models that also talk, and the part of each that reads and answers, a model by itself."""
FILMS_AS_PICTURES = ("internvl", "smolvlm")
"""Families whose processors make pictures of the frames of a film."""
SUFFIX_TYPE = {"paligemma": 1}
"""What `token_type_ids` are of an answer's tokens, where they are not 0: PaliGemma reads a prompt
in both directions, and an answer in one."""
IN_BLOCKS = ("gemma3",)
"""Families whose masks let the tokens of a picture see each other, and nothing more."""
SHARED = frozenset(
    (
        "aria", "aya_vision", "chameleon", "cohere2_vision", "cohere_compass", "cosmos3_edge",
        "cosmos3_omni", "deepseek_ocr2", "deepseek_vl", "deepseek_vl_hybrid", "emu3",
        "ernie4_5_vl_moe", "exaone4_5", "fast_vlm", "gemma3", "glm46v", "glm4v", "glm4v_moe",
        "glm_ocr", "got_ocr2", "granite4_vision", "granite_docling", "hunyuan_vl",
        "hyperclovax_vision_v2", "idefics2", "idefics3", "inkling_mm_model", "internvl", "janus",
        "kimi_k25", "lighton_ocr", "llava", "llava_next", "llava_next_video", "llava_onevision",
        "minimax_m3_vl", "mistral3", "mistral_large4", "muse_glimmer", "muse_spark", "ovis2",
        "paddleocr_vl", "perception_lm", "qianfan_ocr", "qwen2_5_omni_thinker", "qwen2_5_vl",
        "qwen2_vl", "qwen3_omni_moe_thinker", "qwen3_vl", "qwen3_vl_moe", "smolvlm", "step3p7",
        "video_llama_3", "video_llava", "vipllava",
    )
)  # fmt: skip
"""Families in which rows behind one copy of their picture were found to be as rows alone
(`benchmarks/families.py`); others are read apart, since a family may do something else with mask or
positions that no signature shows."""


def check_family(vlm: PreTrainedModel) -> None:
    """Refuses models between whose encoder and language model nothing can be put.

    Raises:
        InputError: With the reason.
    """
    kind, named = vlm.config.model_type, type(vlm).__name__
    if kind in THINKERS:
        raise InputError(
            f"{named} also talks, and an adapter belongs to the part that answers in words: attach "
            f"it to its `thinker` ({THINKERS[kind]})."
        )
    reason = WITHOUT.get(kind)
    if reason is None and "mm_encoder_outputs" not in inspect.signature(vlm.forward).parameters:
        reason = "its forward pass takes no mm_encoder_outputs"
    if reason is None and all(feature_function(vlm, m) is None for m in MODALITIES):
        reason = "it has no get_image_features"
    if reason is None and getattr(vlm.config, "is_encoder_decoder", False):
        reason = "it is an encoder-decoder"
    if reason:
        raise InputError(
            f"no adapter can be attached to {named} ({kind}): {reason}. Take a model such as "
            "Qwen3-VL, SmolVLM, Gemma 3, InternVL or LLaVA."
        )


def check_kind(kind: str) -> None:
    """Refuses a family by its model type alone, before its weights are fetched.

    Raises:
        InputError: With the reason.
    """
    if (reason := WITHOUT.get(kind)) is not None:
        raise InputError(
            f"no adapter can be attached to a {kind} model: {reason}. Take a model such as "
            "Qwen3-VL, SmolVLM, Gemma 3, InternVL or LLaVA."
        )


def shares(vlm: PreTrainedModel) -> bool:
    """Whether rows of one picture may be read behind one copy of it.

    Not where a picture sees the question, nor where layers keep a state.
    """
    if vlm.config.model_type not in SHARED:
        return False
    blind = BLOCKS not in inspect.signature(vlm.forward).parameters
    return (blind or vlm.config.model_type in IN_BLOCKS) and allows_sharing(vlm)


def modalities(vlm: PreTrainedModel, encoder: Encoder) -> tuple[str, ...]:
    """Modalities whose encoder output a model can be given."""
    takes: Any = inspect.signature(vlm.forward).parameters
    names = {"image": "pixel_values", "video": "pixel_values_videos"}
    found = [m for m in encoder.functions if m in names]
    seen = tuple(m for m in found if m == "image" or names[m] in takes)
    return (*seen, "audio") if hears(vlm, encoder) else seen
