"""Models that are prepared for decoding on a CPU answer as before, up to bfloat16's rounding."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from crome.model import decoding
from crome.model.decoding import decode_fast
from crome.model.fused import FusedLayer, Packed

pytestmark = pytest.mark.skipif(
    not decoding._offered(), reason="this processor has no bfloat16 products of oneDNN"
)
SIZE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def faster(monkeypatch):
    """As if packed weights were faster; what holds is the machine's affair."""
    monkeypatch.setattr(decoding, "_faster", lambda linears: True)


class Holder:
    """The little that is asked of a model."""

    def __init__(self, language_model):
        self.language_model = language_model
        self.get_input_embeddings = language_model.get_input_embeddings
        self.get_output_embeddings = language_model.get_output_embeddings

    def base_identity(self):
        return {}


def language_model(config, **settings):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(**SIZE, **settings)).eval()
    for weight in model.parameters():  # large enough for attention to matter
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.3)
        else:
            weight.data += 0.1 * torch.randn_like(weight)
    return model


@torch.inference_mode()
def walked(model):
    """Logits of two rows, one of them padded: a prompt, then three tokens one by one."""
    ids = torch.arange(1, 19).view(2, 9)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :2] = 0
    places = (mask.cumsum(1) - 1).clamp(min=0)
    cache, found = DynamicCache(config=model.config), []
    for begin, end in ((0, 6), (6, 7), (7, 8), (8, 9)):
        logits = model(
            input_ids=ids[:, begin:end], attention_mask=mask[:, :end],
            position_ids=places[:, begin:end], past_key_values=cache, use_cache=True,
        ).logits  # fmt: skip
        found.append(logits[:, -1].float())
    return torch.stack(found)


def is_fused(model):
    return [isinstance(layer.forward, FusedLayer) for layer in model.get_decoder().layers]


@pytest.mark.parametrize(
    ("config", "settings", "fused"),
    [
        (LlamaConfig, {}, True),
        (LlamaConfig, {"tie_word_embeddings": True, "mlp_bias": True}, True),
        (MistralConfig, {"sliding_window": 4}, True),
        (Qwen2Config, {}, True),  # with biases
        (Qwen3Config, {}, True),  # with norms of heads
        (GemmaConfig, {"hidden_activation": "gelu_pytorch_tanh"}, False),  # norms of its own
    ],
)
def test_logits_are_those_of_float32_as_before(config, settings, fused):
    exact = walked(language_model(config, **settings))
    model = language_model(config, **settings).to(torch.bfloat16)
    model.set_attn_implementation("sdpa")
    before = (walked(model) - exact).norm() / exact.norm()
    assert decode_fast(Holder(model))
    assert is_fused(model) == [fused, fused]
    assert isinstance(model.lm_head.forward, Packed)
    after = (walked(model) - exact).norm() / exact.norm()
    assert after < max(1.5 * float(before), 0.03)


def test_a_model_that_reads_weights_of_its_layers_is_left_alone():
    model = language_model(LlamaConfig).to(torch.bfloat16)
    own = model.model.layers[1].mlp
    call = own.forward
    own.forward = lambda hidden: call(hidden.to(own.up_proj.weight.dtype))
    before = walked(model)
    assert not decode_fast(Holder(model))
    assert own.up_proj.weight is not None
    torch.testing.assert_close(walked(model), before)


def test_weights_are_held_once():
    model = language_model(LlamaConfig, tie_word_embeddings=True).to(torch.bfloat16)
    model.set_attn_implementation("sdpa")
    decode_fast(Holder(model))
    left = {name for name, _ in model.named_parameters()}
    assert "model.embed_tokens.weight" in left
    assert not any("proj" in name for name in left)


def test_a_layer_that_computes_otherwise_is_not_fused():
    model = language_model(LlamaConfig).to(torch.bfloat16)
    model.set_attn_implementation("sdpa")
    first, _ = model.model.layers
    own = type(first).forward
    first.forward = lambda hidden, **given: 2 * own(first, hidden, **given)
    decode_fast(Holder(model))
    assert is_fused(model) == [False, True]


def test_eager_attention_that_was_asked_for_stays(build):
    model = build().model.to(torch.bfloat16)
    model.language_model.set_attn_implementation("eager")
    decode_fast(model)
    assert model.language_model.config._attn_implementation == "eager"
    assert is_fused(model.language_model) == [False] * len(model.language_model.model.layers)


def test_adapters_are_still_compared_with_the_base(build, tmp_path):
    model = build().model.to(torch.bfloat16)
    model.save_adapter(tmp_path)
    decode_fast(model, free_attention=True)
    model.load_adapter(tmp_path, "again")


def test_float32_is_left_as_it_is(build):
    model = build().model
    before = model.language_model.config._attn_implementation
    assert not decode_fast(model, free_attention=True)
    assert model.language_model.config._attn_implementation == before
    assert isinstance(model.language_model.lm_head.weight, torch.nn.Parameter)


def test_the_trial_measures_both_ways(build, monkeypatch):
    """On this machine; which is faster is its own affair."""
    monkeypatch.undo()
    model = build().model.to(torch.bfloat16)
    linears = decoding._linears(model.language_model, model.get_output_embeddings())
    assert decoding._faster(linears) in (True, False)
