"""What is compared with the adapter: each way trains its own parameters and no others."""

import pytest
import torch

from crome.errors import JobError
from crome.model.tensors import fingerprint
from crome.rows import Row
from crome.studies.tuning import open_parameters, tune


@pytest.fixture
def task(pictures):
    return [
        Row((pictures[n % 4],), "What is the colour?", "blue", str(n), kind="colour")
        for n in range(16)
    ]


@pytest.mark.parametrize(
    "way", ["adapter", "projections", "bridge", "lora", "lora-all", "prompt", "full"]
)
def test_only_what_a_way_names_moves(build, task, way):
    if way.startswith("lora"):
        pytest.importorskip("peft")
    pair = build()
    model = pair.model
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    parameters = open_parameters(model, way, lora_rank=2)
    told = tune(model, pair.processor, task, steps=3, batch_size=4, learning_rate=1e-2)
    assert not model.training
    assert told["parameters"] == sum(p.numel() for p in parameters)
    assert told["rows"] == 12
    assert [line["step"] for line in told["curve"]] == [1, 2, 3]
    after = dict(model.named_parameters())
    moved = {
        n for n, old in before.items()
        if not (way == "prompt" and n.startswith("adapter."))
        and not torch.equal(old, after[n if n in after else renamed(n, after)])
    }  # fmt: skip
    part = {name.split(".")[0] for name in moved}
    assert (
        part
        == {
            "adapter": {"adapter"},
            "projections": {"adapter", "query_projection", "patch_projection"},
            "bridge": {
                "adapter",
                "query_projection",
                "patch_projection",
                "qformer",
                "query_tokens",
            },
            "lora": set(),  # matrices of its own; nothing that was there
            "lora-all": set(),
            "prompt": set(),  # vectors of its own, in place of the adapter
            "full": {"language_model"},
        }[way]
    )


def renamed(name, after):
    """LoRA wraps a layer: its own weight is one level further in."""
    head, _, last = name.rpartition(".")
    return f"{head}.base_layer.{last}"


def test_the_same_seed_is_the_same_run(build, task):
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)  # of the model's weights
        pair = build()
        open_parameters(pair.model, "adapter")
        tune(pair.model, pair.processor, task, steps=3, batch_size=4, seed=seed)
        states.append(fingerprint(pair.model.adapter.state_dict()))
    assert states[0] == states[1] != states[2]


def test_a_loss_that_is_no_number_ends_the_run(build, task):
    pair = build()
    parameters = open_parameters(pair.model, "adapter")
    with torch.no_grad():
        parameters[0].fill_(float("nan"))
    with pytest.raises(JobError, match="loss is nan at step 1"):
        tune(pair.model, pair.processor, task, steps=1, batch_size=4)
