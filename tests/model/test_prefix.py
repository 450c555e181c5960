"""What rows share, and where they share nothing."""

import pytest
import torch


def losses_of(pair, batch, share: bool) -> torch.Tensor:
    pair.model.config.share_prefix = share
    return pair.model(**batch).token_losses


@pytest.mark.gpu
@pytest.mark.parametrize("branches", [["patch"], ["query", "patch"]])
def test_no_answer_token_is_lost_behind_the_last_patch(build, rows, branches):
    """Nothing stands behind the pictures: their last token predicts the answer's first."""
    pair = build(branches=branches, prompt_format=["{bos}{question}", ""])
    same = [(rows[0][0], rows[0][1], answer) for answer in ("blue", "no", "12")]
    batch = pair.batch(same)
    expected = losses_of(pair, batch, share=False)
    assert len(expected) == (batch["labels"] != -100).sum()
    torch.testing.assert_close(losses_of(pair, batch, share=True), expected)
    pair.model.config.share_prefix = True
    assert pair.say(same) == [pair.say([row])[0] for row in same]


@pytest.mark.gpu
def test_labels_in_front_of_the_pictures_count(build, rows):
    pair = build(prompt_format=["{bos}Look:", "{question}"])
    batch = pair.batch(rows)
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    expected = losses_of(pair, batch, share=False)
    # The first token of each row has none before it that could predict it.
    assert len(expected) == batch["attention_mask"].sum() - len(rows)
    torch.testing.assert_close(losses_of(pair, batch, share=True), expected)


@pytest.mark.parametrize("language", ["llama", "gemma2"])
def test_a_step_asks_the_device_for_no_more_where_there_are_more_rows(
    build, pictures, monkeypatch, language
):
    """Numbers that are fetched one by one would each wait for a GPU."""
    pair = build(language=language)
    pair.model.adapter.requires_grad_(True)
    calls: list[str] = []
    for name in ("item", "tolist", "__int__", "__float__", "__bool__", "__index__"):
        own = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda x, *a, own=own, name=name: calls.append(name) or own(x, *a)
        )
    counts = []
    pair.model(**pair.batch([(pictures[0], "What is it?", "no")] * 2))  # what is tried once
    for rows in (4, 6, 18):
        asked = [(pictures[i % 2], "Is there a star? " * (1 + i % 3), "no") for i in range(rows)]
        batch = pair.batch(asked)
        calls.clear()
        pair.model(**batch).loss.backward()
        counts.append(len(calls))
    assert counts[0] == counts[1] == counts[2] < 40
