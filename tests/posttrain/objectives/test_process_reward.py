import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.step_labels import StepBatch
from posttrain.objectives import StepReward


def made(seed: int) -> tuple[torch.Tensor, StepBatch]:
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(5, 6, generator=g) < 0.5
    labels = torch.where(mask, torch.rand(5, 6, generator=g), 0.0)
    batch = StepBatch(tokens=torch.zeros(5, 6).long(), mask=mask, labels=labels.double())
    return torch.randn(5, 6, generator=g).double(), batch


def test_loss_of_hand_worked_steps() -> None:
    # right at score 0: log 2; wrong at score 1: log(1 + e) = 1.313261688;
    # half right at score 2: (log(1 + e^-2) + log(1 + e^2)) / 2 = 0.126928011 + 1 = 1.126928011
    batch = StepBatch(
        tokens=torch.zeros(1, 4).long(),
        mask=torch.tensor([[True, False, True, True]]),
        labels=torch.tensor([[1.0, 0.0, 0.0, 0.5]]).double(),
    )
    scores = torch.tensor([[0.0, 9.0, 1.0, 2.0]]).double()
    loss = StepReward()(scores, batch)
    assert loss.item() == pytest.approx(math.log(2) + 1.313261688 + 1.126928011, abs=1e-8)
    assert StepReward().denominator(batch) == 3


@given(seed=st.integers(0, 99))
def test_gradient_of_a_step_is_its_probability_less_its_label(seed: int) -> None:
    scores, batch = made(seed)
    leaf = scores.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(StepReward()(leaf, batch), leaf)
    expected = torch.where(batch.mask, scores.sigmoid() - batch.labels, 0.0)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_no_step_is_a_loss_of_zero() -> None:
    scores, batch = made(0)
    assert StepReward()(scores[:0], batch.empty()) == 0
    assert StepReward().denominator(batch.empty()) == 0
