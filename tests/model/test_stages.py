"""What trains when: exact names per stage, modes, and that no gradient reaches what is frozen."""

import pytest
import torch

from crome.errors import InputError
from crome.model.stages import BRIDGE, STAGES, TOWERS, apply_stage, count, parts, stage_count

EXPECTED = {
    "pretrain": {"query_projection", "patch_projection", "adapter"},
    "instruct": {"query_tokens", "qformer", "query_projection", "patch_projection", "adapter"},
    "finetune": {"adapter"},
}


def part_of(name: str) -> str:
    return name.split(".")[0]


@pytest.mark.parametrize("stage", EXPECTED)
def test_exactly_the_parts_of_a_stage_train(build, rows, stage):
    pair = build()
    apply_stage(pair.model, stage)
    trains = {n for n, p in pair.model.named_parameters() if p.requires_grad}
    assert trains == {n for n, _ in pair.model.named_parameters() if part_of(n) in EXPECTED[stage]}
    pair.model.train()
    pair.model(**pair.batch(rows)).loss.backward()
    assert {n for n, p in pair.model.named_parameters() if p.grad is not None} == trains
    assert sum(p.numel() for n, p in pair.model.named_parameters() if n in trains) == stage_count(
        pair.model, stage
    )


def test_structure_covers_every_parameter(build):
    model = build().model
    assert set(parts(model)) == {*TOWERS, *BRIDGE}
    assert sum(map(count, parts(model).values())) == sum(p.numel() for p in model.parameters())
    assert set(STAGES) == set(EXPECTED)


@pytest.mark.parametrize("stage", EXPECTED)
def test_what_is_frozen_stays_in_eval_mode(build, stage):
    """Dropout of a frozen Q-Former, or of T5, would be noise."""
    model = build(language="t5").model
    apply_stage(model, stage)
    model.train()
    training = {name for name, child in model.named_children() if child.training}
    assert training - {"task_adapters"} == EXPECTED[stage] - {"query_tokens"}
    assert not any(m.training for m in model.language_model.modules())
    model.eval()
    assert not any(m.training for m in model.modules())


def test_a_later_stage_freezes_what_an_earlier_one_trained(build):
    model = build().model
    for stage in ("instruct", "finetune"):
        apply_stage(model, stage)
    assert {part_of(n) for n, p in model.named_parameters() if p.requires_grad} == {"adapter"}


@pytest.mark.parametrize(
    ("stage", "settings", "message"),
    [
        ("finetuning", {}, r"'finetuning'; expected one of pretrain, instruct, finetune"),
        ("finetune", {"adapter_bottleneck": None}, r"has none of it; set adapter_bottleneck"),
    ],
)
def test_a_stage_that_cannot_be(build, stage, settings, message):
    with pytest.raises(InputError, match=message):
        apply_stage(build(**settings).model, stage)


@pytest.mark.parametrize("stage", EXPECTED)
def test_conformance_14_a_text_only_batch_gives_every_trained_tensor_a_gradient(build, rows, stage):
    """On one rank of several, gradients are summed: all must have them, here of zero."""
    pair = build()
    apply_stage(pair.model, stage)
    pair.model.train()
    text_only = pair.batch([(None, *row[1:]) for row in rows])
    output = pair.model(**text_only)
    torch.testing.assert_close(output.loss, output.token_losses.mean())
    output.loss.backward()
    trained = [p for p in pair.model.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None and not p.grad.any() for p in trained)
