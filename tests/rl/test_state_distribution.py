from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.mdp import TabularMDP, grid_world
from rl.state_distribution import on_policy_distribution


def chain(transitions: list[list[float]], start: list[float] | None = None) -> TabularMDP:
    """Return a model with one action."""
    table = np.array(transitions)
    return TabularMDP(table[:, None], np.zeros((len(table), 1)), start)


@pytest.mark.parametrize(
    ("transitions", "start", "expected"),
    [
        # in balance: 1/2 of state 0 leaves, 1/4 of state 1
        ([[0.5, 0.5], [0.25, 0.75]], [1, 0], [1 / 3, 2 / 3]),
        ([[0, 1], [1, 0]], [1, 0], [0.5, 0.5]),  # periodic
        ([[0.5, 0], [0, 0]], [0.5, 0.5], [2 / 3, 1 / 3]),  # 2 visits half of the time, 1 half
        ([[0, 1, 0], [0, 0, 1], [0, 0, 0.5]], [1, 0, 0], [0.25, 0.25, 0.5]),
        ([[0, 1], [0, 1]], [1, 0], [0, 1]),  # passed through, never to return
        ([[0, 0.25, 0.75], [0, 1, 0], [0, 0, 1]], [1, 0, 0], [0, 0.25, 0.75]),  # two traps
        ([[0, 0.25, 0.25], [0, 1, 0], [0, 0, 1]], [1, 0, 0], [0, 0.5, 0.5]),  # ends, begins anew
        ([[1, 0], [0.5, 0.5]], [1, 0], [1, 0]),  # state 1 is not reached
        ([[0.5]], [1], [1]),
    ],
)
def test_distribution_of_hand_worked_chains(
    transitions: list[list[float]], start: list[float], expected: list[float]
) -> None:
    found = on_policy_distribution(chain(transitions, start), [0] * len(transitions))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)


@given(seed=st.integers(0, 2**16), ending=st.sampled_from([0.0, 0.2]))
def test_distribution_is_what_many_steps_average_to(seed: int, ending: float) -> None:
    rng = np.random.default_rng(seed)
    table = rng.random((4, 2, 4)) * (rng.random((4, 2, 4)) < 0.4) + 1e-3
    table *= (1 - ending) / table.sum(-1, keepdims=True)
    policy, start = rng.dirichlet(np.ones(2), 4), rng.dirichlet(np.ones(4))
    found = on_policy_distribution(TabularMDP(table, np.zeros((4, 2)), start), policy)
    moves = np.einsum("sa,sat->st", policy, table) + ending * start  # an end begins anew
    np.testing.assert_allclose(found @ moves, found, rtol=0, atol=1e-12)
    assert found.sum() == pytest.approx(1, abs=1e-14)


def test_distribution_takes_actions_and_sparse_models() -> None:
    grid = grid_world(2, 2, forbidden=[], target=(1, 1))
    found = on_policy_distribution(grid, [2, 2, 1, 4])  # all go to the target and stay
    np.testing.assert_allclose(found, [0, 0, 0, 1], rtol=0, atol=1e-15)
    sparse = TabularMDP(grid.csr, grid.rewards)
    np.testing.assert_array_equal(on_policy_distribution(sparse, [2, 2, 1, 4]), found)


def test_distribution_of_an_environment() -> None:
    found = on_policy_distribution("CliffWalking-v1", np.full((48, 4), 0.25))
    assert found.shape == (48,)
    assert found[36] > found[0] > 0  # where it begins, and is thrown back to
    assert found[47] == 0  # the goal, where nothing is done


def test_distribution_refuses_a_policy_of_wrong_shape() -> None:
    with pytest.raises(ValueError, match=r"policy of shape \(3,\): expected actions \(2,\)"):
        on_policy_distribution(chain([[0, 1], [1, 0]]), [0, 0, 0])
