from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rl.estimators import (
    categorical_projection,
    double_q_targets,
    expected_sarsa_targets,
    q_learning_targets,
    quantile_huber_loss,
)

NAN, INF = torch.nan, torch.inf
seeds = st.integers(0, 2**16)


def equal(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


# Three transitions: within an episode, truncated (it bootstraps all the same), terminal.
REWARDS = torch.tensor([1.0, 2.0, 4.0])
DISCOUNTS = torch.tensor([0.5, 0.5, 0.0])
NEXT_Q = torch.tensor([[2.0, 6.0], [8.0, 4.0], [100.0, 200.0]])


# --- targets ----------------------------------------------------------------------------------


def test_q_learning_targets_of_hand_worked_transitions() -> None:
    # 1 + 6/2, 2 + 8/2, 4
    equal(q_learning_targets(REWARDS, DISCOUNTS, NEXT_Q), torch.tensor([4.0, 6.0, 4.0]))


def test_double_q_targets_select_with_the_first_and_value_with_the_second() -> None:
    # actions 1, 0, 1 valued 10, 20, -: 1 + 10/2, 2 + 20/2, 4; the other way round 1 + 2/2, 2 + 4/2
    values = torch.tensor([[30.0, 10.0], [20.0, 40.0], [0.0, 0.0]])
    equal(double_q_targets(REWARDS, DISCOUNTS, NEXT_Q, values), torch.tensor([6.0, 12.0, 4.0]))
    equal(double_q_targets(REWARDS, DISCOUNTS, values, NEXT_Q), torch.tensor([2.0, 4.0, 4.0]))


def test_double_q_targets_take_the_first_of_equals() -> None:
    zero, values = torch.zeros(2, 3), torch.tensor([[1.0, 2.0, 3.0]]).expand(2, 3)
    equal(double_q_targets(torch.zeros(2), torch.ones(2), zero, values), torch.ones(2))


def test_expected_sarsa_targets_of_hand_worked_transitions() -> None:
    # 1 + (2/4 + 6 * 3/4) / 2, 2 + 4/2, 4
    policy = torch.tensor([[0.25, 0.75], [0.0, 1.0], [0.5, 0.5]])
    targets = expected_sarsa_targets(REWARDS, DISCOUNTS, NEXT_Q, policy)
    equal(targets, torch.tensor([3.5, 4.0, 4.0]))


@given(seed=seeds)
def test_expected_sarsa_of_the_greedy_policy_is_q_learning(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    next_q = torch.randn(2, 3, 4, generator=g)
    rewards, discounts = torch.randn(2, 2, 3, generator=g)
    greedy = torch.nn.functional.one_hot(next_q.argmax(-1), 4)
    targets = q_learning_targets(rewards, discounts, next_q)
    equal(expected_sarsa_targets(rewards, discounts, next_q, greedy), targets)
    equal(double_q_targets(rewards, discounts, next_q, next_q), targets)


TARGETS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "q-learning": q_learning_targets,
    "double-q": lambda r, d, q: double_q_targets(r, d, q, q),
    "expected-sarsa": lambda r, d, q: expected_sarsa_targets(r, d, q, torch.full_like(q, 0.5)),
}
every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


@every_target
def test_targets_carry_no_gradient_and_keep_type_and_axes(
    target: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> None:
    rewards = torch.zeros((), dtype=torch.float64, requires_grad=True)
    next_q = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    y = target(rewards, rewards, next_q)
    assert (y.shape, y.dtype, y.requires_grad) == ((), torch.float64, False)
    assert target(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, 3, 2)).shape == (0, 3)


@every_target
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_values_behind_a_terminal_count_for_nothing(
    target: Callable[[Tensor, Tensor, Tensor], Tensor], bad: float
) -> None:
    equal(target(torch.ones(1), torch.zeros(1), torch.full((1, 2), bad)), torch.ones(1))


def test_actions_ruled_out_are_neither_selected_nor_averaged() -> None:
    r, d, next_q = torch.ones(1), torch.ones(1), torch.tensor([[-INF, 3.0]])
    four = torch.tensor([4.0])
    equal(q_learning_targets(r, d, next_q), four)
    equal(double_q_targets(r, d, next_q, next_q), four)
    equal(expected_sarsa_targets(r, d, next_q, torch.tensor([[0.0, 1.0]])), four)


@every_target
def test_tables_that_do_not_fit_are_refused(
    target: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> None:
    with pytest.raises(ValueError, match=r"next_q_values of shape \(3, 2\) for rewards .*\(2,\)"):
        target(torch.zeros(2), torch.zeros(2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"next_q_values of shape \(2,\) for rewards .*\(2,\)"):
        target(torch.zeros(2), torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match=r"discounts of shape \(2, 1\) for rewards .*\(2,\)"):
        target(torch.zeros(2), torch.zeros(2, 1), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="not empty"):
        target(torch.zeros(2), torch.zeros(2), torch.zeros(2, 0))


def test_two_tables_of_unequal_shapes_are_refused() -> None:
    zero, table, other = torch.zeros(2), torch.zeros(2, 3), torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"next_target_q_values of shape \(2, 4\) for next_q_val"):
        double_q_targets(zero, zero, table, other)
    with pytest.raises(ValueError, match=r"next_probabilities of shape \(2, 4\) for next_q_values"):
        expected_sarsa_targets(zero, zero, table, other)


# --- categorical projection -------------------------------------------------------------------

ATOMS = torch.tensor([0.0, 1.0, 2.0, 3.0])


def project_by_the_loop(
    p: list[float], atoms: list[float], reward: float, discount: float
) -> list[float]:
    """Algorithm 1, with the case that it leaves out, in plain numbers."""
    low, spacing, count = atoms[0], atoms[1] - atoms[0], len(atoms)
    projected = [0.0] * count
    for j in range(count):
        x = min(max(reward + discount * atoms[j], low), atoms[-1])
        place = min((x - low) / spacing, count - 1)
        lower, upper = math.floor(place), math.ceil(place)
        if lower == upper:
            projected[lower] += p[j]
        else:
            projected[lower] += p[j] * (upper - place)
            projected[upper] += p[j] * (place - lower)
    return projected


def test_projection_of_hand_worked_transitions() -> None:
    # truncated, r = 1/2, discount 1/2: 0, 1, 2, 3 -> .5, 1, 1.5, 2: halves of p_0 to 0 and 1, p_1
    # to 1, halves of p_2 to 1 and 2, p_3 to 2.  terminal, r = 2.25: all of it at 2.25.
    p = torch.tensor([0.125, 0.125, 0.25, 0.5]).expand(2, 4)
    rewards, discounts = torch.tensor([0.5, 2.25]), torch.tensor([0.5, 0.0])
    expected = torch.tensor([[0.0625, 0.3125, 0.625, 0.0], [0.0, 0.0, 0.75, 0.25]])
    equal(categorical_projection(p, ATOMS, rewards, discounts), expected)


def test_projection_gathers_what_leaves_the_range_at_its_ends() -> None:
    p = torch.tensor([0.125, 0.125, 0.25, 0.5])
    for reward, expected in [(9.0, [0.0, 0, 0, 1]), (-9.0, [1.0, 0, 0, 0]), (INF, [0.0, 0, 0, 1])]:
        projected = categorical_projection(p, ATOMS, torch.tensor(reward), torch.tensor(1.0))
        equal(projected, torch.tensor(expected))
    # moved by exactly one atom, the last two meet at the end
    projected = categorical_projection(p, ATOMS, torch.tensor(1.0), torch.tensor(1.0))
    equal(projected, torch.tensor([0.0, 0.125, 0.125, 0.75]))


def test_projection_onto_the_atoms_themselves_is_exact() -> None:
    # None of these atoms is a binary fraction, and the spacing is not theirs by a rounding.
    atoms = torch.linspace(-10, 10, 51)
    p = torch.randn(51, generator=torch.Generator().manual_seed(0)).softmax(-1)
    equal(categorical_projection(p, atoms, torch.tensor(0.0), torch.tensor(1.0)), p)


@given(
    seed=seeds,
    reward=st.floats(-20, 20),
    discount=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    count=st.integers(2, 9),
)
def test_projection_agrees_with_the_loop_and_loses_nothing(
    seed: int, reward: float, discount: float, count: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    p = torch.randn(count, generator=g, dtype=torch.float64).softmax(-1)
    atoms = torch.linspace(-8, 8, count, dtype=torch.float64)
    r, d = torch.tensor([reward, discount], dtype=torch.float64)
    projected = categorical_projection(p, atoms, r, d)
    expected = project_by_the_loop(p.tolist(), atoms.tolist(), reward, discount)
    torch.testing.assert_close(projected, torch.tensor(expected, dtype=r.dtype), rtol=0, atol=1e-12)
    assert math.isclose(projected.sum().item(), 1.0, abs_tol=1e-14)
    assert projected.min() >= 0


@given(seed=seeds, reward=st.floats(-1, 1))
def test_projection_keeps_the_mean_within_the_range(seed: int, reward: float) -> None:
    g = torch.Generator().manual_seed(seed)
    p = torch.randn(11, generator=g, dtype=torch.float64).softmax(-1)
    atoms = torch.linspace(-4, 4, 11, dtype=torch.float64)
    r, d = torch.tensor([reward, 0.7], dtype=torch.float64)
    projected = categorical_projection(p, atoms, r, d)
    torch.testing.assert_close(projected @ atoms, r + d * (p @ atoms), rtol=0, atol=1e-12)


def test_projection_takes_leading_axes_strides_and_types() -> None:
    g = torch.Generator().manual_seed(0)
    p = torch.randn(3, 4, 2, generator=g).softmax(1).mT.requires_grad_()  # (3, 2, 4), strided
    rewards, discounts = torch.randn(2, 2, 3, generator=g, dtype=torch.float64).mT
    atoms = torch.arange(8.0)[::2]
    projected = categorical_projection(p, atoms, rewards, discounts)
    assert projected.shape == (3, 2, 4)
    assert projected.dtype == torch.float64
    assert not projected.requires_grad
    equal(projected[2, 1], categorical_projection(p[2, 1], atoms, rewards[2, 1], discounts[2, 1]))


@pytest.mark.parametrize(
    "atoms",
    [
        torch.linspace(-10, 10, 51),
        torch.linspace(-10, 10, 51, dtype=torch.float64),
        torch.linspace(-10, 10, 51).double(),
        torch.linspace(-10, 10, 51).bfloat16(),
        -10 + 0.4 * torch.arange(51),
        torch.linspace(1000, 1001, 101),
        torch.arange(5),
    ],
)
def test_atoms_as_they_are_made_are_equally_spaced(atoms: Tensor) -> None:
    p = torch.full(atoms.shape, 1 / len(atoms))
    projected = categorical_projection(p, atoms, torch.tensor(0.0), torch.tensor(1.0))
    torch.testing.assert_close(projected.float(), p)


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        ([1.0, 0.0], "ascend"),
        ([0.0, 1.0, 3.0], "equally spaced"),
        ([0.0, 1.0, 2.01], "equally spaced"),
        ([1.0, 1.0], "ascend"),
        ([0.0, NAN, 2.0], "ascend"),
        ([0.0, INF], "ascend"),
        ([1.0], r"shape \(1,\): give \(N,\), at least 2"),
        ([[0.0, 1.0]], r"shape \(1, 2\): give \(N,\)"),
    ],
)
def test_atoms_that_are_no_grid_are_refused(atoms: list[float], message: str) -> None:
    z = torch.tensor(atoms)
    with pytest.raises(ValueError, match=message):
        categorical_projection(torch.ones_like(z), z, torch.tensor(0.0), torch.tensor(1.0))


def test_projection_refuses_shapes_that_do_not_fit() -> None:
    zero = torch.zeros(2)
    with pytest.raises(ValueError, match=r"probabilities of shape \(2, 3\) for atoms .*\(4,\)"):
        categorical_projection(torch.zeros(2, 3), ATOMS, zero, zero)
    with pytest.raises(ValueError, match=r"probabilities of shape \(4,\) for rewards .*\(2,\)"):
        categorical_projection(torch.zeros(4), ATOMS, zero, zero)
    with pytest.raises(ValueError, match=r"discounts of shape \(\) for rewards of shape \(2,\)"):
        categorical_projection(torch.zeros(2, 4), ATOMS, zero, torch.tensor(0.9))


# --- quantile Huber loss ----------------------------------------------------------------------


def loss_by_the_loop(quantiles: list[float], targets: list[float], kappa: float) -> float:
    total = 0.0
    for i, q in enumerate(quantiles):
        tau = (i + 0.5) / len(quantiles)
        for y in targets:
            u = y - q
            huber = u * u / 2 if abs(u) <= kappa else kappa * (abs(u) - kappa / 2)
            loss = huber / kappa if kappa else abs(u)
            total += abs(tau - (u < 0)) * loss / len(targets)
    return total


def test_quantile_loss_of_hand_worked_targets() -> None:
    # q = (0, 1), tau = (1/4, 3/4).  y = 3: u = 3, 2: 1/4 * 2.5 + 3/4 * 1.5 = 1.75
    # y = 1/2: u = 1/2, -1/2: 1/4 / 8 + 1/4 / 8 = 1/16.  Mean over targets: 29/32
    # kappa = 2, y = 3: 1/4 * 2 (3 - 1) / 2 + 3/4 * 4 / 2 / 2 = 1.25
    q = torch.tensor([[0.0, 1.0]])
    equal(quantile_huber_loss(q, torch.tensor([[3.0, 0.5]])), torch.tensor([29 / 32]))
    equal(quantile_huber_loss(q, torch.tensor([[3.0]]), kappa=2.0), torch.tensor([1.25]))
    equal(quantile_huber_loss(q, torch.tensor([[3.0]]), kappa=0.0), torch.tensor([2.25]))


def test_quantile_loss_of_targets_from_a_truncated_and_a_terminal_step() -> None:
    # y = 1 + 1/2 (2, 4) = (2, 3) truncated, (1, 1) terminal; q = 1, tau = 1/2, kappa 1:
    # (1/2 * 1/2 + 1/2 * 1.5) / 2 = 1/2, and 0
    next_quantiles, discounts = torch.tensor([[2.0, 4.0], [2.0, 4.0]]), torch.tensor([[0.5], [0.0]])
    losses = quantile_huber_loss(torch.ones(2, 1), 1 + discounts * next_quantiles)
    equal(losses, torch.tensor([0.5, 0.0]))


@given(seed=seeds, kappa=st.sampled_from([0.0, 1e-3, 0.5, 1.0, 10.0]))
def test_quantile_loss_agrees_with_the_loop(seed: int, kappa: float) -> None:
    g = torch.Generator().manual_seed(seed)
    quantiles = torch.randn(2, 3, 4, generator=g, dtype=torch.float64)
    targets = torch.randn(2, 3, 5, generator=g, dtype=torch.float64)
    losses = quantile_huber_loss(quantiles, targets, kappa)
    assert losses.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            expected = loss_by_the_loop(quantiles[i, j].tolist(), targets[i, j].tolist(), kappa)
            assert losses[i, j].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kappa", [0.0, 0.5, 1.0])
def test_quantile_loss_has_its_gradient_in_the_quantiles_alone(kappa: float) -> None:
    g = torch.Generator().manual_seed(0)
    quantiles = torch.randn(2, 3, generator=g, dtype=torch.float64).requires_grad_()
    targets = torch.randn(2, 4, generator=g, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda q: quantile_huber_loss(q, targets, kappa), quantiles)
    targets.requires_grad_()
    quantile_huber_loss(quantiles, targets, kappa).sum().backward()
    assert targets.grad is None


def test_quantile_gradient_of_hand_worked_targets() -> None:
    # -|tau - 1{u < 0}| clip(u, -1, 1), tau = 1/2: u = 1/2, 3, -2, 0 -> -1/4, -1/2, 1/2, 0
    for y, slope in ((0.5, -0.25), (3.0, -0.5), (-2.0, 0.5), (0.0, 0.0)):
        q = torch.zeros(1, 1, requires_grad=True)
        quantile_huber_loss(q, torch.tensor([[y]])).sum().backward()
        equal(torch.as_tensor(q.grad), torch.tensor([[slope]]))


def test_quantile_regression_finds_the_quantiles() -> None:
    # Of 1, ..., 8 the loss is least with q_0 among its lower quarter's ends and q_1 the upper's.
    targets = torch.arange(1.0, 9.0).unsqueeze(0)
    grid = torch.arange(0.5, 9.0, 1.0)
    pairs = torch.cartesian_prod(grid, grid)
    losses = quantile_huber_loss(pairs, targets.expand(len(pairs), 8), kappa=0.0)
    equal(pairs[losses.argmin()], torch.tensor([2.5, 6.5]))


@pytest.mark.parametrize("kappa", [-1.0, INF, NAN])
def test_kappa_is_finite_and_not_negative(kappa: float) -> None:
    with pytest.raises(ValueError, match=f"kappa={kappa}: .* 0 or more"):
        quantile_huber_loss(torch.zeros(1, 2), torch.zeros(1, 2), kappa)


def test_quantile_loss_refuses_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"targets of shape \(3, 2\) for quantiles .*\(2, 2\)"):
        quantile_huber_loss(torch.zeros(2, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"targets of shape \(2, 0\): give at least one"):
        quantile_huber_loss(torch.zeros(2, 2), torch.zeros(2, 0))
    with pytest.raises(ValueError, match=r"quantiles of shape \(\): give at least one"):
        quantile_huber_loss(torch.tensor(0.0), torch.zeros(2))
