"""How many questions share a prefix: many short ones, few long ones."""

import pytest
import torch

from crome.model.prefix import pieces, worth_sharing


def cost(n, m, width, together):
    """Of a question, in pairs of tokens, as `worth_sharing` counts them."""
    return width * (m + n / together) + (n + together * m) ** 2 / together


@pytest.mark.parametrize("width", [64, 576, 4096])
@pytest.mark.parametrize("length", [8, 30, 100, 300, 1000])
@pytest.mark.parametrize("prefix", [49, 256])
def test_the_number_is_near_the_cheapest_of_all(prefix, length, width):
    real = torch.ones(6, length, dtype=torch.bool)
    chosen = worth_sharing(prefix, real, width)
    least = min(cost(prefix, length, width, together) for together in range(1, 400))
    assert cost(prefix, length, width, chosen) < 1.1 * least


def test_a_prefix_is_for_as_many_questions_as_are_worth_it():
    image = torch.tensor([1, 0, 1, 1, 2, 1, 1])
    shown, piece = pieces(image, 2)
    assert shown.tolist() == [0, 1, 1, 1, 2]
    assert piece.tolist() == [1, 0, 1, 2, 4, 2, 3]
    assert torch.equal(shown[piece], image)
    alone, each = pieces(image, 1)
    assert torch.equal(alone[each], image)
    assert len(each.unique()) == len(image)
    together, of = pieces(image, 9)
    assert (together.tolist(), of.tolist()) == ([0, 1, 2], image.tolist())
