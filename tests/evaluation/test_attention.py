"""The Q-Former's attention: the weights it really uses, on the grid of the picture."""

import numpy as np
import pytest
import torch

from crome.data.rows import Row
from crome.evaluation.attention import attention_picture, query_attention, shaded


def test_weights_are_those_of_the_q_former(build, pictures):
    """Against what its own eager attention returns; float32 sums in another order."""
    pair = build()
    row = Row((pictures[0], pictures[1]), "What is the colour?", "", "a")
    weights = query_attention(pair.model, pair.processor, row)
    pair.model.qformer.set_attn_implementation("eager")
    seen = []
    for layer in pair.model.qformer.encoder.layer:
        if hasattr(layer, "crossattention"):
            layer.crossattention.attention.register_forward_hook(lambda m, i, o: seen.append(o[1]))
    batch = pair.batch([(pictures[0], "What is the colour?")])
    pair.model.visual_blocks(
        pair.model.visual_features(batch["pixel_values"]), batch["image_index"],
        batch["qformer_input_ids"], batch["qformer_attention_mask"],
    )  # fmt: skip
    patches = torch.stack(seen).mean((0, 1, 2, 3))[1:]  # one class token in front
    assert weights.shape == (2, 2)
    assert weights.flatten() == pytest.approx(patches.tolist(), rel=1e-5)
    assert 0 < weights.sum() < 1


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
