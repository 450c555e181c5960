"""Choosing tokens: greedy, by temperature, by nucleus, repeatable, and never from bad logits."""

from collections import Counter

import pytest
import torch

from crome.serving.engine.sampling import Choices, Sampling, choose

LOGITS = torch.tensor([1.0, 3.0, 2.0, -float("inf")])


def token_of(sampling, logits=LOGITS, **known):
    return choose(logits[None], [Choices(sampling, **known)])[0]


def draws(sampling, number=4000):
    row = Choices(sampling)
    return Counter(choose(LOGITS[None], [row])[0].id for _ in range(number))


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
        row = Choices(Sampling(1.0, seed=seed))
        return [choose(LOGITS[None], [row])[0].id for _ in range(60)]

    assert run(3) == run(3)
    assert run(3) != run(4)
    assert run(None) != run(None)  # alike once in 10^18


def test_logprobs_are_of_the_plain_distribution():
    token = token_of(Sampling(0.1, logprobs=2, seed=0))
    wanted = LOGITS.log_softmax(-1)
    assert token.logprob == pytest.approx(float(wanted[token.id]))
    assert token.top == ((1, pytest.approx(float(wanted[1]))), (2, pytest.approx(float(wanted[2]))))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_logits_are_the_failure_of_their_own_row(bad):
    logits = torch.tensor([[0.0, 1.0], [0.0, bad], [1.0, 0.0]])
    found = choose(logits, [Choices(Sampling()), Choices(Sampling()), Choices(Sampling(1.0))])
    assert found[1] is None
    assert found[0].id == 1
    assert found[2] is not None


def test_a_batch_draws_as_each_row_alone():
    """Of every kind of setting, the same tokens for the same seeds, whatever the company."""
    generator = torch.Generator().manual_seed(1)
    kinds = [
        Sampling(), Sampling(1.0, seed=1), Sampling(0.7, top_p=0.8, seed=2),
        Sampling(1.3, top_k=5, seed=3), Sampling(1.0, min_p=0.2, seed=4),
        Sampling(1.0, top_p=0.0, seed=5), Sampling(0.0, repetition_penalty=1.5),
        Sampling(1.0, frequency_penalty=0.5, presence_penalty=0.3, seed=6, logprobs=3),
    ]  # fmt: skip
    together, alone = ([Choices(s, prompt=[3, 4]) for s in kinds] for _ in range(2))
    for _ in range(20):
        logits = 3 * torch.randn(len(kinds), 50, generator=generator)
        found = choose(logits, together)
        expected = [choose(logits[i : i + 1], [row])[0] for i, row in enumerate(alone)]
        assert [t.id for t in found] == [t.id for t in expected]
        for rows, tokens in ((together, found), (alone, expected)):
            for row, token in zip(rows, tokens, strict=True):
                row.add(token.id)


def test_penalties_follow_their_definitions():
    """Against the formula, written out token by token."""
    logits = torch.tensor([2.0, -1.0, 0.5, 0.0, 3.0])
    sampling = Sampling(repetition_penalty=2.0, presence_penalty=0.4, frequency_penalty=0.3,
                        penalize_prompt=True)  # fmt: skip
    from crome.serving.engine.sampling import _adjusted

    row = Choices(sampling, prompt=[4])
    for token in (0, 0, 1):
        row.add(token)
    found = _adjusted(logits[None], [row])[0]
    wanted = [2.0 / 2 - 0.4 - 0.6, -1.0 * 2 - 0.4 - 0.3, 0.5, 0.0, 3.0 / 2]
    assert found.tolist() == pytest.approx(wanted)
    assert logits.tolist() == [2.0, -1.0, 0.5, 0.0, 3.0]  # the model's own are left alone


def test_top_k_and_min_p_are_transformers_own():
    """The sets of tokens that may be drawn, against the warpers of `generate`."""
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    from crome.serving.engine.sampling import _likeliest

    logits = 2 * torch.randn(1, 3000, generator=torch.Generator().manual_seed(0))
    for sampling, warper in (
        (Sampling(1.0, top_k=7), TopKLogitsWarper(7)),
        (Sampling(1.0, min_p=0.1), MinPLogitsWarper(0.1)),
        (Sampling(1.0, top_p=0.99), TopPLogitsWarper(0.99)),  # more than those looked at first
    ):
        shares, order = _likeliest(logits.softmax(-1), [sampling])
        kept = set(order[shares > 0].tolist())
        assert kept == set(warper(None, logits.clone()).isfinite().nonzero()[:, 1].tolist())
