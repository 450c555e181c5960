"""Expected calibration error by hand, and what calibration does to it."""

import numpy as np
import pytest
import torch

from crome.fewshot import XMAdapterClassifier
from crome.fewshot.calibration import best_temperature, expected_calibration_error


def test_error_by_hand():
    # Two bins of 0.5: confidences 0.6 and 0.8 (half right), and 0.4 (right).
    probabilities = np.array([[0.6, 0.4, 0.0], [0.1, 0.8, 0.1], [0.4, 0.3, 0.3]])
    error = expected_calibration_error(probabilities, [0, 0, 0], bins=2)
    assert error == pytest.approx((abs(1 - 1.4) + abs(1 - 0.4)) / 3)
    assert expected_calibration_error(np.eye(3), [0, 1, 2]) == 0


def test_temperature_has_the_least_log_loss():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (4000,), generator=generator)
    logits = torch.eye(3)[labels] + torch.randn(4000, 3, generator=generator)
    # The log-odds of unit shifts in unit noise are these numbers themselves, temperature 1. The
    # grid has steps of 9 %.
    assert best_temperature(8 * logits, labels) == pytest.approx(8, rel=0.1)
    assert best_temperature(torch.ones(4, 1), torch.zeros(4).long()) == 1


def test_one_sure_image_does_not_make_certain():
    logits = torch.tensor([[5.0, 0.0]], dtype=torch.float64)
    sure = torch.softmax(logits / best_temperature(logits, torch.tensor([0])), 1)[0, 0]
    # -log p - (log p + log(1 - p)) / 2 is least at p = 3/4; the grid has steps of 9 %.
    assert float(sure) == pytest.approx(0.75, abs=0.02)


def test_validation_images_calibrate_the_probabilities(problem):
    p = problem
    model = XMAdapterClassifier(p.text).fit(p.X, p.y, X_val=p.Q[::2], y_val=p.y_test[::2])
    X, y = p.Q[1::2], p.y_test[1::2]
    calibrated = expected_calibration_error(model.predict_proba(X), y)
    model.temperature_ *= 30
    assert calibrated < expected_calibration_error(model.predict_proba(X), y)
    assert calibrated < 0.15  # 50 queries: bins of a few each are this noisy


def test_temperature_does_not_depend_on_the_scale_of_logits():
    from crome.fewshot.calibration import best_temperature

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    labels = (logits + torch.randn(logits.shape, generator=generator)).argmax(1)
    # A power of two: scaling by it is exact, and the grid moves along with the spread.
    assert best_temperature(1024 * logits, labels) == 1024 * best_temperature(logits, labels)
