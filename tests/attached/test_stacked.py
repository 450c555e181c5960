"""Pictures of several rows in one pass of a tower, against one row at a time."""

import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("benchmarks/ is not part of this installation", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

from families import Case, picture  # noqa: E402

from crome.attached.stacked import Stacked, shapes, tensors  # noqa: E402

TOGETHER = ("llava", "qwen2_5_vl", "qwen3_vl", "smolvlm", "gemma3", "internvl", "glm4v",
            "llava_next", "aya_vision", "idefics3", "granite4_vision", "ovis2",
            "llava_onevision", "deepseek_vl")  # fmt: skip


def sets(case: Case) -> list[dict]:
    """Five rows' media: three of one shape, one of another, one with both."""
    small = [picture(60, 44, seed) for seed in (1, 2, 3)]
    shown = [small[0], case.large, small[1], [small[2], case.large], small[2]]
    return case.batch([(one, "what?") for one in shown])["media"]


@pytest.mark.gpu
@pytest.mark.parametrize("family", TOGETHER)
def test_every_set_is_what_it_is_by_itself(family, device):
    case = Case(family, device)
    media, dtype = sets(case), case.vlm.dtype
    encoder = case.model.encoder
    alone = [encoder(one, dtype) for one in media]
    passes = []

    def counted(one, dtype):
        passes.append(shapes(one))
        return encoder(one, dtype)

    stacked = Stacked(counted)
    for expected in (None, stacked.suits):  # the first time is the trial
        assert expected is not False
        passes.clear()
        for found, right in zip(stacked(media, dtype), alone, strict=True):
            assert found.keys() == right.keys()
            for ours, theirs in zip(tensors(found), tensors(right), strict=True):
                torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    assert stacked.suits
    assert len(passes) == len({shapes(one) for one in media}) < len(media)


def test_a_tower_that_mixes_rows_is_not_stacked():
    case = Case("llava")
    media, dtype = sets(case), case.vlm.dtype
    encoder = case.model.encoder

    def mixing(one, dtype):
        found = encoder(one, dtype)
        found["image"].pooler_output = [x + one["pixel_values"].mean() for x in
                                        found["image"].pooler_output]  # fmt: skip
        return found

    stacked = Stacked(mixing)
    found = stacked(media, dtype)
    assert stacked.suits is False
    for ours, one in zip(found, media, strict=True):
        torch.testing.assert_close(tensors(ours), tensors(mixing(one, dtype)))


def test_an_error_of_one_pass_is_left_to_the_sets():
    stacked = Stacked(lambda one, _: {"image": one["pixel_values"].sum()} if
                      len(one["pixel_values"]) == 1 else 1 / 0)  # fmt: skip
    media = [{"pixel_values": torch.ones(1, 3)}] * 3
    assert [one["image"].item() for one in stacked(media, torch.float32)] == [3, 3, 3]
    assert stacked.suits is False


def test_recordings_and_lists_of_numbers_stay_apart():
    assert shapes({"input_features": torch.ones(1, 2)}) is None
    assert shapes({"pixel_values": torch.ones(1, 2), "counts": [1]}) is None
    assert shapes({"pixel_values_videos": torch.ones(1, 2)}) is None
