from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rl.q_losses import of_actions, q_errors, q_losses, q_targets
from rl.value_laws import CategoricalValues, ExpectedValues, QuantileValues, ValueLaw

ATOMS = CategoricalValues(atoms=3, low=0.0, high=2.0)
LAWS = [ExpectedValues(), ATOMS, QuantileValues(atoms=3)]


def outputs(law: ValueLaw, rows: int, actions: int = 2) -> Tensor:
    shape = (rows, actions) if law.atoms == 1 else (rows, actions, law.atoms)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("law", LAWS)
def test_of_actions_takes_each_rows_own(law: ValueLaw) -> None:
    x = outputs(law, 3)
    expected = torch.stack([x[0, 1], x[1, 0], x[2, 1]])
    assert torch.equal(of_actions(x, torch.tensor([1, 0, 1])), expected)


def test_expected_targets_value_with_one_network_what_the_other_selects() -> None:
    # The selecting network prefers action 1, which the other one values at 4: 1 + .5 * 4 = 3.
    selects, values = torch.tensor([[1.0, 2.0]] * 2), torch.tensor([[8.0, 4.0]] * 2)
    rewards, discounts = torch.tensor([1.0, 1.0]), torch.tensor([0.5, 0.0])
    targets = q_targets(ExpectedValues(), rewards, discounts, selects, values)
    assert targets.tolist() == [3.0, 1.0]


def test_action_that_is_ruled_out_is_not_followed() -> None:
    selects, values = torch.tensor([[1.0, -torch.inf]]), torch.tensor([[8.0, 4.0]])
    targets = q_targets(ExpectedValues(), torch.ones(1), torch.tensor([0.5]), selects, values)
    assert targets.tolist() == [5.0]


def test_categorical_targets_are_the_projection_of_the_selected_action() -> None:
    # Of action 1, p = (.5, 0, .5) on 0, 1, 2; r + z = .5, 2.5 -> .5 goes half to 0, half to 1,
    # and 2.5 is clipped to 2.
    p = torch.tensor([[[1.0, 1.0, 1.0], [0.5, 1e-30, 0.5]]])
    targets = q_targets(
        ATOMS, torch.tensor([0.5]), torch.ones(1), torch.tensor([[0.0, 1.0]]), p.log()
    )
    torch.testing.assert_close(targets, torch.tensor([[0.25, 0.25, 0.5]]))


def test_quantile_targets_shift_each_quantile_of_the_selected_action() -> None:
    quantiles = torch.tensor([[[1.0, 2.0, 6.0], [0.0, 0.0, 0.0]]])
    targets = q_targets(
        QuantileValues(atoms=3),
        torch.tensor([1.0]),
        torch.tensor([0.5]),
        torch.tensor([[1.0, 0.0]]),
        quantiles,
    )
    assert targets.tolist() == [[1.5, 2.0, 4.0]]


def test_expected_loss_is_a_square_up_to_one_and_then_a_line() -> None:
    # .5 * .5^2 = .125;  3 - .5 = 2.5
    chosen, targets = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 3.0])
    assert q_losses(ExpectedValues(), chosen, targets).tolist() == [0.125, 2.5]
    assert q_errors(ExpectedValues(), chosen, targets).tolist() == [0.5, 3.0]


def test_categorical_loss_is_the_cross_entropy() -> None:
    # -(.25 log .5 + .25 log .25 + .5 log .25) = log 2 (.25 + .5 + 1)
    chosen = torch.tensor([[0.5, 0.25, 0.25]]).log()
    targets = torch.tensor([[0.25, 0.25, 0.5]])
    expected = torch.tensor([1.75 * math.log(2)])
    torch.testing.assert_close(q_losses(ATOMS, chosen, targets), expected)
    torch.testing.assert_close(q_errors(ATOMS, chosen, targets), expected)


def test_quantile_loss_and_error_by_hand() -> None:
    # One quantile, tau = .5: |.5 - 1{u < 0}| L(u), u = 2 and -.5: .5 (1.5 + .125) / 2
    law, chosen = QuantileValues(atoms=1), torch.tensor([[1.0]])
    targets = torch.tensor([[3.0, 0.5]])
    assert q_losses(law, chosen, targets).tolist() == [0.40625]
    assert q_errors(law, chosen, targets).tolist() == [0.75]  # |1.75 - 1|


@pytest.mark.parametrize("law", LAWS)
def test_gradient_goes_through_the_chosen_outputs_alone(law: ValueLaw) -> None:
    now, then = outputs(law, 4).requires_grad_(), outputs(law, 4).requires_grad_()
    targets = q_targets(law, torch.ones(4), torch.ones(4), law.mean(then), then)
    chosen = of_actions(now, torch.tensor([0, 1, 1, 0]))
    assert not targets.requires_grad
    assert not q_errors(law, chosen, targets).requires_grad
    q_losses(law, chosen, targets).sum().backward()
    assert now.grad is not None
    moved = now.grad.flatten(2).abs().sum(-1) if law.atoms > 1 else now.grad.abs()
    assert (moved > 0).tolist() == [[True, False], [False, True], [False, True], [True, False]]
