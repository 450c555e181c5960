"""Towers of families that once gave wrong answers, and those that are refused by name."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, ViTForImageClassification

from crome.errors import InputError
from crome.model.bridge import tower_fingerprints
from crome.model.encoders import encoder_class, vision_width
from crome.model.families import check_family
from crome.model.language import build_language_model
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor
from crome.model.vision import load_vision_model

# The same fp32 sums in another order.
CLOSE = {"rtol": 2e-5, "atol": 2e-5}
# A gated delta rule solves a triangular system in float32, which enlarges rounding: the logits,
# of up to 5, differ by 3e-5 over 20 seeds on one machine and by 6e-5 on another.
ENLARGED = {"rtol": 3e-4, "atol": 3e-4}
IDS = {"vocab_size": 320, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL = IDS | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
ENCODER = {
    "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14, "initializer_range": 0.2,
}  # fmt: skip
SEQ2SEQ = IDS | {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "init_std": 0.2,
    "max_position_embeddings": 256, "decoder_start_token_id": 2,
}  # fmt: skip
ROTARY = SMALL | {"intermediate_size": 48, "num_key_value_heads": 2, "initializer_range": 0.2}
LANGUAGE = {
    # positions by place in the sequence: ALiBi, local windows
    "Mpt": IDS | {"d_model": 32, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2},
    "Falcon": SMALL | {"alibi": True, "multi_query": False, "initializer_range": 0.2},
    "GPTNeo": IDS | {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 6,
                     "attention_types": [[["global", "local"], 1]], "initializer_range": 0.2},
    # a state instead of attention, which padding must not enter
    "Mamba": IDS | {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8,
                    "initializer_range": 0.2},
    "Qwen3_5Text": SMALL | {
        "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.2,
        "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 4,
        "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    },
    # embeddings narrower than the layers
    "OPT": SMALL | {"word_embed_proj_dim": 16, "do_layer_norm_before": False, "ffn_dim": 48},
    # the text half of a model that sees
    "Gemma3": {
        "text_config": SMALL | {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8,
                                "sliding_window": 6, "initializer_range": 0.2},
        "vision_config": ENCODER, "mm_tokens_per_image": 4,
    },
    # encoders with positions from the first place; scaled words; no shift of their own
    "Bart": SEQ2SEQ,
    "Pegasus": SEQ2SEQ | {"scale_embedding": True},
    "M2M100": SEQ2SEQ,
    # an encoder with words of its own
    "Bart untied": SEQ2SEQ | {"tie_word_embeddings": False},
    # positions by place in the row, padding on the left included
    "TrOCR": IDS | {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4,
                    "decoder_ffn_dim": 48, "init_std": 0.2, "max_position_embeddings": 256,
                    "decoder_start_token_id": 2, "cross_attention_hidden_size": 32},
    # positions that are scaled by the longest row
    "Llama dynamic": ROTARY | {
        "max_position_embeddings": 24,
        "rope_parameters": {"rope_type": "dynamic", "factor": 20.0, "rope_theta": 100.0}},
    "Phi3 longrope": ROTARY | {
        "max_position_embeddings": 512, "original_max_position_embeddings": 24,
        "rope_parameters": {"rope_type": "longrope", "rope_theta": 100.0,
                            "original_max_position_embeddings": 24,
                            "short_factor": [1.0] * 4, "long_factor": [8.0, 4.0, 2.0, 1.5]}},
    # attention that picks its keys
    "DeepseekV32": ROTARY | {
        "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
        "index_topk": 8, "index_n_heads": 2, "index_head_dim": 16, "n_shared_experts": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def join(build, towers, tmp_path_factory):
    usual = build(language="vicuna")
    names = ("num_query_tokens", "adapter_bottleneck", "max_question_tokens", "max_answer_tokens")
    settings = {name: getattr(usual.model.config, name) for name in names}
    settings["qformer_config"] = usual.model.config.qformer_config.to_dict()

    def join(family: str):
        folder = tmp_path_factory.mktemp(family)
        torch.manual_seed(2)
        config = getattr(transformers, f"{family.split()[0]}Config")(**LANGUAGE[family])
        build_language_model(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(towers.language("vicuna")).save_pretrained(folder)
        model = CromeForConditionalGeneration.from_backbones(
            towers.vision("clip"), str(folder), dtype=torch.float32, **settings
        )
        for parameter in model.adapter.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        processor = CromeProcessor.from_config(model.config, usual.processor.qformer_tokenizer)
        return type(usual)(model, processor)

    return join


@pytest.mark.parametrize("family", LANGUAGE)
def test_a_batch_says_and_ranks_what_its_rows_do_alone(join, rows, pictures, family):
    pair = join(family)
    close = ENLARGED if family == "Qwen3_5Text" else CLOSE
    mixed = [*rows, (None, "Is there a circle?", "no"), (pictures[:2], "How?", "2")]
    alone = [pair.model(**pair.batch([row])).token_losses for row in mixed]
    together = pair.model(**pair.batch(mixed)).token_losses
    torch.testing.assert_close(together, torch.cat(alone), **close)
    shared = pair.model(**pair.batch(rows)).token_losses
    torch.testing.assert_close(shared, torch.cat(alone[:3]), **close)
    for asked in (rows, mixed):
        assert pair.say(asked) == [pair.say([row])[0] for row in asked]
    batch = pair.batch([row[:2] for row in rows])
    batch |= pair.processor.options([[row[2]] for row in rows])
    losses = pair.model.option_losses(**batch)[batch["option_ids"] != -100]
    torch.testing.assert_close(losses, torch.cat(alone[:3]), **close)
    if not pair.processor.is_encoder_decoder:
        whole = pair.model(**pair.batch([row[:2] for row in mixed])).logits
        for number, row in enumerate(mixed):
            (own,) = pair.model(**pair.batch([row[:2]])).logits
            torch.testing.assert_close(whole[number, : len(own)], own, **close)
    text = pair.batch([(None, *row[1:]) for row in rows])
    if pair.processor.is_encoder_decoder:  # the bare model, fed with ids
        theirs = pair.model.language_model(
            input_ids=text["input_ids"], attention_mask=text["attention_mask"],
            decoder_input_ids=torch.nn.functional.pad(text["labels"][:, :-1], (1, 0), value=2)
            .masked_fill(torch.nn.functional.pad(text["labels"][:, :-1], (1, 0)) < 0, 0),
        ).logits[text["labels"] != -100]  # fmt: skip
        torch.testing.assert_close(pair.model(**text).logits, theirs, **close)


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("Bert", {}, "reads text in both directions"),
        ("BertGeneration", {}, "reads text in both directions"),
        ("BertGeneration", {"is_decoder": False}, "reads text in both directions"),
        ("Rwkv", {}, "does not mask padding"),
        ("Bamba", {}, "cannot generate from embeddings"),
        ("Gemma3nText", {}, "reads token ids in every layer"),
        ("CLIPVision", {}, "is not among those of AutoModelForCausalLM"),
    ],
)
def test_language_models_that_would_answer_wrongly_are_refused(family, settings, reason):
    config = getattr(transformers, f"{family}Config")(**settings)
    with pytest.raises(InputError, match=f"{reason}.*; expected a causal language model"):
        check_family(config, AutoModelForCausalLM)


def test_a_language_model_without_its_head_is_refused(towers, tmp_path):
    transformers.LlamaModel(
        transformers.LlamaConfig(**SMALL, intermediate_size=48)
    ).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"cannot be loaded: it lacks lm_head\.weight"):
        CromeForConditionalGeneration.from_backbones(towers.vision("clip"), str(tmp_path))


# ---------------------------------------------------------------------- encoders


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("Siglip2Vision", {}, "wants pixel_attention_mask and spatial_shapes beside the pixels"),
        ("ViTMAE", {}, "hides random patches from itself"),
        ("VideoMAE", {}, "reads videos"),
        ("XCLIPVision", {}, "reads videos"),
        ("Bert", {}, r"does not take pictures \(pixel_values\)"),
    ],
)
def test_encoders_that_read_something_else_are_refused(family, settings, reason):
    config = getattr(transformers, f"{family}Config")(**settings)
    with pytest.raises(InputError, match=f"{reason}; expected an encoder of pictures"):
        encoder_class(config)


@pytest.mark.parametrize(
    ("family", "width"),
    [("ResNet", 2048), ("ConvNext", 768), ("FocalNet", 768), ("PvtV2", 256), ("SamVision", 256)],
)
def test_widths_of_encoders_whose_configs_name_none_or_another(family, width):
    assert vision_width(getattr(transformers, f"{family}Config")()) == width


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "family",
    ["ConvNext", "ConvNextV2", "DINOv3ConvNext", "RegNet", "PvtV2", "FocalNet", "PoolFormer",
     "MobileViTV2", "ResNet", "EfficientNet"],
)  # fmt: skip
def test_widths_do_not_depend_on_the_type_of_the_weights(family, dtype):
    config = getattr(transformers, f"{family}Config")()
    expected = vision_width(config)
    config.dtype = dtype
    assert vision_width(config) == expected


@pytest.mark.parametrize("kind", ["Blip2", "Llava"])
def test_the_tower_of_a_vision_language_model_is_its_own(tmp_path, kind):
    """Loaded under a wrong name it would be drawn at random, with no more than a warning."""
    text = SMALL | {"model_type": "llama", "intermediate_size": 48}
    parts = {"vision_config": ENCODER, "text_config": text}
    if kind == "Llava":
        parts["vision_config"] = ENCODER | {"model_type": "clip_vision_model"}
    else:
        parts["qformer_config"] = SMALL | {"intermediate_size": 48}
    config = getattr(transformers, f"{kind}Config")(**parts)
    whole = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    whole.save_pretrained(tmp_path)
    tower = whole.vision_model if kind == "Blip2" else whole.model.vision_tower
    pixels = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        loaded = load_vision_model(str(tmp_path))(pixel_values=pixels).last_hidden_state
        expected = tower(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(loaded, expected)


def test_a_classifier_is_the_same_tower_each_time(tmp_path):
    """It has no pooler; one drawn at random would make every adapter another base's."""
    ViTForImageClassification(transformers.ViTConfig(**ENCODER)).save_pretrained(tmp_path)
    first, second = (
        tower_fingerprints(
            SimpleNamespace(  # type: ignore[arg-type]
                vision_model=load_vision_model(str(tmp_path)), language_model=torch.nn.Linear(1, 1)
            )
        )["vision_fingerprint"]
        for _ in range(2)
    )
    assert first == second
