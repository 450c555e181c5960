"""The equations: a worked example by hand, naive double loops, and the invariants."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from crome.fewshot import functional as fn

PROJECTION = torch.tensor([[1, 0], [0, 1], [0.5, 0.5]], dtype=torch.float64)


def unit(rows):
    return normalize(torch.tensor(rows, dtype=torch.float64), dim=1)


@pytest.fixture
def example():
    """Two classes of two cached images each, and two queries."""
    keys = unit([[1, 0.2, 0.1], [0.8, 0.5, 0], [0.1, 1, 0.3], [0, 0.7, 0.6]])
    texts = unit([[0.9, 0.1, 0.4], [0.2, 0.8, 0.5]])
    queries = unit([[0.7, 0.6, 0.2], [0.2, 0.9, 0.1]])
    return keys, torch.tensor([0, 0, 1, 1]), texts, queries


def blend(s, a, labels, gamma):
    """The fused affinity of each entry, written out."""
    return gamma * s + (1 - gamma) * a[:, labels]


@pytest.fixture
def random_case():
    generator = torch.Generator().manual_seed(0)
    s = torch.rand(7, 11, generator=generator, dtype=torch.float64)
    a = torch.rand(7, 4, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 3, 2, 1, 0, 0, 2, 3, 1, 2, 0])
    return s, a, labels


# The published-reference vector is given to six decimals.
def close(found, expected, tolerance=1e-6):
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), atol=tolerance, rtol=0
    )


def test_worked_example(example):
    keys, labels, texts, queries = example
    s = fn.image_affinity(queries, keys)
    a = fn.text_affinity(queries @ PROJECTION, texts @ PROJECTION)
    close(s, [[0.868940, 0.966292, 0.737788, 0.620854], [0.410413, 0.697245, 0.976738, 0.807031]])
    close(a[:, labels], [[0.899323] * 2 + [0.901716] * 2, [0.499980] * 2 + [0.989132] * 2])
    fused = blend(s, a, labels, 0.7)
    close(
        fused, [[0.878055, 0.946201, 0.786966, 0.705112], [0.437283, 0.638066, 0.980456, 0.861661]]
    )
    evidence = fn.class_sum(fn.modulate(fused, 1.0), labels, 2)
    close(evidence, [[1.832820, 1.552744], [1.265987, 1.851450]])
    logits = fn.logits(100 * queries @ texts.T, evidence, 2.0)
    close(logits, [[86.114125, 82.245483], [36.299515, 94.274974]], 1e-5)
    losses = cross_entropy(logits, torch.tensor([0, 1]), reduction="none")
    close(losses, [0.020672, 0.0])
    for kind, d, w, loss in (
        ("abs", [0.135536, 0.120332], [1.029711, 0.970289], 0.0106429),
        ("zdiff", [2.0, 0.0], [1.5, 0.5], 0.015504),
    ):
        image = s if kind == "abs" else fn.class_means(s, labels, 2)
        text = a[:, labels] if kind == "abs" else a
        found = fn.disagreement(image, text, kind)
        close(found, d, 1e-5)  # standardising adds 1e-8 to a deviation of about 0.001
        weights = fn.hard_weights(found, 1.0)
        close(weights, w)
        assert (weights * losses).mean().item() == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_factorised_form_equals_the_literal_one(random_case, gamma):
    s, a, labels = random_case
    literal = fn.class_sum(fn.modulate(blend(s, a, labels, gamma), 5.5), labels, 4)
    torch.testing.assert_close(fn.cache_logits(s, a, labels, 4, 5.5, gamma), literal)
    loops = torch.zeros(7, 4, dtype=torch.float64)
    for b in range(7):
        for k, c in enumerate(labels.tolist()):
            fused = gamma * s[b, k] + (1 - gamma) * a[b, c]
            loops[b, c] += math.exp(-5.5 * (1 - fused))
    torch.testing.assert_close(literal, loops)


def test_per_query_gamma(random_case):
    s, a, labels = random_case
    gamma = torch.linspace(0, 1, 7, dtype=torch.float64)[:, None]
    rows = [
        fn.cache_logits(s[i : i + 1], a[i : i + 1], labels, 4, 3.0, float(gamma[i]))
        for i in range(7)
    ]
    torch.testing.assert_close(fn.cache_logits(s, a, labels, 4, 3.0, gamma), torch.cat(rows))


def test_image_only_is_tip_adapter_and_text_only_ignores_images(random_case):
    s, a, labels = random_case
    tip = fn.cache_logits(s, None, labels, 4, 2.0, 1.0)
    torch.testing.assert_close(fn.cache_logits(s, a, labels, 4, 2.0, 1.0), tip)
    flat = fn.cache_logits(s, a, labels, 4, 2.0, 0.0)
    counts = torch.bincount(labels, minlength=4)
    torch.testing.assert_close(flat, counts * torch.exp(-2.0 * (1 - a)))


def test_order_of_entries_and_classes_does_not_matter(random_case):
    s, a, labels = random_case
    base = fn.cache_logits(s, a, labels, 4, 2.0, 0.6)
    entries = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        fn.cache_logits(s[:, entries], a, labels[entries], 4, 2.0, 0.6), base
    )
    classes = torch.tensor([2, 0, 3, 1])  # new place of each class
    inverse = torch.argsort(classes)
    moved = fn.cache_logits(s, a[:, inverse], classes[labels], 4, 2.0, 0.6)
    torch.testing.assert_close(moved[:, classes], base)


def test_duplicated_entries_double_the_cache(random_case):
    s, a, labels = random_case
    once = fn.cache_logits(s, a, labels, 4, 2.0, 0.4)
    twice = fn.cache_logits(torch.cat([s, s], 1), a, torch.cat([labels, labels]), 4, 2.0, 0.4)
    torch.testing.assert_close(twice, 2 * once)


def test_no_cache_weight_is_zero_shot(random_case):
    s, a, labels = random_case
    zero_shot = 100 * a
    assert torch.equal(
        fn.logits(zero_shot, fn.cache_logits(s, a, labels, 4, 2.0, 0.5), 0.0), zero_shot
    )


@pytest.mark.parametrize("kind", ["zdiff", "abs", "posterior"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 2.0])
def test_weights_are_positive_with_mean_one(random_case, kind, eta):
    s, a, labels = random_case
    d = fn.disagreement(fn.class_means(s, labels, 4), a, kind)
    weights = fn.hard_weights(d, eta)
    assert (d >= 0).all()
    assert (weights > 0).all()
    assert weights.mean().item() == pytest.approx(1)
    if eta:
        assert weights.argmax() == d.argmax()  # the hardest counts most


def test_degenerate_batches_give_weight_one():
    assert fn.hard_weights(torch.zeros(3), 2.0).tolist() == [1, 1, 1]
    one_class = fn.disagreement(torch.ones(2, 1), torch.ones(2, 1))  # N = 1: no spread
    assert fn.hard_weights(one_class, 1.0).tolist() == [1, 1]
    labels = torch.tensor([0, 1])  # K = 1: the own key is the class's only one
    means = fn.class_means(torch.rand(2, 2), labels, 2, own=torch.tensor([0, 1]))
    weights = fn.hard_weights(fn.disagreement(means, torch.rand(2, 2)), 1.0)
    assert weights.tolist() == [1, 1]


def test_own_entry_is_left_out_of_the_class_mean():
    s = torch.tensor([[1.0, 0.2, 0.4]])
    means = fn.class_means(s, torch.tensor([0, 0, 1]), 2, own=torch.tensor([0]))
    torch.testing.assert_close(means, torch.tensor([[0.2, 0.4]]))


def test_no_gradient_through_hardness():
    image = torch.rand(3, 4, requires_grad=True)
    assert not fn.hard_weights(fn.disagreement(image, torch.rand(3, 4)), 1.0).requires_grad


def test_equations_have_gradients(random_case):
    s, a, labels = (x.clone().requires_grad_() if x.is_floating_point() else x for x in random_case)
    gamma = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda s, a, g: fn.cache_logits(s, a, labels, 4, 2.0, g), (s, a, gamma)
    )
