"""Channel selection and entry weights of APE, against the published formulas."""

import numpy as np
import torch

from crome.fewshot import APEClassifier
from crome.fewshot.methods.ape import select_channels


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_channels_are_those_with_the_least_criterion():
    reference = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    criterion = []
    for channel in range(12):
        x = reference[:, channel]
        similarity = sum(x[i] * x[j] for i in range(5) for j in range(5) if i != j) / 20
        criterion.append(0.7 * similarity - 0.3 * x.var())
    expected = sorted(np.argsort(criterion)[:8].tolist())
    assert select_channels(reference, 8 / 12, 0.7).tolist() == expected


def test_narrow_features_keep_two_channels():
    assert len(select_channels(torch.randn(3, 2), 0.7, 0.7)) == 2
    assert len(select_channels(torch.randn(3, 1), 0.7, 0.7)) == 1


def test_evidence_weighs_entries_by_their_surprise(problem):
    p = problem
    model = APEClassifier(p.text).fit(p.X, p.y)
    zero_shot = 100 * unit(p.X) @ unit(p.text).T
    top = zero_shot.max(1, keepdims=True)
    posterior = zero_shot - top - np.log(np.exp(zero_shot - top).sum(1, keepdims=True))
    surprise = -posterior[np.arange(len(p.y)), p.y]
    surprise /= surprise.max()
    keys, queries = (unit(unit(rows)[:, model.channels_]) for rows in (p.X, p.Q))
    entries = np.exp(-model.beta_ * (1 - queries @ keys.T) + model.kl_weight_ * surprise)
    expected = entries @ np.eye(p.n)[p.y]
    samples = model.samples(p.Q)
    np.testing.assert_allclose(model.evidence(samples), expected, rtol=1e-9)
    assert model.score(p.Q, p.y_test) > 0.8
