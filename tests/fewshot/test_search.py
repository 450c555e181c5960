"""The search finds what a loop over the grid finds, with one affinity product."""

import pytest
import torch
from torch.nn.functional import normalize

from crome.fewshot import problems as problems_module
from crome.fewshot.problems import Problem, class_evidence
from crome.fewshot.search import (
    Choice,
    alpha_intervals,
    count_hits,
    hits,
    problem_logits,
    search,
)


def make_problem(counts=(3, 2, 4), queries=40, text=True, dtype=torch.float64, width=6):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=dtype)  # noqa: E731
    centres = draw(len(counts), width)
    targets = torch.randint(len(counts), (queries,), generator=generator)
    features = normalize(centres[targets] + draw(queries, width), dim=1)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    keys = normalize(centres[labels] + draw(len(labels), width), dim=1)
    zero_shot = features @ centres.T + 0.3 * draw(queries, len(counts))
    return Problem(
        zero_shot, features, keys, torch.tensor(counts), targets,
        torch.tanh(zero_shot) if text else None,
    )  # fmt: skip


def naive_accuracy(problem, b, t, alpha):
    """The published loop's body, written out."""
    one_hot = torch.nn.functional.one_hot(
        torch.repeat_interleave(torch.arange(len(problem.counts)), problem.counts)
    ).to(problem.keys.dtype)
    evidence = torch.exp(-b * (1 - problem.features @ problem.keys.T)) @ one_hot
    if problem.text is not None:
        evidence = evidence * torch.exp(-t * (1 - problem.text))
    logits = problem.zero_shot + alpha * evidence
    return int((logits.argmax(1) == problem.targets).sum())


@pytest.mark.parametrize("counts", [(3, 3, 3), (3, 2, 4), (5, 0, 1)])
@pytest.mark.parametrize("text", [True, False])
def test_counts_equal_the_naive_loop(counts, text, monkeypatch):
    monkeypatch.setattr(problems_module, "BLOCK", 50)  # several blocks and tiles
    monkeypatch.setattr(problems_module, "TILE", 20)
    problem = make_problem(counts, text=text)
    pairs = [(b, t) for b in (0.5, 2.0, 7.0) for t in ((0.0, 1.5) if text else (0.0,))]
    alphas = torch.tensor([0.01, 0.1, 0.5, 1, 3, 10], dtype=torch.float64)
    table = count_hits(problem, pairs, alphas.expand(len(pairs), -1))
    for row, (b, t) in enumerate(pairs):
        for column, alpha in enumerate(alphas.tolist()):
            assert table[row, column] == naive_accuracy(problem, b, t, alpha)


def test_hits_counts_every_alpha_in_one_pass():
    problem = make_problem()
    evidence = class_evidence(1 - problem.features @ problem.keys.T, problem.counts, 3.0)
    alphas = torch.linspace(0.0, 20.0, 301, dtype=torch.float64)
    found = hits(problem.zero_shot, evidence, problem.targets, alphas)
    for alpha, count in zip(alphas.tolist(), found.tolist(), strict=True):
        logits = problem.zero_shot + alpha * evidence
        assert count == int((logits.argmax(1) == problem.targets).sum())


def test_interval_of_a_query_by_hand():
    zero_shot = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    evidence = torch.tensor([[2.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    lower, upper = alpha_intervals(zero_shot, evidence, torch.tensor([0, 0, 0]))
    assert lower.tolist() == [1.0, -float("inf"), float("inf")]  # never right in the last
    assert upper.tolist() == [float("inf"), 3.0, float("inf")]


def test_search_returns_the_best_cell_and_its_accuracy():
    problem = make_problem()
    pairs, alphas = [(b, 0.0) for b in (0.5, 2.0, 7.0)], [0.1, 1.0, 10.0]
    best = max(naive_accuracy(problem, b, t, a) for b, t in pairs for a in alphas)
    choice = search([problem], pairs, alphas, "accuracy")
    assert naive_accuracy(problem, *choice.sharpness, choice.alpha) == best
    assert choice.accuracy == best / len(problem.targets)
    logits = problem_logits(problem, choice)
    assert int((logits.argmax(1) == problem.targets).sum()) == best


def test_relative_alphas_do_not_depend_on_the_scale_of_the_logits():
    problem, scaled = make_problem(), make_problem()
    scaled.zero_shot = 100 * scaled.zero_shot
    one, other = (search([p], [(2.0, 0.0)]) for p in (problem, scaled))
    assert other.alpha == pytest.approx(100 * one.alpha)
    assert other.accuracy == one.accuracy


def test_beta_and_gamma_of_a_choice():
    assert Choice((3.0, 1.0), 1.0, 0.5).beta == 4.0
    assert Choice((3.0, 1.0), 1.0, 0.5).gamma == 0.75


def test_ties_go_to_the_smaller_log_loss():
    # Both settings classify all queries right; the sharper one is surer of it.
    problem = make_problem(queries=6, text=False)
    problem.features = problem.keys[torch.cumsum(problem.counts, 0)[problem.targets] - 1]
    problem.zero_shot = torch.zeros_like(problem.zero_shot)
    choice = search([problem], [(0.1, 0.0), (50.0, 0.0)], selection="accuracy")
    assert choice.accuracy == 1.0
    assert choice.sharpness[0] == 50.0
