"""Named configurations: the paper's models, its two predecessors, and the small packaged base."""

from typing import Any

import torch
from transformers import AutoConfig

from crome.errors import InputError
from crome.model.configuration import CromeConfig
from crome.model.hub import tower_path
from crome.model.modeling import CromeForConditionalGeneration

VICUNA = {
    "7b": {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "13b": {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
}
FLAN_T5_XXL = {
    "model_type": "t5",
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "dense_act_fn": "gelu",  # InstructBLIP's checkpoints expect the exact form
    "scale_decoder_outputs": False,
    "vocab_size": 32128,
}
LANGUAGE: dict[str, dict[str, Any]] = {
    "vicuna-7b": {"text_config": VICUNA["7b"], "language_model_id": "lmsys/vicuna-7b-v1.5"},
    "vicuna-13b": {"text_config": VICUNA["13b"], "language_model_id": "lmsys/vicuna-13b-v1.5"},
    "flan-t5-xxl": {"text_config": FLAN_T5_XXL, "language_model_id": "google/flan-t5-xxl"},
}
EVA_VIT_G: dict[str, Any] = {
    "vision_config": {"model_type": "instructblip_vision_model", "qkv_bias": True},
    "vision_model_id": "Salesforce/instructblip-vicuna-7b",
    "qformer_config": {"vocab_size": 30523},
    "prompt_format": "bare",
}
SYSTEMS: dict[str, dict[str, Any]] = {
    "crome": {},
    "bliva": {"adapter_bottleneck": None, "visual_order": "queries_first"},
    "instructblip": {
        "adapter_bottleneck": None,
        "branches": ["query"],
        "visual_order": "queries_first",
    },
}
TINY: dict[str, Any] = {
    "vision_model_id": "asset:efficientnet-lite0",
    "language_model_id": "asset:smollm2-135m-instruct",
    "qformer_config": {
        "hidden_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 12,
        "intermediate_size": 768,
        "cross_attention_frequency": 1,
        "max_position_embeddings": 128,
        "vocab_size": 4096,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    "num_query_tokens": 8,
    "patch_feature_layer": -1,
    "normalize_features": True,
    "max_answer_tokens": 64,
}
PRESETS: dict[str, dict[str, Any]] = {
    f"{system}-{language}": {**EVA_VIT_G, **LANGUAGE[language], **SYSTEMS[system]}
    for system in SYSTEMS
    for language in LANGUAGE
} | {"crome-tiny": TINY}


def preset_config(name: str, **changes: Any) -> CromeConfig:
    """The configuration of a preset.

    Args:
        name: One of `PRESETS`.
        changes: Fields of `CromeConfig` that differ from it.

    Raises:
        InputError: No such preset, or no such field.
    """
    if unknown := changes.keys() - CromeConfig.__dataclass_fields__.keys():
        raise InputError(
            f"the model's configuration has no {', '.join(sorted(unknown))}; `CromeConfig` lists "
            "its fields."
        )
    if name not in PRESETS:
        raise InputError(f"no preset {name!r}; there are {', '.join(PRESETS)}.")
    settings = dict(PRESETS[name])
    if name == "crome-tiny":
        settings |= {
            key: AutoConfig.from_pretrained(tower_path(settings[f"{tower}_model_id"])).to_dict()
            for key, tower in (("vision_config", "vision"), ("text_config", "language"))
        }
    return CromeConfig(**settings | changes)


def on_meta(name: str, **changes: Any) -> CromeForConditionalGeneration:
    """A preset at full size without its weights: shapes only; `changes` as in `preset_config`."""
    with torch.device("meta"):
        return CromeForConditionalGeneration(preset_config(name, **changes))
