"""Every vision-language family of transformers at toy size: random weights, its own processor.

Configurations are the families' defaults with every width, depth and count cut down by name; where
a family needs more than that, `OVERRIDES` says so. Tokenizers are one byte-level vocabulary with
the special tokens that a family's processor asks for.
"""

import inspect
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, ProcessorMixin
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES

VOCABULARY = 448
WIDTH = 32
BASE = ["<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|end|>"]
ATTRIBUTES = {
    "image_token": "<image>", "video_token": "<video>", "audio_token": "<audio>",
}  # fmt: skip
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% elif part.type == 'image' %}IMAGE"
    "{% elif part.type == 'video' %}VIDEO{% else %}AUDIO{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STANDARD = ("pad_token", "bos_token", "eos_token", "unk_token", "sep_token", "cls_token")
SMALL: dict[str, Any] = {
    "hidden_size": WIDTH, "d_model": WIDTH, "embed_dim": WIDTH, "n_embd": WIDTH, "dim": WIDTH,
    "intermediate_size": 48, "ffn_dim": 48, "mlp_dim": 48, "out_hidden_size": WIDTH,
    "num_hidden_layers": 2, "num_layers": 2, "n_layer": 2, "depth": 2, "encoder_layers": 2,
    "num_attention_heads": 4, "num_heads": 4, "num_key_value_heads": 2, "n_head": 4,
    "encoder_attention_heads": 4, "head_dim": 8, "image_size": 56, "patch_size": 14,
    "vocab_size": VOCABULARY, "max_position_embeddings": 2048, "projection_dim": WIDTH,
    "moe_intermediate_size": 16, "num_experts": 4, "n_routed_experts": 4, "num_local_experts": 4,
    "num_experts_per_tok": 2, "moe_num_experts": 4, "text_hidden_size": WIDTH,
    "projection_hidden_size": WIDTH, "projector_hidden_size": WIDTH, "q_lora_rank": 16,
    "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "shared_expert_intermediate_size": 16, "initializer_range": 0.2,
    "hidden_dropout": 0.0, "attention_dropout": 0.0,
}  # fmt: skip
SQUARE = {"height": 56, "width": 56}
PINPOINTS = [[56, 56], [56, 112], [112, 56], [112, 112]]
BLOCKS = {"height": 64, "width": 64}
CROPPED = {"size": {"shortest_edge": 56}, "crop_size": SQUARE}
LLAVA = {"patch_size": 14, "vision_feature_select_strategy": "default",
         "num_additional_image_tokens": 1}  # fmt: skip
TILES = {"size": SQUARE, "crop_to_patches": True, "min_patches": 1, "max_patches": 4}
PIXTRAL = {"size": {"longest_edge": 112}, "patch_size": 14}
GLM_FILM = "<|begin_of_video|><video><|end_of_video|>"
OMNI = {
    "ids": {"vision_start_token_id": "<vision_bos_token>",
            "audio_start_token_id": "<audio_bos_token>"},
    "audio_text": "<audio_bos_token><audio><audio_eos_token>",
    "ears": "WhisperFeatureExtractor", "audio": {"feature_size": 128}, "kind": "qwen2_vl",
}  # fmt: skip
SAM = {"image_size": 1024, "patch_size": 16}
TIMM = {"architecture": "test_resnet", "hidden_size": 96}  # needs timm
SHARING = ["sliding_attention", "full_attention"] * 2
OVERRIDES: dict[str, dict[str, Any]] = {
    "llava_next": {"image_grid_pinpoints": PINPOINTS},
    "llava_next_video": {"image_grid_pinpoints": PINPOINTS},
    "llava_onevision": {"image_grid_pinpoints": PINPOINTS},
    "gemma3": {"mm_tokens_per_image": 4},
    "qwen3_vl": {"vision_config": {"deepstack_visual_indexes": [0, 1]}},
    "qwen3_vl_moe": {"vision_config": {"deepstack_visual_indexes": [0, 1]}},
    "qwen2_5_omni_thinker": {"audio_config": {"output_dim": WIDTH}},
    "qwen3_omni_moe_thinker": {
        "vision_config": {"deepstack_visual_indexes": [0, 1]},
        "audio_config": {"output_dim": WIDTH, "downsample_hidden_size": 8},
    },
    "shieldgemma2": {"mm_tokens_per_image": 4},
    "internvl": {"image_seq_length": 4},
    "blip-2": {"num_query_tokens": 4},
    "aya_vision": {"downsample_factor": 2},
    "vipllava": {"vision_feature_layers": [-2, -1]},
    "paligemma": {"text_config": {"vocab_size": 1600}},
    "gemma4": {
        "vision_config": {"patch_size": 16},
        "audio_config": {"output_proj_dims": WIDTH, "subsampling_conv_channels": [128, 4]},
    },
    "gemma4_unified": {
        "vision_config": {"patch_size": 16},
        "audio_config": {"audio_embed_dim": 640},
    },
    "cosmos3_edge": {"vision_config": {"patch_size": 16}},
    "lfm2_vl": {"vision_config": {"patch_size": 16}},
    "nemotron_h_omni": {
        "vision_hidden_size": WIDTH,
        "vision_config": {"patch_size": 16},
        "audio_config": {
            "subsampling_conv_channels": 8,
            "projection_hidden_size": WIDTH,
            "projection_bias": False,
            "num_mel_bins": 128,
        },
    },
    "kimi_k25": {"text_config": {"num_key_value_heads": 4}},
    "glm5_next": {"text_config": {"num_key_value_heads": 4}},
    "mistral_large4": {"text_config": {"num_key_value_heads": 4}},
    "unlimited_ocr": {
        "text_config": {"mlp_layer_types": ["dense", "sparse"]},
        "vision_config": {"sam_config": {**SAM, "downsample_channels": [16, WIDTH]}},
    },
    "deepseek_ocr2": {
        "text_config": {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2},
        "vision_config": {"sam_config": {**SAM, "downsample_channels": [16, WIDTH]}},
    },
    "ernie4_5_vl_moe": {"mrope": [1, 1, 2]},
    "hunyuan_vl": {"text_config": {"head_dim": 8}, "vision_config": {"patch_size": 16}},
    "inkling_mm_model": {"vision_config": {"patch_size": 40}},
    "minimax_m3_vl": {"merged_hidden_size": 128},
    "got_ocr2": {"vision_config": {"image_size": 1024, "patch_size": 16}},
    "pp_chart2table": {"vision_config": {"image_size": 1024, "patch_size": 16}},
    "inkling2": {"vision_config": {"patch_size": 20, "posemb_grid_size": 8}},
    "molmo2": {"adapter_config": {"vision_feature_layer": [-2, -1]}},
    "muse_glimmer": {"out_hidden_size": 128},
    "muse_spark": {
        "out_hidden_size": 128,
        "audio_config": {"hidden_sizes": [8, 8], "patch_sizes": [48, 40], "depths": [1, 1]},
    },
    "granite4_vision": {
        "image_grid_pinpoints": PINPOINTS,
        "deepstack_layer_map": [(-1, 0), (0, 1)],
        "downsample_rate": "1/2",
        "qformer_config": {"encoder_hidden_size": WIDTH},
    },
    "fast_vlm": {"vision_config": {**TIMM, "model_args": None}, "image_seq_length": 4},
    "gemma3n": {
        "vision_config": {**TIMM, "vocab_offset": 400, "vocab_size": 24},
        "audio_config": {"vocab_offset": 424, "vocab_size": 24, "conf_num_hidden_layers": 1},
        "text_config": {"num_hidden_layers": 4, "layer_types": SHARING},
        "vision_soft_tokens_per_image": 4,
    },
    "dots3_note": {
        "vision_config": {"adapter_in_dim": WIDTH, "adapter_out_dim": WIDTH},
        "audio_config": {"adapter_input_size": WIDTH, "adapter_out_dim": WIDTH},
    },
    "deepseek_vl_hybrid": {"high_res_vision_config": {"global_attn_indexes": [0, 1]}},
    "perception_lm": {
        "vision_config": {
            "architecture": "test_vit",
            "hidden_size": 64,
            "model_args": {"embed_dim": 64, "img_size": 56, "patch_size": 14, "global_pool": ""},
        },
        "projector_pooling_ratio": 2,
    },
    "emu3": {
        "vocabulary_map": {
            "<|extra_200|>": 399,
            **{f"<|visual token {i:06}|>": 400 + i for i in range(20)},
        },
        "vq_config": {
            "codebook_size": 20,
            "base_channels": 32,
            "channel_multiplier": [1] * 4,
            "num_res_blocks": 1,
            "attn_resolutions": [],
        },
    },
    "chameleon": {
        "vocabulary_map": {
            f"IMGIMG{a}{b}Z": 400 + 10 * i + j
            for i, a in enumerate("AB")
            for j, b in enumerate("ABCDEFGHIJ")
        },
        "vq_config": {
            "num_embeddings": 20,
            "base_channels": 32,
            "channel_multiplier": [1] * 4,
            "num_res_blocks": 1,
            "latent_channels": 32,
            "resolution": 56,
        },
    },
    "step3p7": {"text_config": {"sliding_window": 512}},
    "glm4v_moe": {"text_config": {"head_dim": 16}},
}
SMALLEST = {
    "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": VOCABULARY,
}  # fmt: skip
GEMMA4 = {"global_head_dim": 8, "layer_types": ["sliding_attention", "full_attention"],
          "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 0}  # fmt: skip
TEXTS: dict[str, dict[str, Any]] = {
    "gemma4": GEMMA4,
    "gemma4_unified": GEMMA4,
    "gemma3n": {"num_hidden_layers": 4, "layer_types": SHARING, "num_kv_shared_layers": 2,
                "intermediate_size": [48] * 4, "activation_sparsity_pattern": [0.0] * 4,
                "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8,
                "laurel_rank": 4},
    "qwen4_exp": {"layer_types": ["linear_attention", "full_attention"], "indexer_n_heads": 2,
                  "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 64,
                  "indexer_compress_ratio": 4},
    "cohere_compass": {"layer_types": ["full_attention", "full_attention"],
                       "rope_parameters": {"full_attention": {"rope_type": "default",
                                                              "rope_theta": 10000.0}}},
}  # fmt: skip
HEARING = ("gemma3n", "gemma4", "gemma4_unified", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker",
           "dots3_note", "nemotron_h_omni", "inkling_mm_model", "muse_spark")  # fmt: skip
"""Families that take recordings beside pictures."""
EARS = {"gemma4": "Gemma4AudioConfig", "gemma4_unified": "Gemma4UnifiedAudioConfig",
        "nemotron_h_omni": "ParakeetEncoderConfig"}  # fmt: skip
PROCESSORS: dict[str, dict[str, Any]] = {
    "llava": {"image": CROPPED, "more": LLAVA},
    "vipllava": {"image": CROPPED, "more": LLAVA},
    "llava_next": {"image": {**CROPPED, "image_grid_pinpoints": PINPOINTS}, "more": LLAVA},
    "llava_next_video": {"image": {**CROPPED, "image_grid_pinpoints": PINPOINTS}, "more": LLAVA,
                         "video": {"size": SQUARE, "crop_size": SQUARE}},
    "granite4_vision": {"image": {**CROPPED, "image_grid_pinpoints": PINPOINTS},
                        "more": {**LLAVA, "downsample_rate": "1/2"}},
    "llava_onevision": {"image": {"size": SQUARE, "image_grid_pinpoints": PINPOINTS},
                        "video": {"size": SQUARE},
                        "more": {"num_image_tokens": 16, "vision_feature_select_strategy": "full"}},
    "gemma3": {"image": {"size": SQUARE}, "more": {"image_seq_length": 4}},
    "shieldgemma2": {"class": "Gemma3Processor", "kind": "gemma3", "image": {"size": SQUARE},
                     "more": {"image_seq_length": 4}},
    "internvl": {"image": TILES, "video": {"size": SQUARE}, "more": {"image_seq_length": 4}},
    "aya_vision": {"image": TILES, "more": {"patch_size": 28, "img_size": 56}},
    "smolvlm": {"image": {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}},
                "video": {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 56}},
                "more": {"image_seq_len": 4}},
    "idefics3": {"image": {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}},
                 "more": {"image_seq_len": 4}},
    "blip-2": {"image": {"size": SQUARE}, "more": {"num_query_tokens": 4}},
    "cohere2_vision": {"image": {**TILES, "patch_size": 2}},
    "granite_docling": {"image": {"size": SQUARE, "max_image_size": {"longest_edge": 56}},
                        "more": {"image_seq_len": 1}},
    "qianfan_ocr": {"image": TILES, "image_text": "<image>", "more": {"image_seq_length": 4}},
    "cohere_compass": {"unnamed": ("image_token", "video_token")},
    "molmo2": {"ids": {"image_patch_id": "<im_patch>"}},
    "hunyuan_vl": {"image": {"size": {"shortest_edge": 1024, "longest_edge": 4096},
                             "min_pixels": 1024, "max_pixels": 4096},
                   "image_text": "<image_start_token><image><image_end_token>"},
    "mistral3": {"image": PIXTRAL, "more": {"patch_size": 14, "spatial_merge_size": 2}},
    "mistral_large4": {"image": PIXTRAL, "more": {"patch_size": 14, "spatial_merge_size": 2}},
    "paligemma": {"image": {"size": SQUARE, "image_seq_length": 16}},
    "qwen3_vl": {"video": {"patch_size": 14}},
    "qwen3_vl_moe": {"kind": "qwen3_vl", "video": {"patch_size": 14}},
    "cosmos3_omni": {"class": "Qwen3VLProcessor"},
    "glm46v": {"video_text": GLM_FILM},
    "glm_ocr": {"class": "Glm46VProcessor", "kind": "glm46v", "video_text": GLM_FILM},
    "glmga": {"class": "Glm46VProcessor", "kind": "glm46v", "video_text": GLM_FILM},
    "fast_vlm": {"class": "LlavaProcessor", "kind": "llava",
                 "image": {"size": {"shortest_edge": 64}, "crop_size": BLOCKS},
                 "more": {"patch_size": 32, "vision_feature_select_strategy": "full"}},
    "gemma3n": {"image": {"size": BLOCKS}, "more": {"image_seq_length": 4}},
    "chameleon": {"image": CROPPED, "more": {"image_seq_length": 49}},
    "deepseek_vl": {"image": {"size": SQUARE}, "more": {"num_image_tokens": 16}},
    "deepseek_vl_hybrid": {"image": {"size": SQUARE, "high_res_size": SQUARE},
                           "more": {"num_image_tokens": 16}},
    "janus": {"image": {"size": SQUARE}, "more": {"num_image_tokens": 16}},
    "perception_lm": {"image": {"tile_size": 56, "max_num_tiles": 4},
                      "more": {"patch_size": 14, "pooling_ratio": 2}},
    "dots3_note": {"image": {"temporal_patch_size": 1}},
    "emu3": {"image": {"min_pixels": 1024, "max_pixels": 4096, "spatial_factor": 8}},
    "instructblip": {"image": {"size": SQUARE}, "more": {"num_query_tokens": 4}},
    "qwen2_5_omni_thinker": {"class": "Qwen2_5OmniProcessor", **OMNI},
    "qwen3_omni_moe_thinker": {"class": "Qwen3OmniMoeProcessor", **OMNI},
    "nemotron_h_omni": {"ears": "ParakeetFeatureExtractor", "audio": {"feature_size": 128}},
    "glm4v": {"video_text": GLM_FILM},
    "glm4v_moe": {"kind": "glm4v", "video_text": GLM_FILM},
    "qwen3_5": {"video": {"patch_size": 14}},
    "pp_chart2table": {"tokens": {"image_token": "<imgpad>", "boi_token": "<img>",
                                  "eoi_token": "</img>"},
                       "ids": {"image_token_id": "<imgpad>"},
                       "image_text": "<img>" + "<imgpad>" * 256 + "</img>"},
    "got_ocr2": {"image": {"size": {"height": 1024, "width": 1024}}},
    "video_llava": {"image": CROPPED, "video": CROPPED},
    "ovis2": {"image": TILES, "more": {"image_seq_length": 16},
              "ids": {"image_token_id": "<IMG_ATOM>"}},
}  # fmt: skip


def supported() -> list[str]:
    """Model types whose class takes `mm_encoder_outputs`, by signature alone."""
    return [kind for kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES if has_way_in(kind)]


def has_way_in(kind: str) -> bool:
    """Whether encoder outputs may be given."""
    return "mm_encoder_outputs" in inspect.signature(model_class(kind).forward).parameters


def model_class(kind: str) -> Any:
    """The class behind `AutoModelForImageTextToText`."""
    return getattr(transformers, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[kind])


def config_of(kind: str) -> Any:
    """A family's default configuration, cut down."""
    made = model_class(kind).config_class
    config = made()
    if kind in TEXTS:  # checked when it is made, and not to be cut down afterwards
        text = type(config.get_text_config())(**{**SMALLEST, **TEXTS[kind]})
        vision = made.sub_configs_defaults["vision_config"]
        vision = getattr(vision, "config_class", vision)
        config = made(text_config=text, vision_config=vision())
    ears = EARS.get(kind)
    if ears is not None:  # of models that come with ears or without
        config.audio_config = getattr(transformers, ears)()
    shrink(config, OVERRIDES.get(kind, {}))
    return config


def shrink(config: Any, overrides: dict[str, Any]) -> None:
    """Cuts widths, depths and counts of a configuration and those inside it."""
    inside = [k for k, v in vars(config).items() if isinstance(v, transformers.PreTrainedConfig)]
    for name, value in SMALL.items():
        current = found_in(config, name)
        if isinstance(current, int | float) and not isinstance(current, bool):
            setattr(config, name, value)
        elif name in ("image_size", "patch_size") and isinstance(current, list | tuple):
            setattr(config, name, [value] * len(current))
    for name in inside:
        shared = {"mrope": overrides["mrope"]} if "mrope" in overrides else {}
        shrink(getattr(config, name), {**shared, **overrides.get(name, {})})
    for name, value in overrides.items():
        if name not in inside:
            setattr(config, name, value)
    if isinstance(getattr(config, "layer_types", None), list) and "layer_types" not in overrides:
        kinds = list(dict.fromkeys(config.layer_types))  # a layer of every kind
        config.layer_types = kinds if len(kinds) > 1 else kinds * 2
        config.num_hidden_layers = len(config.layer_types)
    rope = getattr(config, "rope_parameters", None)
    for table in (rope, *(rope or {}).values()):
        if isinstance(table, dict) and "rope_type" in table:
            table["mrope_section"] = overrides.get(
                "mrope", [2, 1, 1]
            )  # read where positions have three axes


def found_in(config: Any, name: str) -> Any:
    """A field, None where it is absent or differs between layers."""
    try:
        return getattr(config, name, None)
    except Exception:  # whatever a family's configuration refuses to say
        return None


def build_tokenizer(kind: str, module: Any) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the special tokens a family's processor names."""
    source = Path(module.__file__).read_text()
    asked = re.findall(r"tokenizer(?:\.|, \"|\.tokenizer\.)([a-z_]+_token)(?:_id)?\b", source)
    invented = {name: f"<{name}>" for name in asked if name not in STANDARD and "add_" not in name}
    wanted = PROCESSORS.get(kind, {})
    named = {**invented, **ATTRIBUTES, **wanted.get("tokens", {})}
    for name in wanted.get("unnamed", ()):
        named.pop(name, None)
    found = set(re.findall(r"[\"'](<[^\"'<>\s]{1,40}>|\[[A-Z_]+\])[\"']", source))
    found |= set(re.findall(r"(?:_TOKEN|_token)(?:: str)? ?= ?\"([^\"\s]+)\"", source))
    special = [*BASE, *sorted(found | set(named.values()) - set(BASE))]
    special = list(dict.fromkeys(special))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*special, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, add_bos_token=False, add_eos_token=False,
        pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", extra_special_tokens=named,
    )  # fmt: skip
    fast.add_special_tokens({"additional_special_tokens": special}, False)
    fast.named_tokens = named
    return fast


@contextmanager
def absent_parts() -> Any:
    """Lets a processor do without parts whose packages are not installed."""
    check = ProcessorMixin.check_argument_for_proper_class

    def lenient(self: Any, name: str, argument: Any) -> Any:
        return None if argument is None else check(self, name, argument)

    ProcessorMixin.check_argument_for_proper_class = lenient  # type: ignore[method-assign]
    try:
        yield
    finally:
        ProcessorMixin.check_argument_for_proper_class = check  # type: ignore[method-assign]


def build_part(kind: str, mapping: Any, settings: dict[str, Any]) -> Any:
    """An image, video or audio processor of a family, None where its package is missing."""
    names = mapping.get(kind)
    names = list(names.values()) if isinstance(names, dict) else [names]
    for name in names:
        try:
            part = getattr(transformers, name)
            takes = inspect.signature(part.__init__).parameters
            open_ended = any(p.kind is p.VAR_KEYWORD for p in takes.values())
            return part(**{k: v for k, v in settings.items() if open_ended or k in takes})
        except (ImportError, TypeError, AttributeError):
            continue
    return None


def processor_of(kind: str) -> Any:
    """A family's own processor over a toy tokenizer."""
    wanted = PROCESSORS.get(kind, {})
    alias = wanted.get("kind", kind)
    name = wanted["class"] if "class" in wanted else PROCESSOR_MAPPING_NAMES[alias]
    found = getattr(transformers, name)
    module = sys.modules[found.__module__]
    if getattr(module, "num2words", "") is None:
        module.num2words = str
    tokenizer = build_tokenizer(kind, module)
    parts: dict[str, Any] = {"tokenizer": tokenizer}
    accepted = inspect.signature(found.__init__).parameters
    if "image_processor" in accepted:
        parts["image_processor"] = build_part(
            alias, IMAGE_PROCESSOR_MAPPING_NAMES, wanted.get("image", {})
        )
    if "video_processor" in accepted:
        parts["video_processor"] = build_part(
            alias, VIDEO_PROCESSOR_MAPPING_NAMES, wanted.get("video", {})
        )
    if "feature_extractor" in accepted:
        ears = {kind: wanted["ears"]} if "ears" in wanted else FEATURE_EXTRACTOR_MAPPING_NAMES
        parts["feature_extractor"] = build_part(kind, ears, wanted.get("audio", {}))
    with absent_parts():
        processor = found(**parts, **wanted.get("more", {}))
    processor.chat_template = chat_template(processor, wanted)
    return processor


def chat_template(processor: Any, wanted: dict[str, Any]) -> str:
    """The toy chat template, with this family's placeholders."""
    text = CHAT
    for modality in ("image", "video", "audio"):
        token = wanted.get(modality + "_text")
        token = token or getattr(processor, f"{modality}_token", None) or ""
        if wanted.get(modality + "_text") is None and modality == "image":
            token += "\n"  # two pictures side by side are two
        text = text.replace(modality.upper(), token)
    return text


def build(kind: str, seed: int = 0) -> tuple[Any, Any]:
    """A family's model and processor at toy size, weights drawn wide."""
    processor = processor_of(kind)
    config = config_of(kind)
    set_tokens(config, processor)
    for name, token in PROCESSORS.get(kind, {}).get("ids", {}).items():
        setattr(config, name, processor.tokenizer.convert_tokens_to_ids(token))
    if getattr(config, "vocabulary_map", None):
        config.vocabulary_map["<image>"] = config.image_token_id
    torch.manual_seed(seed)
    model = model_class(kind)(config).eval()
    draw(model, seed)
    return model, processor


def set_tokens(config: Any, processor: Any) -> None:
    """Writes the processor's token ids into a configuration, by name."""
    tokenizer = processor.tokenizer
    own = {k: v for k, v in vars(processor).items() if k.endswith("_token")}
    if "boi_token" in own:  # Gemma's processors call the opening mark their image token
        own.pop("image_token", None)
    elif isinstance(number := getattr(processor, "image_token_id", None), int):
        own["image_token"] = tokenizer.convert_ids_to_tokens(number)
    for name, token in {**tokenizer.named_tokens, **own}.items():
        number = tokenizer.convert_tokens_to_ids(token) if isinstance(token, str) else None
        for field in (f"{name}_id", f"{name}_index"):
            if number is not None and hasattr(config, field):
                setattr(config, field, number)
    for part in (config, config.get_text_config()):
        for name, value in (("pad_token_id", 0), ("bos_token_id", 1), ("eos_token_id", 2)):
            setattr(part, name, value)


def draw(model: torch.nn.Module, seed: int) -> None:
    """Draws weights anew, so that pictures make a difference, and projections are not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15, generator=generator)
            elif not parameter.any():
                parameter.normal_(std=0.05, generator=generator)
