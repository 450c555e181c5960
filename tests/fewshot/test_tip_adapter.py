"""Tip-Adapter equals its published procedure; caches grow without a refit."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from crome.errors import InputError
from crome.fewshot import TipAdapterClassifier, XMAdapterClassifier
from crome.fewshot.cache import add_text, build_cache
from crome.fewshot.samples import Samples
from crome.fewshot.search import Choice
from crome.fewshot.training import Training, train_cache

CLASSES, SHOTS, WIDTH = 4, 3, 16


@pytest.fixture(scope="module")
def data():
    """Feature matrix of four classes: class features, shots, labels, queries, their labels."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CLASSES, WIDTH))
    text = centres + 0.8 * rng.normal(size=centres.shape)
    y, y_test = np.repeat(np.arange(CLASSES), SHOTS), np.repeat(np.arange(CLASSES), 25)
    draw = lambda labels: centres[labels] + rng.normal(size=(len(labels), WIDTH))  # noqa: E731
    return text, draw(y), y, draw(y_test), y_test


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def published(text, X, y, Q, alpha, beta):
    """Tip-Adapter's logits as its repository computes them."""
    affinity = unit(Q) @ unit(X).T
    cache = np.exp(-1 * (beta - beta * affinity)) @ np.eye(CLASSES)[y]
    return 100.0 * unit(Q) @ unit(text).T + alpha * cache


def test_logits_equal_the_published_procedure(data):
    text, X, y, Q, y_test = data
    model = TipAdapterClassifier(text).fit(X, y, X_val=Q, y_val=y_test)
    expected = published(text, X, y, Q, model.alpha_, model.beta_)
    np.testing.assert_allclose(model.decision_function(Q), expected, atol=1e-5)


def test_search_equals_the_published_loop(data):
    text, X, y, Q, y_test = data
    betas = [0.1 + i * (7 - 0.1) / 20 for i in range(20)]
    alphas = [0.1 + i * (3 - 0.1) / 20 for i in range(20)]
    best = max(
        (published(text, X, y, Q, a, b).argmax(1) == y_test).mean() for a in alphas for b in betas
    )
    model = TipAdapterClassifier(text, alphas=alphas, betas=betas, selection="accuracy")
    model.fit(X, y, X_val=Q, y_val=y_test)
    assert model.validation_accuracy_ == pytest.approx(best)
    assert model.score(Q, y_test) == pytest.approx(best)


def samples_of(text, X, y):
    X, text = torch.from_numpy(unit(X)), torch.from_numpy(unit(text))
    return Samples(X, X, 100 * X @ text.T, torch.from_numpy(y)), text


def test_one_training_step_equals_tip_adapter_f(data):
    text, X, y, _, _ = data
    shots, text = samples_of(text, X, y)
    start, how = Choice((2.0, 0.0), 1.5, 0.0), Training(epochs=1, batch_size=256)
    plain = train_cache(build_cache(shots, CLASSES), shots, start, how)
    both = train_cache(
        add_text(build_cache(shots, CLASSES), text, 256, "text", 0), shots, start, how
    )
    torch.testing.assert_close(both.keys, plain.keys)
    # The published step, written out.
    weight = torch.nn.Parameter(shots.image.clone())
    optimizer = torch.optim.AdamW([weight], lr=1e-3, eps=1e-4)
    affinity = shots.image @ weight.T
    cache = ((-1) * (2.0 - 2.0 * affinity)).exp() @ torch.eye(CLASSES, dtype=torch.float64)[
        shots.labels
    ]
    loss = torch.nn.functional.cross_entropy(shots.zero_shot + cache * 1.5, shots.labels)
    loss.backward()
    optimizer.step()
    torch.testing.assert_close(plain.keys, weight.detach())


@pytest.mark.parametrize("kind", [TipAdapterClassifier, XMAdapterClassifier])
def test_a_fit_without_validation_images_trains_once(data, kind):
    text, X, y, Q, y_test = data
    model = kind(text, epochs=20, betas=(2.0,), alphas=(1.0,))
    with FlopCounterMode(display=False) as once:
        model.fit(X, y, X_val=Q[::5], y_val=y_test[::5])
    with FlopCounterMode(display=False) as folds:
        model.fit(X, y)
    assert folds.get_total_flops() < 1.1 * once.get_total_flops()
    assert not np.isnan(model.validation_accuracy_)


def test_training_leaves_the_frozen_parts_alone(data):
    text, X, y, _, _ = data
    shots, text = samples_of(text, X, y)
    cache = add_text(build_cache(shots, CLASSES), text, 256, "text", 0)
    before = {k: v.clone() for k, v in vars(cache).items() if isinstance(v, torch.Tensor)}
    trained = train_cache(cache, shots, Choice((2.0, 1.0), 1.5, 0.0), Training(3), learn_gamma=True)
    for name, value in before.items():
        assert torch.equal(getattr(cache, name), value), name
    for name in ("keys", "meta", "img2txt"):
        assert not torch.equal(getattr(trained, name), before[name]), f"{name} did not move"
    assert torch.equal(trained.class_text, before["class_text"])


@pytest.mark.parametrize("kind", [TipAdapterClassifier, XMAdapterClassifier])
def test_adding_shots_equals_building_with_them(data, kind):
    text, X, y, Q, _ = data
    settings = {"whiten": False, "gaussian": False} if kind is XMAdapterClassifier else {}
    part = np.arange(len(y)) % SHOTS > 0
    model = kind(text, epochs=0, **settings).fit(X[part], y[part])
    grown = model.add_images(X[~part], y[~part]).decision_function(Q)
    whole = kind(text, epochs=0, **settings).fit(X, y)
    for name in ("alpha_", "sharpness_", "share_"):
        setattr(whole, name, getattr(model, name))
    np.testing.assert_allclose(whole.decision_function(Q), grown, atol=1e-9)


def test_adding_a_class_keeps_the_others(data):
    text, X, y, Q, y_test = data
    old, names = y != 1, np.array(["d", "b", "a", "c"])  # labels in any order
    order = [0, 2, 3]
    order = sorted(order, key=lambda c: names[c])
    model = TipAdapterClassifier(text[order]).fit(X[old], names[y[old]])
    before = dict(zip(model.classes_, model.decision_function(Q).T, strict=True))
    with pytest.raises(
        InputError, match=r"new classes \['b'\] need class_features of shape \(1, 16\)"
    ):
        model.add_images(X[~old], names[y[~old]])
    model.add_images(X[~old], names[y[~old]], class_features=text[[1]])
    assert model.classes_.tolist() == ["a", "b", "c", "d"]
    after = dict(zip(model.classes_, model.decision_function(Q).T, strict=True))
    for name, column in before.items():
        np.testing.assert_allclose(after[name], column, atol=1e-9)
    assert model.score(Q, names[y_test]) > 0.5


def test_queries_pass_through_the_whitening(data):
    text, X, y, Q, _ = data
    model = XMAdapterClassifier(text, gaussian=False).fit(X, y)
    cache, samples = model.cache(), model.samples(Q)
    mean, factor = cache.whitening.mean.numpy(), cache.whitening.factor.numpy()
    whitened = unit((np.linalg.inv(factor) @ (unit(Q) - mean).T).T)
    np.testing.assert_allclose(cache.problem(samples).features.numpy(), whitened, atol=1e-9)
