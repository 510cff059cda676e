from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse

from rl.bellman import check_settled, most_sweeps
from rl.mdp import TabularMDP, as_mdp, grid_world
from rl.planning import (
    Solution,
    finite_horizon,
    linear_program,
    policy_evaluation,
    policy_iteration,
    relative_value_iteration,
    truncated_policy_iteration,
    value_iteration,
)
from rl.proper import ending_actions, paying_cycle
from rl.sweeps import compiled_optimality_sweeps, optimality_sweeps

UP, RIGHT, DOWN, LEFT, STAY = range(5)
Planner = Callable[[TabularMDP, float], Solution]


def truncated(mdp: TabularMDP, discount: float) -> Solution:
    return truncated_policy_iteration(mdp, discount, backups=5)


PLANNERS: list[Planner] = [value_iteration, policy_iteration, truncated, linear_program]
every_planner = pytest.mark.parametrize("plan", PLANNERS, ids=lambda plan: plan.__name__)


def close(actual: NDArray[np.float64], expected: object, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)  # type: ignore[call-overload]


def random_mdp(seed: int, *, states: int = 4, actions: int = 3, ending: float = 0.1) -> TabularMDP:
    """Return a model of which half of the entries are 0, and every pair ends with ``ending``."""
    rng = np.random.default_rng(seed)
    weights = rng.random((states, actions, states)) * (rng.random((states, actions, states)) < 0.5)
    weights[..., 0] += 0.1
    chances = weights / weights.sum(-1, keepdims=True)
    return TabularMDP((1 - ending) * chances, rng.normal(size=(states, actions)))


def every_policy(mdp: TabularMDP) -> list[NDArray[np.int64]]:
    choices = itertools.product(range(mdp.actions), repeat=mdp.states)
    return [np.array(choice) for choice in choices]


def two_by_two() -> TabularMDP:
    """Zhao's grid of figures 2.4, 3.2 and 4.2: 1 is forbidden (top right), 3 the target."""
    return grid_world(2, 2, forbidden=[(0, 1)], target=(1, 1))


# --- the book's examples ----------------------------------------------------------------------


@every_planner
def test_best_values_of_zhaos_two_by_two_grid(plan: Planner) -> None:
    # v(3) = 1 + .9 v(3) = 10;  v(1) = v(2) = 1 + .9 v(3) = 10;  v(0) = 0 + .9 v(2) = 9
    found = plan(two_by_two(), 0.9)
    close(found.values, [9, 10, 10, 10], 1e-7)
    np.testing.assert_array_equal(found.policy, [DOWN, DOWN, RIGHT, STAY])


def test_sweeps_of_zhaos_two_by_two_grid() -> None:
    # Section 4.1: v_1 = (0, 1, 1, 1), v_2 = (.9, 1.9, 1.9, 1.9), so changes of 1 and .9, then
    # v_3 = (.9 * 1.9, 2.71, 2.71, 2.71): .81
    found = value_iteration(two_by_two(), 0.9, tolerance=0.85)
    assert found.iterations == 3
    close(found.residuals, [1, 0.9, 0.81], 1e-15)
    close(found.values, [1.71, 2.71, 2.71, 2.71], 1e-15)
    again = value_iteration(two_by_two(), 0.9, tolerance=0.85, initial_values=[0.9, 1.9, 1.9, 1.9])
    assert again.iterations == 1
    close(again.values, found.values, 0)


def test_values_of_two_policies_of_zhaos_two_by_two_grid() -> None:
    # Section 2.5: down from state 0 gives 9; half down, half right into the forbidden cell
    # .5 (0 + .9 * 10) + .5 (-1 + .9 * 10) = 8.5
    found = policy_evaluation(two_by_two(), [DOWN, DOWN, RIGHT, STAY], 0.9)
    close(found.values, [9, 10, 10, 10])
    mixed = np.zeros((4, 5))
    mixed[0, [RIGHT, DOWN]] = 0.5
    mixed[[1, 2, 3], [DOWN, RIGHT, STAY]] = 1
    found = policy_evaluation(two_by_two(), mixed, 0.9)
    close(found.values, [8.5, 10, 10, 10])
    # q(0, .) = (-1 + .9 * 8.5, -1 + .9 * 10, 0 + .9 * 10, -1 + .9 * 8.5, 0 + .9 * 8.5)
    close(found.action_values[0], [6.65, 8, 9, 6.65, 7.65])
    assert found.policy is mixed
    assert found.iterations == 1
    assert found.residuals.shape == (1,)
    assert found.residuals[0] < 1e-14


def test_policy_iteration_of_zhaos_two_cells() -> None:
    # Section 4.2.3: the target is the right one. Always left: v(0) = -1 / (1 - .9) = -10,
    # v(1) = 0 + .9 * -10 = -9. Improved: right and stay, 10 and 10, which is confirmed at once.
    cells = grid_world(1, 2, forbidden=[], target=(0, 1))
    close(policy_evaluation(cells, [LEFT, LEFT], 0.9).values, [-10, -9])
    found = policy_iteration(cells, 0.9, initial_policy=[LEFT, LEFT])
    np.testing.assert_array_equal(found.policy, [RIGHT, STAY])
    close(found.values, [10, 10])
    assert found.iterations == 2
    close(found.residuals, [10, 20])
    # From action 0, up: both bump, -10 and -10.
    close(policy_iteration(cells, 0.9).residuals, [10, 20])
    assert policy_iteration(cells, 0.9, initial_policy=[RIGHT, STAY]).iterations == 1


def test_best_values_of_sutton_and_bartos_grid() -> None:
    # Example 3.8 (figure 3.5): from A (0, 1) any action leads to (4, 1) and pays 10, from B (0, 3)
    # to (2, 3) and pays 5; bumping pays -1; discount .9. The book prints one digit.
    grid = grid_world(5, 5, forbidden=[], target=(2, 2), reward_target=0)
    transitions, rewards = grid.matrix.reshape(25, 5, 25)[:, :4].copy(), grid.rewards[:, :4].copy()
    for state, successor, reward in [(1, 21, 10), (3, 13, 5)]:
        transitions[state] = np.eye(25)[successor]
        rewards[state] = reward
    grid = TabularMDP(transitions, rewards)
    printed = [
        [22.0, 24.4, 22.0, 19.4, 17.5],
        [19.8, 22.0, 19.8, 17.8, 16.0],
        [17.8, 19.8, 17.8, 16.0, 14.4],
        [16.0, 17.8, 16.0, 14.4, 13.0],
        [14.4, 16.0, 14.4, 13.0, 11.7],
    ]
    best = value_iteration(grid, 0.9).values.reshape(5, 5)
    np.testing.assert_array_equal(best.round(1), printed)
    # Example 3.5 (figure 3.2), every direction alike
    alike = policy_evaluation(grid, np.full((25, 4), 0.25), 0.9).values.reshape(5, 5)
    np.testing.assert_array_equal(alike[0].round(1), [3.3, 8.8, 4.4, 5.3, 1.5])
    np.testing.assert_array_equal(alike[4].round(1), [-1.9, -1.3, -1.2, -1.4, -2.0])


# --- laws -------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**16), discount=st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_planners_find_the_best_of_all_policies(seed: int, discount: float) -> None:
    mdp = random_mdp(seed, states=3)
    best = np.max([policy_evaluation(mdp, p, discount).values for p in every_policy(mdp)], axis=0)
    for plan in PLANNERS:
        found = plan(mdp, discount)
        close(found.values, best, 1e-6)
        close(policy_evaluation(mdp, found.policy, discount).values, best, 1e-6)
        expected = mdp.rewards + discount * np.einsum("sat,t->sa", mdp.transitions, found.values)
        close(found.action_values, expected)
        assert len(found.residuals) == (1 if plan is linear_program else found.iterations)


@given(seed=st.integers(0, 2**16), discount=st.sampled_from([0.0, 0.7, 1.0]))
def test_sparse_and_dense_models_have_the_same_solutions(seed: int, discount: float) -> None:
    dense = random_mdp(seed, states=6)
    thin = TabularMDP(sparse.csr_matrix(dense.matrix), dense.rewards)
    for plan in PLANNERS:
        one, other = plan(dense, discount), plan(thin, discount)
        close(one.values, other.values, 0)
        assert one.iterations == other.iterations


@given(seed=st.integers(0, 2**16))
def test_evaluation_solves_the_equations_whatever_the_solver(seed: int) -> None:
    # 60 states with one successor each are solved as sparse, with all as dense.
    rng = np.random.default_rng(seed)
    weights = rng.random((60, 2, 60))
    single = np.eye(60)[rng.integers(60, size=(60, 2))]
    policy = rng.dirichlet([1.0, 1.0], size=60)
    for transitions in (single, weights / weights.sum(-1, keepdims=True)):
        mdp = TabularMDP(transitions, rng.normal(size=(60, 2)))
        found = policy_evaluation(mdp, policy, 0.95)
        close((policy * found.action_values).sum(1), found.values)


@given(seed=st.integers(0, 2**16), discount=st.sampled_from([0.0, 0.9, 1.0]))
def test_one_backup_is_value_iteration_sweep_by_sweep(seed: int, discount: float) -> None:
    mdp = random_mdp(seed)
    sweeps = value_iteration(mdp, discount)
    backups = truncated_policy_iteration(mdp, discount, backups=1)
    assert sweeps.iterations == backups.iterations
    close(backups.residuals, sweeps.residuals)
    close(backups.values, sweeps.values)


def test_many_backups_take_as_many_iterations_as_policy_iteration() -> None:
    for seed in range(5):
        mdp = random_mdp(seed, states=8)
        start = np.argmax(mdp.rewards, axis=1)
        exact = policy_iteration(mdp, 0.9, initial_policy=start)
        many = truncated_policy_iteration(mdp, 0.9, backups=10_000)
        close(many.values, exact.values, 1e-10)
        assert many.iterations == exact.iterations + 1  # nothing changes in the last


@given(
    seed=st.integers(0, 2**16), discount=st.sampled_from([0.0, 0.9, 1.0]), most=st.integers(1, 3000)
)
def test_compiled_sweeps_are_the_readable_ones(seed: int, discount: float, most: int) -> None:
    mdp = random_mdp(seed, ending=0.01)
    matrix = mdp.csr
    start = np.random.default_rng(seed).normal(size=mdp.states)
    kept = start.copy()
    arguments = matrix.indptr, matrix.indices, matrix.data, mdp.rewards, start
    values, residuals = optimality_sweeps(*arguments, discount, 1e-9, most)
    fast, changes = compiled_optimality_sweeps(*arguments, discount, 1e-9, most)
    close(fast, values)
    close(changes, residuals)
    np.testing.assert_array_equal(start, kept)


@given(seed=st.integers(0, 2**16), shift=st.floats(-3, 3))
def test_reward_for_every_step_adds_its_discounted_sum(seed: int, shift: float) -> None:
    mdp = random_mdp(seed, ending=0.0)
    shifted = TabularMDP(mdp.transitions, mdp.rewards + shift)
    before, after = policy_iteration(mdp, 0.8), policy_iteration(shifted, 0.8)
    close(after.values, before.values + shift / (1 - 0.8), 1e-11)


def test_action_is_kept_unless_another_is_better() -> None:
    for gap, action in [(1e-13, 1), (1e-11, 0)]:
        mdp = TabularMDP([[[0.0], [0.0]]], [[gap, 0.0]])
        assert policy_iteration(mdp, 0.9, initial_policy=[1]).policy[0] == action


def test_policy_iteration_stops_where_rounding_exceeds_what_is_better() -> None:
    rng = np.random.default_rng(0)
    chances = rng.dirichlet(np.ones(6), size=(6, 1))
    rewards = 1e9 * rng.normal(size=(6, 1))
    # Two actions that are the same but for the order in which they add up.
    twins = TabularMDP(np.tile(chances, (1, 2, 1)), np.tile(rewards, (1, 2)))
    found = policy_iteration(twins, 0.999)
    close(found.values, policy_evaluation(twins, np.zeros(6, dtype=int), 0.999).values, 1e-2)


# --- discount 1 -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["FrozenLake-v1", "CliffWalking-v1", "CliffWalkingSlippery-v1", "Taxi-v4", "Blackjack-v1"],
)
def test_planners_agree_on_environments_without_discount(name: str) -> None:
    mdp = as_mdp(name)
    exact = policy_iteration(mdp, 1.0)
    for plan in PLANNERS:
        found = plan(mdp, 1.0)
        close(found.values, exact.values, 2e-6)
        close(policy_evaluation(mdp, found.policy, 1.0).values, exact.values, 2e-6)


def test_slippery_lake_reaches_its_goal_14_times_in_17() -> None:
    # The best chance of the 4 x 4 lake is known as .8235 = 14/17.
    mdp = as_mdp("FrozenLake-v1")
    assert mdp.start @ policy_iteration(mdp, 1.0).values == pytest.approx(14 / 17, abs=1e-12)


def test_cliff_is_walked_in_13_steps() -> None:
    found = value_iteration("CliffWalking-v1", 1.0)
    assert found.values[36] == -13


@every_planner
def test_best_policy_gets_there_where_every_way_is_as_good(plan: Planner) -> None:
    # A row of 5 cells whose last step pays 1 and ends: left is as good as right, but for getting
    # there. The lowest of equally good actions alone would go left for ever.
    mdp = corridor()
    found = plan(mdp, 1.0)
    close(found.values, np.ones(5), 1e-9)
    np.testing.assert_array_equal(found.policy, np.ones(5))
    close(policy_evaluation(mdp, found.policy, 1.0).values, np.ones(5))


def corridor() -> TabularMDP:
    transitions, rewards = np.zeros((5, 2, 5)), np.zeros((5, 2))
    for cell in range(5):
        transitions[cell, 0, max(cell - 1, 0)] = 1
        if cell < 4:
            transitions[cell, 1, cell + 1] = 1
    rewards[4, 1] = 1
    return TabularMDP(transitions, rewards)


def test_reward_that_can_be_had_only_once_is_no_cycle_that_pays() -> None:
    # 0 -> 1 pays 5; 1 can stay for nothing or end for nothing.
    mdp = TabularMDP([[[0, 1], [0, 1]], [[0, 1], [0, 0]]], [[5, 5], [0, 0]])
    assert paying_cycle(mdp) is None
    for plan in PLANNERS:
        close(plan(mdp, 1.0).values, [5, 0])


@every_planner
def test_cycle_that_pays_is_refused_without_discount(plan: Planner) -> None:
    # 0 and 1 in turn earn 2 - 1 = 1 a round; either can end.
    mdp = TabularMDP([[[0, 1], [0, 0]], [[1, 0], [0, 0]]], [[2, 0], [-1, 0]])
    with pytest.raises(ValueError, match=r"cycle through state [01].*infinite"):
        plan(mdp, 1.0)
    assert np.isfinite(plan(mdp, 0.99).values).all()


@every_planner
def test_model_that_need_not_end_from_a_state_is_refused_without_discount(plan: Planner) -> None:
    mdp = TabularMDP([[[0, 0.5]], [[0, 1]]], [[0], [0]])
    with pytest.raises(ValueError, match="discount=1 needs a proper policy, but from state 1"):
        plan(mdp, 1.0)


def test_policy_that_never_ends_is_refused_without_discount() -> None:
    with pytest.raises(ValueError, match="from state 0 the policy never ends"):
        policy_evaluation(corridor(), [0, 0, 0, 0, 0], 1.0)
    with pytest.raises(ValueError, match="from state 0 initial_policy never ends"):
        policy_iteration(corridor(), 1.0, initial_policy=[0, 0, 1, 1, 1])
    half = np.full((5, 2), 0.5)
    close(policy_evaluation(corridor(), half, 1.0).values, np.ones(5))


def test_rewards_that_cancel_in_a_cycle_are_no_endless_loop() -> None:
    # 0 and 1 in turn earn 1 - 1 = 0, and to end costs 5: sweeps from 0 swing, (1, -1), (0, 0), ...
    mdp = TabularMDP([[[0, 1], [0, 0]], [[1, 0], [0, 0]]], [[1, -5], [-1, -5]])
    with pytest.raises(ValueError, match="rewards cancel in a cycle"):
        value_iteration(mdp, 1.0)
    # The best that ends: from 0 to 1 once, then the end (1 - 5); from 1 at once.
    close(policy_iteration(mdp, 1.0).values, [-4, -5])
    close(linear_program(mdp, 1.0).values, [-4, -5])


def test_ending_actions_lead_nearer_and_are_the_lowest() -> None:
    everything = np.ones((5, 2), dtype=bool)
    np.testing.assert_array_equal(ending_actions(corridor(), everything), np.ones(5))
    everything[2, 1] = False
    np.testing.assert_array_equal(ending_actions(corridor(), everything), [-1, -1, -1, 1, 1])


# --- finite horizon ---------------------------------------------------------------------------


@given(seed=st.integers(0, 2**16))
def test_finite_horizon_is_the_best_of_all_plans(seed: int) -> None:
    mdp = random_mdp(seed, states=2, actions=2)
    best = np.full(2, -np.inf)
    for plan in itertools.product(every_policy(mdp), repeat=3):
        values = np.zeros(2)
        for policy in reversed(plan):
            rows = policy + 2 * np.arange(2)
            values = mdp.rewards.ravel()[rows] + mdp.matrix[rows] @ values
        best = np.maximum(best, values)
    found = finite_horizon(mdp, 3)
    assert (found.values.shape, found.policy.shape) == ((4, 2), (3, 2))
    close(found.values[0], best)
    close(found.values[3], 0, 0)
    close(found.action_values.max(-1), found.values[:3], 0)
    np.testing.assert_array_equal(found.action_values.argmax(-1), found.policy)


def test_finite_horizon_of_zhaos_two_by_two_grid() -> None:
    # With 2 steps to go, the target is one step from 2 and two from 0: 1 + 1, and 0 + 1.
    found = finite_horizon(two_by_two(), 2)
    close(found.values, [[1, 2, 2, 2], [0, 1, 1, 1], [0, 0, 0, 0]], 0)
    np.testing.assert_array_equal(found.policy[0], [DOWN, DOWN, RIGHT, STAY])
    assert found.iterations == 2
    close(found.residuals, [1, 1], 0)


@pytest.mark.parametrize("horizon", [0, -1, 2.0, True])
def test_bad_horizon_is_refused(horizon: int) -> None:
    with pytest.raises(ValueError, match="whole number of steps, 1 or more"):
        finite_horizon(two_by_two(), horizon)


# --- average reward ---------------------------------------------------------------------------


@given(seed=st.integers(0, 2**16))
def test_relative_value_iteration_finds_the_best_gain_of_all_policies(seed: int) -> None:
    mdp = random_mdp(seed, states=3, ending=0.0)  # state 0 can follow on every pair: one gain
    best = -np.inf
    for policy in every_policy(mdp):
        rows = policy + mdp.actions * np.arange(3)
        equations = np.vstack([mdp.matrix[rows].T - np.eye(3), np.ones(3)])
        shares = np.linalg.lstsq(equations, [0, 0, 0, 1], rcond=None)[0]  # of time in each state
        best = max(best, shares @ mdp.rewards.ravel()[rows])
    found = relative_value_iteration(mdp)
    assert found.gain == pytest.approx(best, abs=1e-9)
    assert found.values[0] == 0
    expected = mdp.rewards - found.gain + np.einsum("sat,t->sa", mdp.transitions, found.values)
    close(found.action_values, expected)
    close(found.action_values.max(1), found.values, 1e-9)
    assert len(found.residuals) == found.iterations


def test_relative_value_iteration_settles_on_a_periodic_ring() -> None:
    # 0 -> 1 -> 2 -> 0 pays 6 once: gain 2. h(0) = 0 - 2 + h(1), h(2) = 6 - 2 + h(0).
    ring = TabularMDP([[[0, 1, 0]], [[0, 0, 1]], [[1, 0, 0]]], [[0], [0], [6]])
    found = relative_value_iteration(ring)
    assert found.gain == pytest.approx(2, abs=1e-10)
    close(found.values, [0, 2, 4], 1e-9)


def test_relative_value_iteration_of_zhaos_grid_stays_at_the_target() -> None:
    found = relative_value_iteration(two_by_two())
    assert found.gain == pytest.approx(1, abs=1e-10)
    close(found.values, [0, 1, 1, 1], 1e-9)


def test_average_reward_of_a_model_that_ends_is_refused() -> None:
    with pytest.raises(ValueError, match="state 4, action 1 ends with probability 1"):
        relative_value_iteration(corridor())
    with pytest.raises(ValueError, match="average reward needs"):
        relative_value_iteration("FrozenLake-v1")  # type: ignore[arg-type]


def test_two_gains_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.planning_average.MOST_SWEEPS", 1000)
    islands = TabularMDP([[[1, 0]], [[0, 1]]], [[0], [1]])
    with pytest.raises(ValueError, match="is 0 from state 0 and 1 from state 1"):
        relative_value_iteration(islands)


# --- bad input --------------------------------------------------------------------------------


@every_planner
@pytest.mark.parametrize("discount", [-0.1, 1.1, float("nan")])
def test_bad_discount_is_refused(plan: Planner, discount: float) -> None:
    with pytest.raises(ValueError, match=r"discount=.* is outside \[0, 1\]"):
        plan(two_by_two(), discount)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ([0, 0, 0], r"policy of shape \(3,\): expected actions \(4,\).*\(4, 5\)"),
        (np.full((5, 4), 0.2), r"policy of shape \(5, 4\)"),
        ([0, 0, 5, 0], r"policy\[2\] is 5: the actions are 0 to 4"),
        ([0, -1, 0, 0], r"policy\[1\] is -1"),
        ([0.0, 0.0, 0.0, 0.0], "policy of float64.*integers"),
        (np.full((4, 5), 0.25), r"policy\[0\] sums to 1.25"),
        (np.tile([1.5, -0.5, 0, 0, 0], (4, 1)), r"policy\[0, 1\] is -0.5"),
        (np.full((4, 5), np.nan), r"policy\[0, 0\] is nan"),
    ],
)
def test_bad_policy_is_refused(policy: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        policy_evaluation(two_by_two(), policy, 0.9)


def test_bad_arguments_are_refused() -> None:
    grid = two_by_two()
    with pytest.raises(ValueError, match=r"initial_policy of shape \(4, 5\)"):
        policy_iteration(grid, 0.9, initial_policy=np.full((4, 5), 0.2))
    for tolerance in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="tolerance="):
            value_iteration(grid, 0.9, tolerance=tolerance)
        with pytest.raises(ValueError, match="tolerance="):
            relative_value_iteration(grid, tolerance=tolerance)
    with pytest.raises(ValueError, match=r"initial_values of shape \(3,\): expected \(4,\)"):
        value_iteration(grid, 0.9, initial_values=[0, 0, 0])
    with pytest.raises(ValueError, match=r"initial_values\[1\] is nan"):
        value_iteration(grid, 0.9, initial_values=[0, np.nan, 0, 0])
    for backups in (0, 1.5, True):
        with pytest.raises(ValueError, match="backups="):
            truncated_policy_iteration(grid, 0.9, backups=backups)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="CartPole-v1 has no model"):
        value_iteration("CartPole-v1", 0.9)


def test_changes_that_only_rounding_can_explain_are_an_error() -> None:
    # 6 * .5^k * 1 / (1 - .5) < 1e-3 from k = 14 on, and 10 sweeps are for rounding.
    mdp = TabularMDP([[[1.0]]], [[1.0]])
    assert most_sweeps(mdp, 0.5, 1e-3, np.zeros(1)) == 24
    check_settled(0.9e-3, 24, 0.5, 1e-3)
    with pytest.raises(ValueError, match=r"tolerance=0\.001 is finer than float64 resolves"):
        check_settled(1e-3, 24, 0.5, 1e-3)


# --- size -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_value_iteration_of_250_000_states_stays_within_2_gib() -> None:
    program = """
import resource
from rl.mdp import grid_world
from rl.planning import value_iteration
found = value_iteration(grid_world(500, 500, forbidden=[(3, 3)], target=(499, 499)), 0.9)
print(found.values[-1], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    value, kibibytes = done.stdout.split()
    assert float(value) == pytest.approx(10, abs=1e-6)  # 1 / (1 - .9)
    assert int(kibibytes) < 2 * 2**20
