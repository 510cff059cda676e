"""Exact values of GRPO, DAPO and Dr. GRPO on one batch, worked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from posttrain.objectives import DAPO, GRPO, DrGRPO, Objective
from posttrain.rollout.batch import RolloutBatch
from rl.estimators import k1, k3

# Row 0: one prompt token, then two tokens.  Row 1: one token.  Row 2: padding.
#            ratios             advantages
#   row 0:   1    2             1    1
#   row 1:   1/2                -1
MASK = torch.tensor([[0, 1, 1], [0, 1, 0], [0, 0, 0]]).bool()
LOG_PROBS = torch.tensor([[0, 0.5, 1.0], [0, 0.25, 0], [0, 0, 0]], dtype=torch.float64).log()
OLD = torch.tensor([[0, 0.5, 0.5], [0, 0.5, 0], [0, 0, 0]], dtype=torch.float64).log()
REF = torch.tensor([[0, 0.25, 1.0], [0, 0.5, 0], [0, 0, 0]], dtype=torch.float64).log()
ADVANTAGES = torch.tensor([[0, 1.0, 1], [0, -1, 0], [0, 0, 0]], dtype=torch.float64)


def batch(ref: Tensor | None = REF, advantages: Tensor = ADVANTAGES) -> RolloutBatch:
    return RolloutBatch(
        tokens=torch.zeros(3, 3, dtype=torch.int64),
        mask=MASK,
        old_log_probs=OLD,
        advantages=advantages,
        ref_log_probs=ref,
    )


def value(objective: Objective, b: RolloutBatch | None = None) -> float:
    b = batch() if b is None else b
    return (objective(LOG_PROBS, b) / objective.denominator(b)).item()


def near(expected: float) -> object:
    return pytest.approx(expected, rel=1e-14)


def test_grpo_is_the_mean_over_tokens_then_over_sequences() -> None:
    # gains: row 0: 1 and min(2, 1.25) = 1.25, mean 1.125;  row 1: min(-.5, -.75) = -.75
    assert value(GRPO(clip_low=0.25, clip_high=0.25)) == near(-(1.125 - 0.75) / 2)
    assert GRPO().denominator(batch()) == 2


def test_dapo_is_the_mean_over_tokens() -> None:
    # gains with the wider upper limit: 1, 1.5, -.75
    assert value(DAPO(clip_low=0.25, clip_high=0.5)) == near(-(1 + 1.5 - 0.75) / 3)
    assert DAPO().denominator(batch()) == 3


def test_dr_grpo_is_the_sum_over_tokens_by_sequences_times_a_constant() -> None:
    assert value(DrGRPO(8, clip_low=0.25, clip_high=0.25)) == near(-(1 + 1.25 - 0.75) / (2 * 8))
    assert DrGRPO(max_length=8).denominator(batch()) == 16


def test_defaults_are_those_of_the_papers() -> None:
    assert GRPO() == GRPO(clip_low=0.2, clip_high=0.2, kl_weight=0.0, kl=k3, dual_clip=None)
    assert DAPO() == DAPO(clip_low=0.2, clip_high=0.28)
    assert DrGRPO(4) == DrGRPO(
        max_length=4, clip_low=0.2, clip_high=0.2, kl_weight=0.0, kl=k3, dual_clip=None
    )


def test_kl_is_added_per_token_and_not_weighted_by_the_ratio() -> None:
    # k3 with r = ref / policy: row 0: r = 1/2: log 2 - 1/2;  r = 1: 0;  row 1: r = 2: 1 - log 2
    log2 = math.log(2)
    plain = -(1.125 - 0.75) / 2
    penalty = ((log2 - 0.5) / 2 + (1 - log2)) / 2
    objective = GRPO(clip_low=0.25, clip_high=0.25, kl_weight=0.5)
    assert value(objective) == near(plain + 0.5 * penalty)
    constant = DrGRPO(8, clip_low=0.25, clip_high=0.25, kl_weight=0.5)
    assert value(constant) == near(-1.5 / 16 + 0.5 * (log2 - 0.5 + 1 - log2) / 16)


def test_kl_estimate_is_the_one_that_was_passed() -> None:
    # k1 = log policy - log ref: log 2, 0, -log 2
    objective = GRPO(clip_low=0.25, clip_high=0.25, kl_weight=1.0, kl=k1)
    assert value(objective) == near(-0.1875 + (math.log(2) / 2 - math.log(2)) / 2)


def test_kl_of_a_function_of_ones_own_does_not_leak_into_masked_tokens() -> None:
    def one(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
        return torch.ones_like(log_probs)

    # 1 for each counted token: mean 1 per sequence
    assert value(GRPO(clip_low=0.25, clip_high=0.25, kl_weight=1.0, kl=one)) == near(-0.1875 + 1)


def test_reference_gets_no_gradient_and_kl_weight_0_does_not_read_it() -> None:
    ref = REF.clone().requires_grad_()
    log_probs = LOG_PROBS.clone().requires_grad_()
    GRPO(kl_weight=1.0)(log_probs, batch(ref)).backward()
    assert ref.grad is None
    unread = torch.full_like(REF, math.nan)
    assert value(GRPO(), batch(unread)) == value(GRPO(), batch(None))


@pytest.mark.parametrize("make", [GRPO, lambda **settings: DrGRPO(4, **settings)])
def test_kl_weight_without_reference_is_refused(make: Callable[..., Objective]) -> None:
    with pytest.raises(ValueError, match=r"needs the reference.*ref_log_probs=None"):
        make(kl_weight=1e-6)(LOG_PROBS, batch(None))


@pytest.mark.parametrize("make", [GRPO, lambda **settings: DrGRPO(4, **settings)])
def test_dual_clip_bounds_the_gain_where_the_advantage_is_negative(
    make: Callable[..., Objective],
) -> None:
    # Row 0's second token has w = 2; with A = -1 its gain is -2, with dual_clip 1.5 it is -1.5
    # and no longer depends on the policy. Positive advantages are not touched.
    for sign, dual, expected in (
        (-1.0, None, -2.0), (-1.0, 1.5, -1.5), (-1.0, 3.0, -2.0), (1.0, 1.5, 1.25),
    ):  # fmt: skip
        advantages = torch.zeros(3, 3, dtype=torch.float64)
        advantages[0, 2] = sign
        log_probs = LOG_PROBS.clone().requires_grad_()
        objective = make(clip_high=0.25, dual_clip=dual)
        loss = objective(log_probs, batch(advantages=advantages))
        loss.backward()
        weight = 0.5 if make is GRPO else 1.0
        assert loss.item() == near(-weight * expected)
        assert log_probs.grad is not None
        assert log_probs.grad[0, 2].item() == near(2.0 * weight if expected == -2.0 else 0.0)


@pytest.mark.parametrize("make", [GRPO, lambda **settings: DrGRPO(4, **settings)])
def test_dual_clip_of_1_keeps_gain_and_gradient_at_the_policy_that_sampled(
    make: Callable[..., Objective],
) -> None:
    # At w = 1 the bound is met and cuts nothing off yet; at w = 2 the gain is A, without gradient.
    losses: list[float] = []
    gradients: list[torch.Tensor] = []
    for dual in (None, 1.0):
        rollouts = batch(advantages=-torch.ones(3, 3, dtype=torch.float64))
        log_probs = rollouts.old_log_probs.clone().requires_grad_()
        loss = make(dual_clip=dual)(log_probs, rollouts)
        losses.append(loss.item())
        gradients += torch.autograd.grad(loss, log_probs)
    assert losses[0] == near(losses[1])
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[0], gradients[1])
    rollouts = batch(advantages=-torch.ones(3, 3, dtype=torch.float64))
    log_probs = (rollouts.old_log_probs + math.log(2)).requires_grad_()
    loss = make(dual_clip=1.0)(log_probs, rollouts)
    assert loss.item() == near(losses[1])
    assert torch.autograd.grad(loss, log_probs)[0].abs().sum() == 0


@pytest.mark.parametrize(
    ("make", "settings", "match"),
    [
        (GRPO, {"clip_low": -0.1}, "clip_low=-0.1"),
        (GRPO, {"clip_high": math.nan}, "clip_high=nan"),
        (GRPO, {"kl_weight": -1.0}, "kl_weight=-1.0"),
        (GRPO, {"kl_weight": math.inf}, "kl_weight=inf"),
        (GRPO, {"dual_clip": 0.999}, "dual_clip=0.999: below 1 .* use 1 or more"),
        (GRPO, {"dual_clip": math.nan}, "dual_clip=nan"),
        (DAPO, {"clip_high": -1.0}, "clip_high=-1.0"),
        (DrGRPO, {"max_length": 0}, "max_length=0"),
        (DrGRPO, {"max_length": 4, "dual_clip": 0.5}, "dual_clip=0.5"),
    ],
)
def test_settings_that_push_the_wrong_way_are_refused(
    make: Callable[..., Objective], settings: dict[str, float], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        make(**settings)
