"""Passes over prompts take about the time that running answers can wait, and always get on."""

import random

import pytest

from crome.serving.engine.pace import LEAST, ROOM, Pace


def read(pace, step, token, prompt, noise=lambda: 1.0):
    """Seconds of each pass while a prompt is read beside running answers."""
    passes = []
    while prompt > 0:
        tokens = min(pace.tokens, prompt)
        passes.append((step + token * tokens) * noise())
        pace.passed(tokens, passes[-1])
        pace.stepped(step * noise())
        prompt -= tokens
    return passes


def test_passes_come_to_take_the_gap():
    pace = Pace(0.1, 1024)
    pace.begin(36, 0.1)
    passes = read(pace, 0.03, 0.0005, 4000)
    assert max(passes) <= 0.1 * 1.5
    assert sorted(passes)[len(passes) // 2] == pytest.approx(0.1, rel=0.1)
    assert len(passes) < 40  # (0.1 - 0.03) / 0.0005 = 140 tokens each, fewer at the beginning


@pytest.mark.parametrize("step", [0.066, 0.09, 0.5, 3.0])
def test_a_pass_that_costs_as_much_as_the_gap_still_reads_something(step):
    """A pass may take as long as two steps, so at most half of it is overhead."""
    pace = Pace(0.1, 1024)
    pace.begin(36, 0.1 + step)
    passes = read(pace, step, 0.0006, 4000)
    assert max(passes[5:]) <= max(0.1, ROOM * step) * 1.5
    tokens = (max(0.1, ROOM * step) - step) / 0.0006
    assert len(passes) < 4000 / tokens * 1.5 + 15


def test_other_programs_do_not_bring_reading_to_a_halt():
    """One pass in three is interrupted and takes three times as long."""
    generator, pace = random.Random(0), Pace(0.1, 1024)
    pace.begin(36, 0.1)
    passes = read(pace, 0.066, 0.0006, 4000, lambda: 3.0 if generator.random() < 1 / 3 else 1.0)
    assert len(passes) < 4000 / 20


def test_bounds():
    pace = Pace(0.1, 64)
    assert pace.tokens == 64
    for _ in range(20):
        pace.passed(pace.tokens, 100.0)
    assert pace.tokens == LEAST
    for _ in range(20):
        pace.passed(pace.tokens, 1e-9)
    assert pace.tokens == 64
    pace.passed(3, 1e-9)  # the end of a prompt
    assert pace.tokens == 64
    unbounded = Pace(float("inf"), 512)
    unbounded.begin(36, 0.1)
    unbounded.passed(512, 30.0)
    assert unbounded.tokens == 512
