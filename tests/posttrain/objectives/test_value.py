from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from posttrain.objectives import ValueLoss
from posttrain.rollout import RolloutBatch

MASK = torch.tensor([[False, True, True, True, True]])


def batch(values: Tensor, returns: Tensor, mask: Tensor = MASK) -> RolloutBatch:
    zeros = torch.zeros(mask.shape)
    return RolloutBatch(
        tokens=zeros.long(),
        mask=mask,
        old_log_probs=zeros,
        advantages=zeros,
        values=values,
        returns=returns,
    )


# Old values 0, returns 1 but for the last, -1. The new values moved by:
#   0.25  within the limit: (0.25 - 1)^2 = 0.5625
#   0.75  too far towards the return: held at 0.5, so the error is (0.5 - 1)^2, without gradient
#  -0.75  too far away from it: held at -0.5 would be less wrong, so (-0.75 - 1)^2 = 3.0625
#   0.75  too far away from -1: 1.75^2 = 3.0625
VALUES = torch.tensor([[9.0, 0.25, 0.75, -0.75, 0.75]])
OLD = torch.tensor([[9.0, 0.0, 0.0, 0.0, 0.0]])
RETURNS = torch.tensor([[-9.0, 1.0, 1.0, 1.0, -1.0]])


def test_clipped_loss_of_hand_worked_tokens() -> None:
    values, loss = VALUES.clone().requires_grad_(), ValueLoss(clip=0.5)
    rows = batch(OLD, RETURNS)
    total = loss(values, rows)
    assert total.item() == 0.5 * (0.5625 + 0.25 + 3.0625 + 3.0625)
    assert loss.denominator(rows).item() == 4
    assert loss.clipped(values, rows).tolist() == [[False, False, True, False, False]]
    total.backward()
    # the errors V - R, 0 where the value is held
    expected = torch.tensor([[0.0, -0.75, 0.0, -1.75, 1.75]])
    torch.testing.assert_close(values.grad, expected, rtol=0, atol=0)


def test_without_a_clip_it_is_half_the_squared_error() -> None:
    values, loss = VALUES.clone().requires_grad_(), ValueLoss(clip=None)
    rows = replace(batch(OLD, RETURNS), values=None)
    total = loss(values, rows)
    assert total.item() == 0.5 * (0.5625 + 0.0625 + 3.0625 + 3.0625)
    assert not loss.clipped(values, rows).any()
    total.backward()
    expected = torch.tensor([[0.0, -0.75, -0.25, -1.75, 1.75]])
    torch.testing.assert_close(values.grad, expected, rtol=0, atol=0)


def test_at_the_old_values_the_gradient_is_that_of_the_plain_loss() -> None:
    values = OLD.clone().requires_grad_()
    ValueLoss(clip=0.1)(values, batch(OLD, RETURNS)).backward()
    torch.testing.assert_close(values.grad, torch.where(MASK, OLD - RETURNS, 0.0), rtol=0, atol=0)


def test_a_batch_without_returns_is_refused() -> None:
    rows = replace(batch(OLD, RETURNS), returns=None)
    with pytest.raises(ValueError, match="the batch has no returns"):
        ValueLoss()(VALUES, rows)
    with pytest.raises(ValueError, match="no values of the old critic"):
        ValueLoss()(VALUES, replace(rows, returns=RETURNS, values=None))


def test_a_limit_of_0_is_refused() -> None:
    with pytest.raises(ValueError, match=r"clip=0\.0: .* or None not to clip"):
        ValueLoss(clip=0.0)
