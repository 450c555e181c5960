"""Ranking by loss: what is shared changes nothing but the work."""

import pytest
import torch

from crome.errors import InputError

# The same fp32 sums in another order; the worst seen is 1e-6 relative.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
OPTIONS = [["blue", "a red star", "12"], ["yes", "no"], ["yes, there is", "no", "blue", "12"]]


def independent(pair, rows, options) -> list[torch.Tensor]:
    """Token losses of a row for each option, each alone in its batch, nothing shared."""
    return [
        pair.model(**pair.batch([(image, question, option)])).token_losses
        for (image, question, *_), candidates in zip(rows, options, strict=True)
        for option in candidates
    ]


def check(pair, rows, options, **kwargs):
    batch = pair.batch([row[:2] for row in rows]) | pair.processor.options(options)
    losses = pair.model.option_losses(**batch, **kwargs)
    for mine, ids, theirs in zip(
        losses, batch["option_ids"], independent(pair, rows, options), strict=True
    ):
        torch.testing.assert_close(mine[ids != -100], theirs, **CLOSE)
        assert not mine[ids == -100].any()
    return losses


@pytest.mark.parametrize("language", ["llama", "qwen3", "mistral", "gemma2", "t5"])
def test_options_have_the_losses_of_independent_rows(build, rows, language):
    losses = check(build(language=language), rows, OPTIONS).sum(1)
    assert len(losses.unique()) == len(losses)


@pytest.mark.parametrize(
    "settings",
    [
        {"share_prefix": False},
        {"visual_order": "queries_first"},
        {"branches": ["query"]},
        {"branches": ["patch"]},
        {"prompt_format": ["{bos}Look:", "{question}"]},
    ],
)
def test_also_in_every_layout(build, rows, settings):
    check(build(**settings), rows, OPTIONS)


def test_also_for_rows_with_several_images_or_none(build, rows, pictures):
    mixed = [*rows, (None, "Is there a circle?"), (pictures[:2], "How?")]
    check(build(), mixed, [*OPTIONS, ["no", "yes"], ["2"]])


def test_an_image_and_a_question_are_read_once(build, rows):
    """Tokens through the language model: what is shared, plus the options behind it."""
    pair, seen = build(), []
    pair.model.language_model.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[:2].numel()),
        with_kwargs=True,
    )
    batch = pair.batch([row[:2] for row in rows]) | pair.processor.options(OPTIONS)
    pair.model.option_losses(**batch)
    head, patches, queries = int(batch["visual_position"][0]), 4, 3
    text = batch["input_ids"].shape[1] - head
    behind = batch["option_ids"].shape[1] - 1  # the last token predicts nothing
    assert seen == [2 * (head + patches), 3 * (queries + text), 9 * behind]


def test_each_row_has_its_adapter(build, rows, tmp_path, randomise):
    pair = build()
    randomise(pair.model.adapter)
    pair.model.save_adapter(tmp_path)
    pair.model.load_adapter(tmp_path, "task")
    randomise(pair.model.adapter)
    pair.model.set_adapter(None)
    batch = pair.batch([row[:2] for row in rows]) | pair.processor.options(OPTIONS)
    mixed = pair.model.option_losses(**batch, adapter_names=["task", None, "task"])
    own = pair.model.option_losses(**batch)
    task = pair.model.option_losses(**batch, adapter_names=["task"] * 3)
    torch.testing.assert_close(mixed, torch.cat([task[:3], own[3:5], task[5:]]), **CLOSE)
    assert not torch.allclose(own, task)


def test_a_row_without_options_is_refused(build):
    with pytest.raises(InputError, match="row 1 of the batch has no options"):
        build().processor.options([["yes"], []])
