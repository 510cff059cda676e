"""Divergences of two distributions, worked by hand and against autograd on the full formula."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from posttrain.objectives import (
    DAPO,
    GRPO,
    DistillObjective,
    ForwardKL,
    JensenShannon,
    KLCov,
    PolicyGradient,
    ReverseKL,
    SampledReverseKL,
    distillation_advantages,
)
from posttrain.rollout.batch import RolloutBatch

STUDENT = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
TEACHER = torch.tensor([[0.25, 0.5, 0.25]], dtype=torch.float64).log()
DIVERGENCES: dict[str, DistillObjective] = {
    "reverse": ReverseKL(),
    "forward": ForwardKL(),
    "jensen-shannon": JensenShannon(),
    "jensen-shannon-0.1": JensenShannon(0.1),
}
every_divergence = pytest.mark.parametrize("objective", DIVERGENCES.values(), ids=DIVERGENCES)


def logits(seed: int, rows: int = 6, vocabulary: int = 5) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    ours, theirs = torch.randn(2, rows, vocabulary, generator=g, dtype=torch.float64)
    return 2 * ours, 2 * theirs


def masked(mask: Tensor) -> RolloutBatch:
    zero = torch.zeros(mask.shape, dtype=torch.float64)
    return RolloutBatch(tokens=zero.long(), mask=mask, old_log_probs=zero, advantages=zero)


def test_worked_numbers() -> None:
    # KL(p || q) = .5 log 2 + .25 log(1/2) + 0 = .25 log 2, and so is KL(q || p): they are mirrored.
    assert ReverseKL().between(STUDENT, TEACHER).item() == pytest.approx(0.25 * math.log(2))
    assert ForwardKL().between(STUDENT, TEACHER).item() == pytest.approx(0.25 * math.log(2))
    skewed = torch.tensor([[0.125, 0.625, 0.25]], dtype=torch.float64).log()
    # .5 log 4 + .25 log .4 = .693147 - .229073; .125 log .25 + .625 log 2.5 = -.173287 + .572682
    assert ReverseKL().between(STUDENT, skewed).item() == pytest.approx(0.464074, abs=1e-6)
    assert ForwardKL().between(STUDENT, skewed).item() == pytest.approx(0.399395, abs=1e-6)
    # beta .5: m = (.375, .375, .25); each half is .5 log(4/3) + .25 log(2/3) = .042475.
    assert JensenShannon().between(STUDENT, TEACHER).item() == pytest.approx(0.042475, abs=1e-6)
    # beta .1: m = (.475, .275, .25). KL(q || m) = .25 log(.25/.475) + .5 log(.5/.275) = .138455,
    # KL(p || m) = .5 log(.5/.475) + .25 log(.25/.275) = .001819; .1 * .138455 + .9 * .001819
    assert JensenShannon(0.1).between(STUDENT, TEACHER).item() == pytest.approx(0.015483, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_gradients_equal_autograd_on_the_full_formula(seed: int) -> None:
    ours, theirs = logits(seed)

    def gradient(divergence: Tensor, leaf: Tensor) -> Tensor:
        return torch.autograd.grad(divergence.sum(), leaf, retain_graph=True)[0]

    leaf = ours.clone().requires_grad_()
    p, q = leaf.softmax(-1), theirs.softmax(-1)
    plain: dict[DistillObjective, Tensor] = {
        ReverseKL(): (p * (p / q).log()).sum(-1),
        ForwardKL(): (q * (q / p).log()).sum(-1),
    }
    for beta in (0.1, 0.5, 0.9):
        m = beta * q + (1 - beta) * p
        plain[JensenShannon(beta)] = beta * (q * (q / m).log()).sum(-1) + (1 - beta) * (
            p * (p / m).log()
        ).sum(-1)
    for objective, expected in plain.items():
        other = ours.clone().requires_grad_()
        found = objective.between(other.log_softmax(-1), theirs.log_softmax(-1))
        torch.testing.assert_close(found, expected.detach())
        torch.testing.assert_close(gradient(found, other), gradient(expected, leaf))


@every_divergence
def test_equal_models_are_at_zero(objective: DistillObjective) -> None:
    ours, _ = logits(0)
    leaf = ours.clone().requires_grad_()
    found = objective.between(leaf.log_softmax(-1), ours.log_softmax(-1))
    (gradient,) = torch.autograd.grad(found.sum(), leaf)
    torch.testing.assert_close(found.detach(), torch.zeros(6).double(), rtol=0, atol=1e-15)
    torch.testing.assert_close(gradient, torch.zeros_like(ours), rtol=0, atol=1e-15)
    if isinstance(objective, ReverseKL):
        assert not found.any()
        assert not gradient.any()


@every_divergence
def test_loss_is_the_mean_over_counted_tokens(objective: DistillObjective) -> None:
    batch = masked(torch.tensor([[False, True, True], [False, True, False]]))
    divergences = torch.tensor([[9.0, 0.5, 0.25], [9.0, 2.0, math.nan]])
    assert objective(divergences, batch).item() == 2.75
    assert objective.denominator(batch) == 3


def test_jensen_shannon_lies_between_the_two_and_is_bounded() -> None:
    ours, theirs = (x.log_softmax(-1) for x in logits(1))
    small = 1e-7
    forward, reverse = (x.between(ours, theirs) for x in (ForwardKL(), ReverseKL()))
    to_forward = JensenShannon(small).between(ours, theirs) / small
    to_reverse = JensenShannon(1 - small).between(ours, theirs) / small
    torch.testing.assert_close(to_forward, forward, rtol=1e-4, atol=0)
    torch.testing.assert_close(to_reverse, reverse, rtol=1e-4, atol=0)
    apart = torch.tensor([[0.0, -800.0]], dtype=torch.float64)
    found = JensenShannon().between(apart, apart.flip(1)).item()
    assert found == pytest.approx(math.log(2))


def test_sampled_form_has_the_gradient_of_reverse_kl_in_expectation() -> None:
    """Each token of the vocabulary is drawn as often as the student draws it."""
    ours, theirs = logits(2, rows=1)
    leaf = ours.clone().requires_grad_()
    log_p, log_q = leaf.log_softmax(-1), theirs.log_softmax(-1)
    (expected,) = torch.autograd.grad(ReverseKL().between(log_p, log_q).sum(), leaf)
    total = torch.zeros_like(expected)
    mask = torch.tensor([[False, True]])
    for token in range(5):
        leaf = ours.clone().requires_grad_()
        chosen = torch.cat([torch.zeros(1).double(), leaf.log_softmax(-1)[0, token, None]])[None]
        graded = torch.tensor([[0.0, log_q[0, token]]], dtype=torch.float64)
        advantages = distillation_advantages(chosen, graded, mask)
        batch = replace(masked(mask), old_log_probs=chosen.detach(), advantages=advantages)
        objective = SampledReverseKL()
        loss = objective(chosen, batch) / objective.denominator(batch)
        (gradient,) = torch.autograd.grad(loss, leaf)
        total += log_p[0, token].exp().detach() * gradient
    torch.testing.assert_close(total, expected)


def test_sampled_form_is_the_policy_objective() -> None:
    mask = torch.tensor([[False, True, True], [False, True, False]])
    batch = masked(mask)
    assert SampledReverseKL().denominator(batch) == DAPO().denominator(batch) == 3
    assert SampledReverseKL(PolicyGradient()).denominator(batch) == 2


def test_advantages_leave_out_what_does_not_count_and_have_no_gradient() -> None:
    log_probs = torch.tensor([[math.nan, -1.0, -2.0]], requires_grad=True)
    teacher = torch.tensor([[1.0, -0.5, math.inf]])
    found = distillation_advantages(log_probs, teacher, torch.tensor([[False, True, False]]))
    assert found.tolist() == [[0.0, 0.5, 0.0]]
    assert not found.requires_grad


@pytest.mark.parametrize("beta", [0.0, 1.0, -1.0, math.nan])
def test_weights_outside_are_refused(beta: float) -> None:
    with pytest.raises(ValueError, match=r"limits are ForwardKL and ReverseKL"):
        JensenShannon(beta)


@pytest.mark.parametrize("policy", [GRPO(kl_weight=0.1), KLCov()])
def test_a_policy_objective_with_a_reference_or_statistics_is_refused(policy: GRPO | KLCov) -> None:
    with pytest.raises(ValueError, match=f"policy is {type(policy).__name__} with a reference"):
        SampledReverseKL(policy)
