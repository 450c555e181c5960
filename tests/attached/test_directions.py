"""A family that reads prompts in both directions reads answers in one, whatever stands in front."""

import pytest
import torch


@pytest.fixture
def one(case):
    found = case("paligemma")
    found.draw()
    return found


@torch.no_grad()
def losses(one, rows, answers):
    return one.model(**one.batch(rows, answers)).token_losses


@pytest.mark.parametrize("shown", [False, True])
def test_a_token_does_not_see_those_behind_it(one, shown):
    """Nor does a text-only row, which transformers alone would read in both directions."""
    image = one.small if shown else None
    short, long = (losses(one, [(image, "why?")], [a]) for a in ("so", "so it is"))
    torch.testing.assert_close(short[:2], long[:2])


def test_text_beside_pictures_is_read_as_alone(one):
    rows = [(one.small, "what is it?"), (None, "why?")]
    alone = [losses(one, [row], ["so"]) for row in rows]
    torch.testing.assert_close(losses(one, rows, ["so", "so"]), torch.cat(alone))


@pytest.mark.parametrize("shown", [False, True])
def test_options_are_ranked_by_what_training_would_lower(one, shown):
    image = one.small if shown else None
    options = one.placed(dict(one.processor.options([["so", "not at all"]])))
    ranked = one.model.option_losses(**options, **one.batch([(image, "why?")]))
    for found, answer in zip(ranked, ["so", "not at all"], strict=True):
        expected = losses(one, [(image, "why?")], [answer])
        torch.testing.assert_close(found[: len(expected)], expected)
