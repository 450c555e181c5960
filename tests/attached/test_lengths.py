"""How long a row is to the model it is attached to, and rows that are too long for it."""

import pytest
import torch
from PIL import Image

from crome.errors import InputError
from crome.model.lengths import Room

RED = Image.new("RGB", (112, 84), "red")


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_answers_are_refused_where_prompt_and_answer_are_too_long(case, family, monkeypatch):
    pair = case(family)
    model, processor = pair.model, pair.processor
    batch = processor([RED, None], ["what is it?", "why?"])
    longest = int(model.lengths(**batch).max())
    text = model.language_model.config.get_text_config()
    monkeypatch.setattr(text, "max_position_embeddings", longest + 2)
    ids = model.generate(**batch, max_new_tokens=2, do_sample=False)
    assert ids.shape[1] <= 2
    with pytest.raises(InputError, match=f"row 0 .* {longest} tokens .* answer of up to 3"):
        model.generate(**batch, max_new_tokens=3)
    options = processor.options([["a b c d e f g"], ["no"]])
    with pytest.raises(InputError, match="shorter answer"):
        model.option_losses(**options, **batch)


def test_a_picture_takes_as_many_positions_as_its_longer_side(case):
    """Qwen numbers the tokens of a picture in a plane; one token more is one position more."""
    pair = case("qwen2_5_vl")
    batch = pair.processor([RED, None], ["what is it?", "why?"], ["red", "so"])
    labels = batch.pop("labels")
    tokens, lengths = batch["attention_mask"].sum(1), pair.model.lengths(**batch)
    (grid,) = (media["image_grid_thw"][0] for media in batch["media"])
    merged = grid[1:] // pair.model.vlm.config.vision_config.spatial_merge_size
    assert lengths[0] == tokens[0] - merged.prod() + merged.max()
    assert lengths[1] == tokens[1]
    room = Room.measured(pair.model, pair.processor)
    assert torch.equal(room.lengths({**batch, "labels": labels}), lengths)
