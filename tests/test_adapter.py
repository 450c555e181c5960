"""The gated adapter: equations 1 and 2, its switches, and that a token is mapped by itself."""

import numpy as np
import pytest
import torch

from crome.adapter import CrossModalAdapter

D, M = 12, 5


@pytest.fixture
def tokens():
    return {"query": torch.randn(2, 3, D), "patch": torch.randn(2, 7, D)}


@pytest.fixture
def adapter(randomise):
    """An adapter with open gates."""
    adapter = CrossModalAdapter(D, M)
    randomise(adapter)
    return adapter


def moved(before, after) -> set[str]:
    return {branch for branch in before if not torch.equal(before[branch], after[branch])}


@pytest.mark.parametrize("switches", [{}, {"gated": False}, {"shared_up": False}])
def test_a_new_adapter_is_the_identity_exactly(tokens, switches):
    assert moved(tokens, CrossModalAdapter(D, M, **switches)(tokens)) == set()


def test_first_step_reaches_only_the_up_projection_and_the_next_reaches_all(tokens):
    adapter = CrossModalAdapter(D, M)
    targets = {branch: torch.randn_like(x) for branch, x in tokens.items()}
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
    for alive in ({"up.shared.weight"}, set(dict(adapter.named_parameters()))):
        optimizer.zero_grad()
        sum((y - targets[b]).square().sum() for b, y in adapter(tokens).items()).backward()
        assert {n for n, p in adapter.named_parameters() if p.grad.any()} == alive
        optimizer.step()


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("shared_up", [True, False])
def test_equals_the_equations_in_numpy(tokens, randomise, gated, shared_up):
    adapter = CrossModalAdapter(D, M, gated=gated, shared_up=shared_up).double()
    randomise(adapter)
    tokens = {branch: x.double() for branch, x in tokens.items()}
    w = {name: p.detach().numpy().T for name, p in adapter.named_parameters()}
    for branch, y in adapter(tokens).items():
        x = tokens[branch].numpy()
        down = x @ w[f"down.{branch}.weight"]
        gate = x @ w[f"gate.{branch}.weight"] if gated else down
        z = gate / (1 + np.exp(-gate)) * (down if gated else 1)
        expected = x + z @ w[f"up.{'shared' if shared_up else branch}.weight"]
        np.testing.assert_allclose(y.detach().numpy(), expected, rtol=0, atol=1e-12)


def test_gradients_equal_finite_differences(tokens, adapter):
    adapter.double()
    x = {branch: t.double().requires_grad_() for branch, t in tokens.items()}
    assert torch.autograd.gradcheck(
        lambda q, p: tuple(adapter({"query": q, "patch": p}).values()), tuple(x.values())
    )


@pytest.mark.parametrize(("branch", "other"), [("query", "patch"), ("patch", "query")])
def test_conformance_3_branches_meet_only_in_the_shared_up_projection(
    tokens, adapter, branch, other
):
    before = adapter(tokens)
    with torch.no_grad():
        adapter.up["shared"].weight[0, 0] += 1
    assert moved(before, adapter(tokens)) == {"query", "patch"}
    with torch.no_grad():
        adapter.down[branch].weight.zero_()
    assert moved(tokens, adapter(tokens)) == {other}


def test_conformance_4_a_token_depends_on_itself_alone(tokens, adapter):
    before = adapter(tokens)
    changed = {branch: x.clone() for branch, x in tokens.items()}
    changed["patch"][1, 4] += 1
    after = adapter(changed)
    assert torch.equal(before["query"], after["query"])
    different = (before["patch"] != after["patch"]).any(-1)
    assert different.nonzero().tolist() == [[1, 4]]


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        ({}, 5_242_880),
        ({"bottleneck": 64}, 1_310_720),
        ({"bottleneck": 128}, 2_621_440),
        ({"bottleneck": 512}, 10_485_760),
        ({"gated": False}, 3_145_728),
        ({"shared_up": False}, 6_291_456),
        ({"branches": ("query", "patch", "audio")}, 7_340_032),
        ({"hidden_size": 5120}, 6_553_600),
    ],
)
def test_sizes_of_the_paper(switches, expected):
    """`crome.md` 2.3, 2.4 and 4.6; no biases anywhere."""
    with torch.device("meta"):
        adapter = CrossModalAdapter(**{"hidden_size": 4096} | switches)
    assert sum(p.numel() for p in adapter.parameters()) == expected
    assert all(p.ndim == 2 for p in adapter.parameters())


def test_activation_is_a_setting(tokens, randomise):
    torch.manual_seed(1)
    silu, gelu = (CrossModalAdapter(D, M, activation=name) for name in ("silu", "gelu"))
    randomise(silu)
    gelu.load_state_dict(silu.state_dict())
    assert moved(silu(tokens), gelu(tokens)) == {"query", "patch"}


def test_an_unknown_branch_is_an_error(adapter):
    with pytest.raises(KeyError, match="audio"):
        adapter({"audio": torch.zeros(1, 1, D)})
