from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rl.estimators import k1, k2, k3

Estimate = Callable[[Tensor, Tensor], Tensor]


def test_estimates_of_hand_worked_tokens() -> None:
    # policy 1/2; reference 1/2, 1/4, 1: log r = 0, -log 2, log 2; r - 1 = 0, -1/2, 1
    log_probs = torch.full((3,), 0.5, dtype=torch.float64).log()
    reference = torch.tensor([0.5, 0.25, 1.0], dtype=torch.float64).log()
    log2 = math.log(2)
    close = torch.testing.assert_close
    close(k1(log_probs, reference), torch.tensor([0, 1, -1]).double() * log2, rtol=0, atol=1e-15)
    close(
        k2(log_probs, reference),
        torch.tensor([0.0, 1, 1]).double() * log2**2 / 2,
        rtol=0,
        atol=1e-15,
    )
    expected = torch.tensor([0.0, -0.5, 1.0]).double() + torch.tensor([0.0, 1, -1]).double() * log2
    close(k3(log_probs, reference), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("estimate", "bias"), [(k1, 1e-12), (k2, 4e-3), (k3, 1e-12)])
def test_mean_over_the_policy_is_the_divergence(estimate: Estimate, bias: float) -> None:
    # Exact expectation over a distribution of four; k2 alone is biased.
    policy = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    reference = torch.tensor([0.15, 0.15, 0.35, 0.35], dtype=torch.float64)
    divergence = (policy * (policy / reference).log()).sum()
    mean = (policy * estimate(policy.log(), reference.log())).sum()
    assert abs(mean - divergence) <= bias


@given(difference=st.floats(-80, 80, width=32))
def test_k3_is_never_negative_and_0_only_at_agreement(difference: float) -> None:
    estimate = k3(torch.zeros(()), torch.tensor(difference))
    assert estimate >= 0
    if abs(difference) > 1e-3:
        assert estimate > 0


def test_k3_keeps_its_digits_where_the_policies_nearly_agree() -> None:
    # d^2/2 + d^3/6: exp(d) - 1 - d in float32 would have no right digit at d = 1e-3.
    difference = torch.tensor([1e-3, -1e-3])
    expected = difference.double() ** 2 / 2 + difference.double() ** 3 / 6
    torch.testing.assert_close(
        k3(torch.zeros(2), difference), expected.float(), rtol=2e-4, atol=0.0
    )


def test_gradients_of_hand_worked_token() -> None:
    # d/d log_prob with log r = log 2:  k1: 1;  k2: -log r;  k3: 1 - r = -1
    for estimate, expected in ((k1, 1.0), (k2, -math.log(2)), (k3, -1.0)):
        log_prob = torch.tensor(0.5, dtype=torch.float64).log().requires_grad_()
        estimate(log_prob, torch.tensor(0.0, dtype=torch.float64)).backward()
        assert log_prob.grad is not None
        assert math.isclose(log_prob.grad.item(), expected, rel_tol=1e-12)
