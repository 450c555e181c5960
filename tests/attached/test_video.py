"""Videos as lists of frames: a branch of their own, with a gradient of its own."""

import pytest
import torch

from crome.model.stages import apply_stage
from crome.rows import Row

pytest.importorskip("torchvision", reason="video processors of transformers need torchvision")


def test_frames_go_through_the_branch_of_videos(case, pictures, tmp_path):
    one = case("qwen2_5_vl")
    frames = tuple(tmp_path / f"{number}.png" for number in range(4))
    for number, frame in enumerate(frames):
        pictures[number % len(pictures)].resize((64, 64)).save(frame)
    batch = one.processor.encode([Row((), "what?", "red", "1", videos=(frames,))], answers=True)
    assert "pixel_values_videos" in batch["media"][0]
    one.draw()
    apply_stage(one.model, "finetune")
    loss = one.model(**batch).loss
    loss.backward()
    assert one.model.adapter.down["video"].weight.grad.abs().sum() > 0
    assert one.model.adapter.down["image"].weight.grad is None
    with torch.no_grad(), one.model.disable_adapter():
        assert one.model(**batch).loss != loss
    one.model.zero_grad()
