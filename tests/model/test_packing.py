"""Packed sequences: who stands where, who sees whom."""

import itertools

import torch

from crome.model.packing import Packing, first_fit

# Three images of two tokens; questions of 3, 1, 2 and 1 tokens on images 0, 0, 1 and 2.
REAL = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 0, 0]], dtype=torch.bool)
IMAGE = torch.tensor([0, 0, 1, 2])


def test_pieces_go_into_the_first_sequence_with_room():
    total, begins = first_fit([3, 7, 4, 2, 1])
    assert (total, begins) == (7, [11, 0, 7, 14, 16])
    ends = sorted((b, b + n) for b, n in zip(begins, [3, 7, 4, 2, 1], strict=True))
    assert all(end <= after for (_, end), (after, _) in itertools.pairwise(ends))


def test_every_token_has_a_place_of_its_own_and_comes_back():
    packing = Packing.plan(2, REAL, IMAGE, 3)
    assert packing.image.shape == (3, 6)  # the longest, then 4 and 3, which do not fit together
    prefix = torch.arange(6.0).view(3, 2, 1)
    suffix = 10 + torch.arange(12.0).view(4, 3, 1)
    packed = packing.fill(prefix, suffix).flatten()
    assert torch.equal(packed[packing.shown], prefix[..., 0])
    assert torch.equal(packed[packing.place[REAL]], suffix[..., 0][REAL])
    assert (packing.question >= 0).sum() == 6 + REAL.sum()


def test_a_token_sees_its_image_and_its_own_question_up_to_itself():
    packing = Packing.plan(2, REAL, IMAGE, 3)
    seen = packing.mask(torch.float32)[:, 0] == 0
    for s, sequence in enumerate(zip(packing.image, packing.question, strict=True)):
        tokens = list(zip(*(part.tolist() for part in sequence), strict=True))
        for i, (image, question) in enumerate(tokens):
            for j, (other, asked) in enumerate(tokens):
                expected = j <= i and other == image and asked in (0, question)
                if image >= 0:
                    assert seen[s, i, j] == expected
    assert seen.any(2).all()  # padding sees itself: an empty softmax would be no number


def test_positions_count_as_if_every_question_were_alone_with_its_image():
    packing = Packing.plan(2, REAL, IMAGE, 3)
    flat = packing.positions.flatten()
    assert flat[packing.shown].tolist() == [[0, 1]] * 3
    assert flat[packing.place[REAL]].tolist() == [2, 3, 4, 2, 2, 3, 2]


def test_images_with_few_questions_share_a_sequence():
    packing = Packing.plan(2, torch.ones(4, 2, dtype=torch.bool), torch.tensor([0, 0, 0, 1]), 2)
    assert packing.image.shape == (2, 8)
    packing = Packing.plan(2, torch.ones(5, 2, dtype=torch.bool), torch.tensor([0, 0, 0, 1, 2]), 3)
    assert packing.image.shape == (2, 8)  # images 1 and 2 behind each other
    assert not (packing.question < 0).any()


def test_a_head_is_seen_by_every_token():
    packing = Packing.plan(2, REAL, IMAGE, 3)
    mask = packing.mask(torch.float32, head=4)
    assert mask.shape == (3, 1, 6, 10)
    assert (mask[..., :4] == 0).all()
    assert torch.equal(mask[..., 4:], packing.mask(torch.float32))
