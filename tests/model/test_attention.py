"""The Q-Former's attention: the weights it really uses, on the grid of the picture."""

import numpy as np
import pytest
import torch

from crome.model.attention import attention_picture, grid, query_attention, shaded
from crome.rows import Row


def test_weights_are_those_of_the_q_former(build, pictures):
    """Against what its own eager attention returns; float32 sums in another order."""
    pair = build()
    batch = pair.batch([(pictures[0], "What is the colour?")])
    instruction = {k: v for k, v in batch.items() if k.startswith("qformer_")}
    weights = query_attention(pair.model, batch["pixel_values"], **instruction)
    pair.model.qformer.set_attn_implementation("eager")
    seen = []
    for layer in pair.model.qformer.encoder.layer:
        if hasattr(layer, "crossattention"):
            layer.crossattention.attention.register_forward_hook(lambda m, i, o: seen.append(o[1]))
    features = pair.model.visual_features(batch["pixel_values"])
    pair.model.visual_blocks(features, batch["image_index"], **instruction)
    queries = weights.shape[0]
    patches = torch.stack(seen).mean((0, 1, 2))[:queries, 1:]  # one class token in front
    expected = patches / patches.sum(1, keepdim=True)
    assert weights.shape[1:] == (2, 2)
    torch.testing.assert_close(weights.flatten(1), expected)


def test_the_model_is_left_as_it_is_for_other_threads(build, pictures, monkeypatch):
    """Its choice of attention is never changed, not even for a moment; nothing is copied."""
    pair = build()
    batch = pair.batch([(pictures[0], "What is the colour?")])
    qformer = pair.model.qformer
    chosen, seen = qformer.config._attn_implementation, []
    real = type(qformer).forward

    def forward(module, *args, **kwargs):
        seen.append((module.config._attn_implementation, qformer.config._attn_implementation))
        assert {id(p) for p in module.parameters()} == {id(p) for p in qformer.parameters()}
        return real(module, *args, **kwargs)

    monkeypatch.setattr(type(qformer), "forward", forward)
    instruction = {k: v for k, v in batch.items() if k.startswith("qformer_")}
    query_attention(pair.model, batch["pixel_values"], **instruction)
    assert seen == [("eager", chosen)]
    assert chosen != "eager"


@pytest.mark.parametrize(
    ("regions", "aspect", "expected"),
    [(49, 1, (7, 7)), (8, 0.5, (2, 4)), (8, 2, (4, 2)), (12, 0.75, (3, 4)), (7, 1, (1, 7))],
)
def test_regions_form_the_grid_of_the_picture(regions, aspect, expected):
    assert grid(regions, aspect) == expected


def test_no_q_former_no_picture(build, pictures):
    pair = build(branches=["patch"])
    row = Row((pictures[0],), "What?", "", "a")
    assert attention_picture(pair.model, pair.processor, row) is None


def test_what_is_not_looked_at_is_dark(pictures):
    weights = np.array([[1.0, 0.0], [0.0, 0.0]], dtype=np.float32)
    picture = pictures[0].resize((64, 64))
    pixels = np.asarray(shaded(picture, weights), dtype=float)
    before = np.asarray(picture, dtype=float)
    assert np.abs(pixels[:8, :8] - before[:8, :8]).mean() < 10
    # A quarter of the light is left, to the rounding of 8-bit pixels.
    assert pixels[-8:, -8:].mean() == pytest.approx(before[-8:, -8:].mean() / 4, abs=2)
