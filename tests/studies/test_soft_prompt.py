"""A soft prompt: words at its place are read as those words."""

import torch

from crome.rows import Row
from crome.studies.soft_prompt import SoftPrompt, add_soft_prompt


def test_it_stands_before_the_first_branch_alone():
    prompt = SoftPrompt(torch.ones(2, 4), "patch")
    tokens = {"query": torch.zeros(3, 5, 4), "patch": torch.zeros(3, 6, 4)}
    out = prompt(tokens)
    assert out["query"] is tokens["query"]
    assert out["patch"].shape == (3, 8, 4)
    assert out["patch"][:, :2].eq(1).all()
    assert out["patch"][:, 2:].eq(0).all()


def test_its_words_change_the_answer_as_tokens_before_the_picture_do(build, pictures):
    """Logits with the prompt's vectors are those of the same embeddings spliced by hand."""
    pair = build()
    model, row = pair.model.eval(), Row((pictures[0],), "What is it?", "", "0")
    batch = pair.processor.encode([row])
    model.adapter = None
    bare = model.prompt_embeddings(**batch)[0]
    vectors = add_soft_prompt(model, 3).vectors
    found = model.prompt_embeddings(**batch)[0]
    assert found.shape[-2] == bare.shape[-2] + 3
    bare, found = bare.reshape(-1, bare.shape[-1]), found.reshape(-1, found.shape[-1])
    (starts,) = [
        k for k in range(len(found) - 2) if torch.equal(found[k : k + 3], vectors.to(found.dtype))
    ]
    torch.testing.assert_close(torch.cat([found[:starts], found[starts + 3 :]]), bare)
