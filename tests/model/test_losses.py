"""Losses in chunks: the same numbers and gradients, never all logits at once."""

import pytest
import torch

from crome.model import losses, prefix
from crome.model.recompute import checkpoint_activations


def gradients(model, batch) -> dict[str, torch.Tensor]:
    for name, part in model.named_children():
        part.requires_grad_(name not in ("vision_model", "language_model"))
    model.eval().zero_grad()
    model(**batch).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_equal(mine, theirs):
    assert mine.keys() == theirs.keys()
    for name, gradient in mine.items():
        if not name.endswith("key.bias"):  # softmax does not see it: rounding around zero
            error = (gradient - theirs[name]).norm() / (theirs[name].norm() + 1e-6)
            assert error < 1e-5, name  # fp32 sums in another order


@pytest.mark.parametrize("language", ["llama", "tied", "t5", "t5-scaled"])
@pytest.mark.parametrize("chunk", [1, 4])
def test_chunks_change_nothing(build, rows, monkeypatch, language, chunk):
    pair = build(language=language)
    batch = pair.batch(rows)
    whole, expected = pair.model(**batch), gradients(pair.model, batch)
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 320 * chunk)
    widest = []
    pair.model.language_model.get_output_embeddings().register_forward_hook(
        lambda _, arguments, output: widest.append(output.shape[0])
    )
    parts = pair.model(**batch)
    assert parts.logits is None
    assert max(widest) == chunk
    torch.testing.assert_close(parts.token_losses, whole.token_losses, rtol=1e-5, atol=1e-6)
    assert_equal(gradients(pair.model, batch), expected)
    with torch.no_grad():
        torch.testing.assert_close(pair.model(**batch).loss, whole.loss, rtol=1e-5, atol=0)


@pytest.mark.parametrize("language", ["llama", "tied", "t5"])
@pytest.mark.parametrize("share_prefix", [True, False])
def test_a_head_that_trains_gets_its_gradient_from_chunks(
    build, rows, monkeypatch, language, share_prefix
):
    """Full fine-tuning: every tensor of the language model, its head and its words included."""
    pair = build(language=language, share_prefix=share_prefix)
    batch, found = pair.batch(rows), []
    pair.model.requires_grad_(True)
    for elements in (1 << 26, 2 * 320):
        monkeypatch.setattr(losses, "CHUNK_ELEMENTS", elements)
        pair.model.zero_grad()
        pair.model(**batch).loss.backward()
        named = pair.model.language_model.named_parameters()
        found.append({n: p.grad.clone() for n, p in named if p.grad is not None})
    head = "shared.weight" if language == "t5-scaled" else "lm_head.weight"
    assert language == "tied" or found[0][head].any()
    assert len(found[0]) == len(list(pair.model.language_model.parameters()))
    assert_equal(found[1], found[0])


def test_full_fine_tuning_behind_a_shared_prefix_has_the_gradients_of_independent_rows(
    build, rows, monkeypatch
):
    """The opening, which is read once for all images, teaches the language model, too."""
    pair = build(system_prompt="You look at pictures and answer in one word." * 3)
    batch, found = pair.batch(rows), []
    pair.model.language_model.requires_grad_(True)
    monkeypatch.setattr(prefix, "WORTH_A_PASS", 1)
    for share in (True, False):
        pair.model.config.share_prefix = share
        pair.model.zero_grad()
        pair.model(**batch).loss.backward()
        named = pair.model.named_parameters()
        found.append({n: p.grad.clone() for n, p in named if p.grad is not None})
    assert_equal(found[0], found[1])


def test_a_model_that_caps_its_logits_is_not_chunked(build, rows, monkeypatch):
    pair = build(language="gemma2")
    batch = pair.batch(rows)
    whole, expected = pair.model(**batch), gradients(pair.model, batch)
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 320)
    for _ in range(2):  # the first time it is found out
        again = pair.model(**batch)
        assert torch.equal(again.logits, whole.logits)
    assert_equal(gradients(pair.model, batch), expected)


@pytest.mark.parametrize(
    ("language", "ends"), [("llama", True), ("gemma2", False), ("t5", True), ("t5-scaled", True)]
)
def test_what_stands_behind_a_head_is_found_out_on_one_token(build, rows, language, ends):
    """By every process alike, whatever its batch is: no process runs another pass than the rest."""
    pair, seen = build(language=language), []
    pair.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[:2]), with_kwargs=True
    )
    embeds = torch.randn(3, 5, 32)
    inputs = {"inputs_embeds": embeds}
    if language.startswith("t5"):
        inputs["decoder_input_ids"] = torch.zeros(3, 5, dtype=torch.long)
    for _ in range(2):
        assert losses.logits_end_with_head(pair.model.language_model, inputs) == ends
    assert seen == [(1, 1)]


def saved_bytes(model, batch) -> int:
    """Of all tensors that a forward pass keeps for its backward."""
    kept = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**batch).loss  # noqa: B018
    return sum(kept.values())


@pytest.mark.parametrize("language", ["llama", "t5"])
@pytest.mark.parametrize("share_prefix", [True, False])
def test_checkpointing_works_in_eval_mode(build, rows, language, share_prefix):
    pair = build(language=language, share_prefix=share_prefix)
    batch = pair.batch(rows)
    expected, plain = gradients(pair.model, batch), saved_bytes(pair.model, batch)
    said = pair.say(rows)
    checkpoint_activations(pair.model.language_model)
    checkpoint_activations(pair.model.language_model)  # once is enough
    pair.model.train()
    assert not pair.model.language_model.training
    pair.model.eval()
    calls = []
    next(
        m for m in pair.model.language_model.modules() if type(m).__name__.endswith("MLP")
        or type(m).__name__ == "T5LayerFF"
    ).register_forward_pre_hook(lambda *_: calls.append(1))  # fmt: skip
    assert_equal(gradients(pair.model, batch), expected)
    assert len(calls) == 2  # forward, and once more on the way back
    assert saved_bytes(pair.model, batch) < 0.8 * plain  # two layers of three parts' activations
    assert pair.say(rows) == said
