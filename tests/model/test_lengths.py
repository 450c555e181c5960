"""Rows are as long as the language model reads them."""

import pytest
import torch

from crome.model.lengths import Room
from crome.rows import Row


@pytest.mark.parametrize("branches", [("query", "patch"), ("patch",), ("query",)])
def test_lengths_are_those_that_the_model_computes(build, pictures, branches):
    pair = build(branches=branches)
    rows = [
        Row((), "What?", "no", "0"),
        Row((pictures[0],), "What is it?", "yes", "1", history=(("Is it red?", "no"),)),
        Row((pictures[0], pictures[1], pictures[0]), "What?", "blue", "2"),
    ]
    room = Room.measured(pair.model, pair.processor)
    assert room.limit == 256
    batch = pair.processor.encode(rows)
    _, mask = pair.model.prompt_embeddings(**batch, side="right")
    assert room.lengths(batch).tolist() == mask.sum(1).tolist()
    answered = room.lengths(pair.processor.encode(rows, answers=True)) - mask.sum(1)
    assert answered.tolist() == [len(pair.processor.answer_ids(row.answer)) for row in rows]


def test_an_attached_models_tokens_have_their_places_in_the_text(case, pictures):
    pair = case("llava")
    rows = [Row((pictures[0],), "What?", "no", "0"), Row((), "What?", "no", "1")]
    room = Room.measured(pair.model, pair.processor)
    batch = pair.processor.encode(rows, answers=True)
    assert room.per_picture == 0
    assert room.lengths(batch).tolist() == batch["attention_mask"].sum(1).tolist()
    short = Room(int(room.lengths(batch)[0]) - 1)
    assert list(short.excess(rows, batch)) == [0]
    assert "row 0 has" in short.excess(rows, batch)[0]


def test_a_decoder_of_its_own_reads_the_answer_apart():
    batch = {
        "attention_mask": torch.ones(2, 5, dtype=torch.long),
        "labels": torch.tensor([[7] * 8, [7, *[-100] * 7]]),
    }
    assert Room(6).lengths(batch).tolist() == [8, 5]
    assert list(Room(6).excess([Row((), "q", "a", "0")] * 2, batch)) == [0]
    assert Room(None).excess([], batch) == {}
