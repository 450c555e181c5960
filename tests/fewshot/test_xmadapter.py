"""The default goes beyond the paper; the published readings are settings of it."""

import numpy as np
import pytest
import torch

from crome.errors import InputError
from crome.fewshot import TipAdapterClassifier, XMAdapterClassifier
from crome.fewshot.methods.xmadapter import PUBLISHED
from crome.fewshot.whitening import fit_whitening

PLAIN = {"whiten": False, "gaussian": False}


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("epochs", [0, 3])
def test_gamma_one_without_hard_weighting_is_tip_adapter(problem, epochs):
    p, betas = problem, (1.0, 4.0)
    ours = XMAdapterClassifier(p.text, **PLAIN, gamma=1.0, eta=0.0, epochs=epochs, betas=betas).fit(
        p.X, p.y
    )
    theirs = TipAdapterClassifier(p.text, epochs=epochs, betas=betas).fit(p.X, p.y)
    np.testing.assert_allclose(ours.decision_function(p.Q), theirs.decision_function(p.Q))


def test_untrained_text_affinity_ranks_classes_as_the_encoder_does(problem):
    p = problem
    model = XMAdapterClassifier(p.text, **PLAIN, gamma=0.0).fit(p.X, p.y)
    samples = model.samples(p.Q)
    text = model.cache().text(samples)
    assert torch.equal(text.argsort(1), samples.zero_shot.argsort(1))
    assert model.gamma_ == 0.0


def test_whitening_undoes_the_spread_within_classes(problem):
    p = problem
    model = XMAdapterClassifier(p.text).fit(p.X, p.y)
    samples = model.samples(p.X, p.y)
    whitening, means = fit_whitening(samples, p.n)
    rest = (whitening.coordinates(samples.image) - means[samples.labels]).numpy()
    rows = unit(p.X)
    centred = rows - np.stack([rows[p.y == c].mean(0) for c in range(p.n)])[p.y]
    covariance = centred.T @ centred / len(rows)
    inverse = np.linalg.inv(covariance + np.trace(covariance) / 16 * np.eye(16))
    # Distances in whitened coordinates are Mahalanobis distances under the ridged covariance.
    np.testing.assert_allclose(
        (rest**2).sum(1), np.einsum("nc,cd,nd->n", centred, inverse, centred)
    )


def test_a_whole_image_counts_as_much_as_its_views(problem):
    p = problem
    rng = np.random.default_rng(1)
    views = p.X[:, None] + rng.normal(size=(len(p.X), 5, 16))
    model = XMAdapterClassifier(p.text).fit(p.X, p.y, views=views)
    cache, order = model.cache(), np.argsort(p.y, kind="stable")
    rows = torch.from_numpy(unit(unit(p.X) + unit(views.mean(1)))[order])
    torch.testing.assert_close(cache.keys, cache.whitening(rows))
    means = torch.stack([rows[cache.labels == c].mean(0) for c in range(p.n)])
    torch.testing.assert_close(cache.means, cache.whitening.coordinates(means))


def test_gaussian_evidence_is_their_log_likelihood(problem):
    p = problem
    model = XMAdapterClassifier(p.text).fit(p.X, p.y)
    cache, samples = model.cache(), model.samples(p.Q)
    rows = cache.whitening.coordinates(samples.image)
    log_likelihood = -torch.cdist(rows, cache.means).square() / 2
    prior = cache.prior(samples)
    np.testing.assert_allclose(
        prior - prior.mean(1, keepdim=True),
        log_likelihood - log_likelihood.mean(1, keepdim=True),
        atol=1e-9,
    )


def test_growing_equals_class_means_over_all_images(problem):
    p = problem
    part = np.arange(len(p.y)) % p.shots > 0
    model = XMAdapterClassifier(p.text).fit(p.X[part], p.y[part])
    whitening = model.cache().whitening
    model.add_images(p.X[~part], p.y[~part])
    rows = whitening.coordinates(torch.from_numpy(unit(p.X))).numpy()
    means = np.stack([rows[p.y == c].mean(0) for c in range(p.n)])
    np.testing.assert_allclose(model.means_, means, atol=1e-9)


def test_default_learns_a_new_class_without_a_refit(problem):
    p, old = problem, problem.y != 1
    names = np.array(["d", "b", "a", "c"])
    model = XMAdapterClassifier(p.text[[2, 3, 0]]).fit(p.X[old], names[p.y[old]])
    before, kept = model.score(p.Q[p.y_test != 1], names[p.y_test[p.y_test != 1]]), model.alpha_
    model.add_images(p.X[~old], names[p.y[~old]], class_features=p.text[[1]])
    assert model.alpha_ == kept
    assert model.classes_.tolist() == ["a", "b", "c", "d"]
    right = model.predict(p.Q) == names[p.y_test]
    assert right[p.y_test == 1].mean() > 0.6
    assert right[p.y_test != 1].mean() > before - 0.15  # some queries go to the new class


def test_a_class_named_before_can_get_its_images_later(problem):
    p, seen = problem, problem.y != 1
    model = XMAdapterClassifier(p.text, classes=range(4)).fit(p.X[seen], p.y[seen])
    model.add_images(p.X[~seen], p.y[~seen])
    assert model.seen_.all()
    assert model.score(p.Q, p.y_test) > 0.8


def test_views_average_to_the_key_and_train_in_turn(problem):
    p, rng = problem, np.random.default_rng(1)
    views = p.X[:, None] + 0.3 * rng.normal(size=(len(p.y), 4, 16))
    model = XMAdapterClassifier(p.text, **PLAIN).fit(p.X, p.y, views=views)
    np.testing.assert_allclose(model.keys_, unit(views.mean(1)))
    with pytest.raises(InputError, match=r"views has shape .* expected \(12, n_views, 16\)"):
        model.fit(p.X, p.y, views=views[:5])


def test_published_readings_train_everything_and_find_gamma(problem):
    p = problem
    model = XMAdapterClassifier(p.text, **PUBLISHED).fit(p.X, p.y)
    untrained = XMAdapterClassifier(p.text, **PUBLISHED | {"epochs": 0}).fit(p.X, p.y)
    for name in ("keys_", "meta_", "img2txt_"):
        assert not np.allclose(getattr(model, name), getattr(untrained, name)), name
    assert 0 <= model.gamma_ <= 1
    assert model.score(p.Q, p.y_test) > 0.8


@pytest.mark.parametrize(
    "settings",
    [{"gamma": "query"}, {"gamma": 0.5}, {"text_scale": "match"}, {"init": "random"}],
    ids=str,
)
def test_readings_classify(problem, settings):
    p = problem
    model = XMAdapterClassifier(p.text, **PLAIN | settings).fit(p.X, p.y)
    assert model.score(p.Q, p.y_test) > 0.7  # chance is 0.25


def test_matched_text_scale_has_the_image_affinitys_moments(problem):
    p = problem
    model = XMAdapterClassifier(p.text, **PLAIN, text_scale="match").fit(p.X, p.y)
    samples = model.samples(p.X)
    text, image = model.cache().text(samples), samples.image @ model.cache().keys.T
    assert float(text.mean()) == pytest.approx(float(image.mean()))
    assert float(text.std(correction=0)) == pytest.approx(float(image.std(correction=0)))


def test_gaussians_need_the_whitening(problem):
    with pytest.raises(InputError, match="gaussian=True needs whiten=True"):
        XMAdapterClassifier(problem.text, whiten=False).fit(problem.X, problem.y)
