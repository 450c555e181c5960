"""Choosing tokens: greedy, by temperature, by nucleus, repeatable, and never from bad logits."""

from collections import Counter

import pytest
import torch

from crome.serving.sampling import Sampling, choose

LOGITS = torch.tensor([1.0, 3.0, 2.0, -float("inf")])


def draws(sampling, number=4000):
    generator = sampling.generator()
    return Counter(choose(LOGITS, sampling, generator).id for _ in range(number))


def test_temperature_zero_is_the_likeliest():
    assert draws(Sampling(), 5) == {1: 5}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature):
    """4,000 draws: a share is off by more than 0.04 once in ten million (5 standard errors)."""
    found = draws(Sampling(temperature, seed=0))
    wanted = (LOGITS / temperature).softmax(-1)
    assert found[3] == 0
    for token in range(3):
        assert found[token] / 4000 == pytest.approx(float(wanted[token]), abs=0.04)


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    # Probabilities are 0.67, 0.24, 0.09.
    assert set(draws(Sampling(1.0, top_p=0.6, seed=0), 300)) == {1}
    assert set(draws(Sampling(1.0, top_p=0.7, seed=0), 300)) == {1, 2}
    assert set(draws(Sampling(1.0, top_p=0.95, seed=0), 300)) == {0, 1, 2}


@pytest.mark.parametrize("least", [1e-5, 1e-40, 1e-320])
def test_next_to_nothing_is_the_likeliest(least):
    """Positive, but smaller than a float32 can be or divide by."""
    assert draws(Sampling(least, seed=0), 20) == {1: 20}
    assert draws(Sampling(1.0, top_p=least, seed=0), 20) == {1: 20}


def test_a_seed_repeats_and_none_does_not():
    def run(seed):
        sampling = Sampling(1.0, seed=seed)
        generator = sampling.generator()
        return [choose(LOGITS, sampling, generator).id for _ in range(60)]

    assert run(3) == run(3)
    assert run(3) != run(4)
    assert run(None) != run(None)  # alike once in 10^18


def test_logprobs_are_of_the_plain_distribution():
    token = choose(LOGITS, Sampling(0.1, logprobs=2, seed=0), Sampling(0.1, seed=0).generator())
    wanted = LOGITS.log_softmax(-1)
    assert token.logprob == pytest.approx(float(wanted[token.id]))
    assert token.top == ((1, pytest.approx(float(wanted[1]))), (2, pytest.approx(float(wanted[2]))))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_logits_are_an_error(bad):
    with pytest.raises(FloatingPointError):
        choose(torch.tensor([0.0, bad]), Sampling(), None)
