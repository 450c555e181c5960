"""Named configurations: the paper's models, its two predecessors, and the small packaged base."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertTokenizer,
    InstructBlipQFormerModel,
    PreTrainedTokenizerBase,
)

from crome import assets
from crome.errors import InputError
from crome.model.configuration import CromeConfig
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor

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
    "patch_feature_layer": -1,  # a convolutional encoder has one map worth reading
    "normalize_features": True,
    "max_answer_tokens": 64,
}
PRESETS: dict[str, dict[str, Any]] = {
    f"{system}-{language}": {**EVA_VIT_G, **LANGUAGE[language], **SYSTEMS[system]}
    for system in SYSTEMS
    for language in LANGUAGE
} | {"crome-tiny": TINY}


def preset_config(name: str) -> CromeConfig:
    """The configuration of a preset.

    Raises:
        InputError: No such preset.
    """
    if name not in PRESETS:
        raise InputError(f"no preset {name!r}; there are {', '.join(PRESETS)}.")
    settings = dict(PRESETS[name])
    if name == "crome-tiny":
        settings |= {
            key: _tower_config(settings[f"{tower}_model_id"])
            for key, tower in (("vision_config", "vision"), ("text_config", "language"))
        }
    return CromeConfig(**settings)


def _tower_config(asset: str) -> dict[str, Any]:
    from transformers import AutoConfig

    folder = assets.resolve(asset.removeprefix("asset:"))
    return dict(AutoConfig.from_pretrained(folder).to_dict())


def on_meta(name: str) -> CromeForConditionalGeneration:
    """A preset at full size without its weights: shapes only."""
    with torch.device("meta"):
        return CromeForConditionalGeneration(preset_config(name))


def fresh_tiny(**language_kwargs: Any) -> tuple[CromeForConditionalGeneration, CromeProcessor]:
    """The packaged towers with an untrained bridge; the Q-Former starts from a sentence encoder."""
    settings = {k: v for k, v in TINY.items() if not k.endswith("_model_id")}
    model = CromeForConditionalGeneration.from_backbones(
        TINY["vision_model_id"], TINY["language_model_id"], dtype=torch.bfloat16,
        language_kwargs=language_kwargs, **settings
    )
    folder = assets.resolve("minilm-l6")
    tokenizer, kept = reduced_tokenizer(folder, TINY["qformer_config"]["vocab_size"])
    initialise_qformer(model.qformer, AutoModel.from_pretrained(folder), kept)
    return model, CromeProcessor.from_config(model.config, tokenizer)


def reduced_tokenizer(folder: Path, size: int) -> tuple[PreTrainedTokenizerBase, torch.Tensor]:
    """A WordPiece tokenizer with fewer entries, and the ids it keeps.

    Kept are the special tokens, all ASCII characters, and the first ASCII words in the order of the
    vocabulary, which is roughly that of frequency; other words fall into pieces.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = [word for word in tokenizer.all_special_tokens]
    plain = [w for w, _ in words if w.removeprefix("##").isascii() and not w.startswith("[")]
    characters = [w for w in plain if len(w.removeprefix("##")) == 1]
    longer = [w for w in plain if len(w.removeprefix("##")) > 1]
    chosen = list(dict.fromkeys(["[PAD]", *special, *characters, *longer]))[:size]
    vocabulary = tokenizer.get_vocab()
    kept = torch.tensor([vocabulary[word] for word in chosen])
    return BertTokenizer(vocab={word: i for i, word in enumerate(chosen)}), kept


@torch.no_grad()
def initialise_qformer(qformer: InstructBlipQFormerModel, bert: nn.Module, kept: torch.Tensor) -> None:
    """Copies a BERT's embeddings, self-attention and feed-forwards into a Q-Former.

    The query path's feed-forward starts as a copy of the text path's, as in BLIP-2; cross-attention
    stays random. A narrower feed-forward keeps the neurons with the largest weights.

    Args:
        qformer: Width equal to the BERT's; at most as many layers.
        bert: A BERT encoder.
        kept: Ids of the BERT's vocabulary that the Q-Former keeps, in its own order.
    """
    source, target = bert.embeddings, qformer.embeddings
    words = source.word_embeddings.weight[kept] + source.token_type_embeddings.weight[0]
    target.word_embeddings.weight.copy_(words)
    positions = target.position_embeddings.weight
    positions.copy_(source.position_embeddings.weight[: len(positions)])
    target.layernorm.load_state_dict(source.LayerNorm.state_dict())
    for new, old in zip(qformer.encoder.layer, bert.encoder.layer, strict=False):
        _copy(new.attention.attention.query, old.attention.self.query)
        _copy(new.attention.attention.key, old.attention.self.key)
        _copy(new.attention.attention.value, old.attention.self.value)
        _copy(new.attention.output.dense, old.attention.output.dense)
        new.attention.output.LayerNorm.load_state_dict(old.attention.output.LayerNorm.state_dict())
        inner, outer = old.intermediate.dense, old.output.dense
        strength = inner.weight.norm(dim=1) * outer.weight.norm(dim=0)
        top = strength.topk(new.intermediate.dense.out_features).indices.sort().values
        for intermediate, output in (
            (new.intermediate, new.output),
            (new.intermediate_query, new.output_query),
        ):
            intermediate.dense.weight.copy_(inner.weight[top])
            intermediate.dense.bias.copy_(inner.bias[top])
            output.dense.weight.copy_(outer.weight[:, top])
            output.dense.bias.copy_(outer.bias)
            output.LayerNorm.load_state_dict(old.output.LayerNorm.state_dict())


def _copy(new: nn.Linear, old: nn.Linear) -> None:
    new.load_state_dict(old.state_dict())

