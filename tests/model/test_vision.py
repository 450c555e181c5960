"""Encoders: one pass for two layers, prefix tokens, checkpoints of single towers and of pairs."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from transformers import (
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipVisionConfig,
    SiglipVisionConfig,
)

from crome.assets.efficientnet import EfficientNetLiteConfig
from crome.model.configuration import CromeConfig
from crome.model.vision import load_vision_model, num_prefix_tokens, visual_features

PREFIX = {"eva": 1, "clip": 1, "siglip": 0, "dinov2": 1, "registers": 5, "vit": 1}
PATCHES = 4  # 28 pixels in patches of 14


def timm_like(patch_size) -> SimpleNamespace:
    return SimpleNamespace(patch_embed=SimpleNamespace(patch_size=patch_size))


@pytest.fixture
def load(towers, tiny_config):
    def load(name: str, **settings):
        config = tiny_config(vision=name, **settings)
        return load_vision_model(towers.vision(name), dtype=torch.float32), config

    return load


@pytest.mark.parametrize("name", PREFIX)
def test_conformance_6_one_pass_equals_two_and_prefix_tokens_stay_out_of_the_patches(load, name):
    model, config = load(name)
    pixels = torch.randn(2, 3, 28, 28)
    features = visual_features(model, pixels, config)
    with torch.no_grad():
        last = model(pixel_values=pixels).last_hidden_state
        states = model(pixel_values=pixels, output_hidden_states=True).hidden_states
    assert len(states) == 4  # embeddings and three blocks
    assert last.shape == (2, PREFIX[name] + PATCHES, 24)
    assert torch.equal(features.queries, last)
    assert torch.equal(features.patches, states[2][:, PREFIX[name] :])
    kept = visual_features(model, pixels, load(name, drop_prefix_tokens=False)[1])
    assert torch.equal(kept.patches, states[2])


def test_the_eva_output_has_its_norm_and_the_patch_layer_has_none(load):
    """K is LN(E39), P is E38 bare (`crome.md` 1.1, 5.4 and 5.6)."""
    model, config = load("eva")
    pixels = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        states = model(pixel_values=pixels, output_hidden_states=True).hidden_states
        expected = model.post_layernorm(states[-1])
    assert torch.equal(visual_features(model, pixels, config).queries, expected)


@pytest.mark.parametrize(
    ("model", "side", "tokens", "prefix"),
    [
        (SimpleNamespace(config=InstructBlipVisionConfig()), 224, 257, 1),
        (SimpleNamespace(config=SiglipVisionConfig(patch_size=14)), 384, 27**2, 0),
        (SimpleNamespace(config=EfficientNetLiteConfig(variant="lite2")), 260, 9**2, 0),
        (SimpleNamespace(config=None, timm_model=timm_like(16)), 224, 197, 1),
        (SimpleNamespace(config=None, timm_model=timm_like((14, 14))), 28, 4, 0),
        (SimpleNamespace(config=None, timm_model=timm_like(4)), 224, 7**2, 0),  # Swin
    ],
)
def test_prefix_tokens_are_what_the_grid_leaves_over(model, side, tokens, prefix):
    assert num_prefix_tokens(model, torch.empty(1, 3, side, side, device="meta"), tokens) == prefix


def test_a_convolutional_map_becomes_tokens_normalised_on_request(load):
    model, config = load("efficientnet", patch_feature_layer=-1, normalize_features=True)
    features = visual_features(model, torch.randn(2, 3, 64, 64), config)
    assert features.patches.shape == features.queries.shape == (2, 4, 1280)
    torch.testing.assert_close(features.patches.mean(-1), torch.zeros(2, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(features.patches.var(-1), torch.ones(2, 4), atol=1e-2, rtol=0)


def test_features_carry_no_gradient(load):
    model, config = load("eva")
    pixels = torch.randn(1, 3, 28, 28, requires_grad=True)
    features = visual_features(model, pixels, config)
    assert not features.queries.requires_grad
    assert not features.patches.requires_grad


@pytest.mark.parametrize("pair", ["CLIP", "Siglip"])
def test_the_tower_of_an_image_text_pair_is_loaded_whole(towers, tmp_path, pair):
    tower = {"CLIP": "clip", "Siglip": "siglip"}[pair]
    text = {"vocab_size": 20, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = load_vision_model(towers.vision(tower)).config.to_dict()
    config = getattr(transformers, f"{pair}Config")(text_config=text, vision_config=vision)
    whole = getattr(transformers, f"{pair}Model")(config).eval()
    whole.save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        expected = whole.vision_model(pixel_values=pixels).last_hidden_state
        loaded = load_vision_model(str(tmp_path))(pixel_values=pixels).last_hidden_state
    assert torch.equal(loaded, expected)


def test_the_tower_of_an_instructblip_checkpoint_is_loaded_whole(towers, tmp_path):
    vision = load_vision_model(towers.vision("eva")).config.to_dict()
    text = {"model_type": "opt", "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "ffn_dim": 8, "word_embed_proj_dim": 8}  # fmt: skip
    qformer = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
               "intermediate_size": 8, "encoder_hidden_size": 24, "vocab_size": 20}  # fmt: skip
    config = InstructBlipConfig(vision_config=vision, qformer_config=qformer, text_config=text)
    whole = InstructBlipForConditionalGeneration(config)
    whole.save_pretrained(tmp_path)
    loaded = load_vision_model(str(tmp_path)).state_dict()
    expected = whole.vision_model.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


@pytest.mark.parametrize("vision", [*PREFIX, "efficientnet"])
def test_conformance_15_every_encoder_family_trains_and_generates(build, rows, vision):
    convolutional = {"patch_feature_layer": -1} if vision == "efficientnet" else {}
    pair = build(vision=vision, **convolutional)
    pair.model.adapter.requires_grad_(True)
    optimizer = torch.optim.SGD(pair.model.adapter.parameters(), lr=1.0)
    batch = pair.batch(rows)
    loss = pair.model(**batch).loss
    loss.backward()
    optimizer.step()
    assert pair.model(**batch).loss != loss
    assert len(pair.say(rows, max_new_tokens=1)) == len(rows)
    other = batch | {"pixel_values": batch["pixel_values"].flip(0)}
    assert not torch.allclose(pair.model(**other).loss, pair.model(**batch).loss)


def test_conformance_15_timm_encoders():
    pytest.importorskip("timm", reason="timm is not installed; its wrapper is not tested")
    config = transformers.TimmWrapperConfig(architecture="vit_tiny_patch16_224")
    model = transformers.TimmWrapperModel(config).eval()
    crome = CromeConfig(vision_config=config.to_dict(), patch_feature_layer=-1)
    features = visual_features(model, torch.randn(1, 3, 224, 224), crome)
    assert features.queries.shape == (1, 197, 192)
    assert features.patches.shape == (1, 196, 192)
