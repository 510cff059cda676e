from __future__ import annotations

import re

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from launch.errors import UsageError
from rl.mdp import TabularMDP, as_mdp, grid_world

UP, RIGHT, DOWN, LEFT, STAY = range(5)
TABLES = [
    "FrozenLake-v1",
    "FrozenLake8x8-v1",
    "CliffWalking-v1",
    "CliffWalkingSlippery-v1",
    "Taxi-v4",
]


def random_model(seed: int, *, states: int = 4, actions: int = 3) -> TabularMDP:
    """Return a model of which about half of all entries are 0, and half of all pairs can end."""
    rng = np.random.default_rng(seed)
    weights = rng.random((states, actions, states + 1)) * (rng.random(states + 1) < 0.5)
    weights[..., 0] += 0.1
    chances = weights / weights.sum(-1, keepdims=True)
    return TabularMDP(chances[..., :-1], rng.normal(size=(states, actions)))


# --- tables -----------------------------------------------------------------------------------


def test_model_of_arrays_is_float64_and_starts_anywhere() -> None:
    mdp = TabularMDP([[[0, 1]], [[1, 0]]], [[1], [2]])
    assert (mdp.states, mdp.actions) == (2, 1)
    assert isinstance(mdp.transitions, np.ndarray)
    assert mdp.transitions.dtype == mdp.rewards.dtype == mdp.start.dtype == np.float64
    np.testing.assert_array_equal(mdp.start, [0.5, 0.5])


def test_model_keeps_its_tables_when_the_arrays_it_came_from_change() -> None:
    transitions, rewards, start = np.full((1, 1, 1), 0.5), np.ones((1, 1)), np.ones(1)
    mdp = TabularMDP(transitions, rewards, start)
    transitions[:], rewards[:], start[:] = 0, 0, 0
    assert mdp.matrix[0, 0] == 0.5
    assert mdp.rewards[0, 0] == mdp.start[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        mdp.rewards[0, 0] = 3.0


def test_outcomes_of_arrays_ascend_and_end_last() -> None:
    # Pair 0: 1/4 to 0, 1/2 to 2, 1/4 missing.  Pair 1: all to 1.  Pair 2: all missing.
    mdp = TabularMDP([[[0.25, 0, 0.5]], [[0, 1, 0]], [[0, 0, 0]]], [[5], [6], [7]])
    outcomes = mdp.outcomes
    np.testing.assert_array_equal(outcomes.offsets, [0, 3, 4, 5])
    np.testing.assert_array_equal(outcomes.probabilities, [0.25, 0.5, 0.25, 1, 1])
    np.testing.assert_array_equal(outcomes.cumulative, [0.25, 0.75, 1, 1, 1])
    np.testing.assert_array_equal(outcomes.next_states, [0, 2, 0, 1, 2])
    np.testing.assert_array_equal(outcomes.rewards, [5, 5, 5, 6, 7])
    np.testing.assert_array_equal(outcomes.terminated, [False, False, True, False, True])
    assert outcomes is mdp.outcomes


def test_rounding_is_no_termination() -> None:
    tenth = np.full((1, 1, 10), 0.1)  # sums to 1 - 1.1e-16 or so
    mdp = TabularMDP(np.repeat(tenth, 10, axis=0), np.zeros((10, 1)))
    assert not mdp.outcomes.terminated.any()
    assert (mdp.endings == 0).all()


@given(seed=st.integers(0, 2**16))
def test_sparse_model_equals_the_dense_one(seed: int) -> None:
    dense = random_model(seed)
    matrix = sparse.csr_matrix(dense.matrix)
    thin = TabularMDP(matrix, dense.rewards, dense.start)
    assert sparse.issparse(thin.transitions)
    np.testing.assert_array_equal(thin.csr.toarray(), dense.matrix)
    for name in ("offsets", "cumulative", "next_states", "rewards", "terminated"):
        np.testing.assert_array_equal(getattr(thin.outcomes, name), getattr(dense.outcomes, name))


@given(seed=st.integers(0, 2**16))
def test_outcomes_have_the_means_of_the_tables(seed: int) -> None:
    mdp = random_model(seed)
    outcomes = mdp.outcomes
    goes_on = ~outcomes.terminated
    again = np.zeros((mdp.states * mdp.actions, mdp.states))
    at = outcomes.pairs[goes_on], outcomes.next_states[goes_on]
    np.add.at(again, at, outcomes.probabilities[goes_on])
    np.testing.assert_array_equal(again, mdp.matrix)
    np.testing.assert_allclose(outcomes.cumulative[outcomes.offsets[1:] - 1], 1, rtol=0, atol=1e-15)


ONE = [[[0.5, 0.5]], [[0.5, 0.5]]]


@pytest.mark.parametrize(
    ("transitions", "rewards", "start", "message"),
    [
        ([[[0.5, 0.5]], [[0.75, 0.5]]], [[0], [0]], None, r"transitions\[1, 0\] sums to 1.25"),
        ([[[0.5, 0.5]], [[1.5, -0.5]]], [[0], [0]], None, r"transitions\[1, 0, 1\] is -0.5"),
        ([[[0.5, np.nan]], [[1, 0]]], [[0], [0]], None, r"transitions\[0, 0, 1\] is nan"),
        ([[[0.5, np.inf]], [[1, 0]]], [[0], [0]], None, r"transitions\[0, 0, 1\] is inf"),
        (ONE, [[0], [np.nan]], None, r"rewards\[1, 0\] is nan"),
        (ONE, [[0, 0], [0, 0]], None, r"shape \(2, 1, 2\).*expected \(S, A, S\) = \(2, 2, 2\)"),
        (ONE, [0, 0], None, r"rewards of shape \(2,\)"),
        (ONE, [[0], [0]], [1.0], r"start of shape \(1,\)"),
        (ONE, [[0], [0]], [1.5, -0.5], r"start\[1\] is -0.5"),
        (ONE, [[0], [0]], [0.5, np.nan], r"start\[1\] is nan"),
        (ONE, [[0], [0]], [0.5, 0.25], r"start sums to 0.75"),
        (sparse.csr_matrix([[0.5, 0.75], [1, 0]]), [[0], [0]], None, r"\[0, 0\] sums to 1.25"),
        (sparse.csr_matrix([[0.5, 0.5], [1, np.nan]]), [[0], [0]], None, r"\[1, 0, 1\] is nan"),
        (sparse.csr_matrix([[0.5, 0.5], [1, -1]]), [[0], [0]], None, r"\[1, 0, 1\] is -1"),
        (sparse.csr_matrix([[0.5, 0.5]]), [[0], [0]], None, r"sparse.*shape \(1, 2\).*\(2, 2\)"),
    ],
)
def test_bad_table_names_the_entry(
    transitions: list[list[list[float]]],
    rewards: list[list[float]],
    start: list[float] | None,
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        TabularMDP(transitions, rewards, start)
    assert "\n" not in str(caught.value)


# --- from and to environments -----------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_model_plays_the_episodes_of_the_environment_it_came_from(name: str) -> None:
    theirs, ours = gymnasium.make(name), TabularMDP.from_env(name).to_env()
    rng = np.random.default_rng(0)
    for seed in range(20):
        state, _ = theirs.reset(seed=seed)
        assert ours.reset(seed=seed)[0] == state
        for _ in range(250):
            action = int(rng.integers(ours.action_space.n))
            step, own = theirs.step(action), ours.step(action)
            assert own[:4] == (step[0], float(step[1]), step[2], step[3])
            if step[2] or step[3]:
                break


@pytest.mark.parametrize("name", TABLES)
def test_model_has_the_means_of_the_table_it_came_from(name: str) -> None:
    table = gymnasium.make(name).unwrapped.P
    mdp = TabularMDP.from_env(name)
    for state in range(0, mdp.states, 7):
        for action in range(mdp.actions):
            outcomes = table[state][action]
            reward = sum(p * r for p, _, r, _ in outcomes)
            onward = np.zeros(mdp.states)
            for p, successor, _, terminated in outcomes:
                onward[successor] += p * (not terminated)
            assert mdp.rewards[state, action] == pytest.approx(reward, abs=1e-12)
            row = mdp.matrix[state * mdp.actions + action]
            np.testing.assert_allclose(row, onward, rtol=0, atol=1e-15)


def test_model_of_an_instance_has_its_options_start_and_limit() -> None:
    env = gymnasium.make("FrozenLake-v1", desc=["SS", "HG"], is_slippery=False)
    mdp = TabularMDP.from_env(env)
    assert (mdp.states, mdp.max_episode_steps, mdp.name) == (4, 100, "FrozenLake-v1")
    np.testing.assert_array_equal(mdp.start, [0.5, 0.5, 0, 0])
    assert TabularMDP.from_env(env.unwrapped).max_episode_steps is None
    assert TabularMDP.from_env("CliffWalking-v1").max_episode_steps is None


def test_environment_of_a_model_passes_gymnasiums_checker() -> None:
    check_env(random_model(3).to_env(), skip_render_check=True)


def test_environment_of_a_model_truncates_at_its_limit() -> None:
    forever = TabularMDP([[[1.0]]], [[2.0]], max_episode_steps=3)
    for env, limit in [(forever.to_env(), 3), (forever.to_env(max_episode_steps=2), 2)]:
        env.reset(seed=0)
        steps = [env.step(0) for _ in range(limit)]
        assert [step[3] for step in steps] == [False] * (limit - 1) + [True]
        assert steps[0][:3] == (0, 2.0, False)
        assert env.unwrapped.mdp is forever
        assert as_mdp(env).max_episode_steps == limit


def test_environment_of_a_model_refuses_an_action_that_is_none() -> None:
    env = TabularMDP([[[1.0]]], [[2.0]]).to_env()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action=1 is none of 0 to 0"):
        env.step(1)


def test_as_mdp_takes_id_instance_and_model() -> None:
    mdp = random_model(0)
    assert as_mdp(mdp) is mdp
    assert as_mdp(mdp.to_env()) is mdp
    assert as_mdp("FrozenLake-v1").states == as_mdp(gymnasium.make("FrozenLake-v1")).states == 16


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("Taxi-v3", "Taxi-v3.*Taxi-v4"),
        ("FrozenLake-v7", "FrozenLake-v7.*v1"),
        ("FrozenLike-v1", "FrozenLike-v1.*FrozenLake"),
        ("CartPole-v1", "CartPole-v1 has no model.*planning needs"),
    ],
)
def test_environment_without_a_model_is_refused_in_one_line(env: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        as_mdp(env)
    assert "\n" not in str(caught.value)


def test_thing_that_is_no_environment_is_refused() -> None:
    with pytest.raises(TypeError, match="got int for an environment"):
        as_mdp(3)


def test_environment_that_does_not_do_as_its_table_says_is_refused() -> None:
    lake = gymnasium.make("FrozenLake-v1")
    paid = gymnasium.wrappers.TransformReward(lake, lambda reward: reward - 1)
    with pytest.raises(UsageError, match="TransformReward changes FrozenLake-v1"):
        as_mdp(paid)
    with pytest.raises(ValueError, match="fickle"):
        as_mdp(gymnasium.make("Taxi-v4", fickle_passenger=True))


def test_table_of_outcomes_is_checked() -> None:
    with pytest.raises(ValueError, match=r"state 0, action 1 .* sum to 0.5"):
        TabularMDP.from_outcomes([[[(1.0, 0, 0.0, True)], [(0.5, 0, 0.0, True)]]])
    with pytest.raises(ValueError, match=r"state 0, action 0 leads to state 1"):
        TabularMDP.from_outcomes([[[(1.0, 1, 0.0, False)]]])


def test_same_next_state_with_two_rewards_stays_two_outcomes() -> None:
    table = [[[(0.5, 0, 1.0, False), (0.0, 0, 9.0, True), (0.5, 0, 3.0, False)]]]
    mdp = TabularMDP.from_outcomes(table)
    np.testing.assert_array_equal(mdp.outcomes.rewards, [1, 9, 3])
    np.testing.assert_array_equal(mdp.outcomes.cumulative, [0.5, 0.5, 1])
    assert mdp.rewards[0, 0] == 2
    assert mdp.matrix[0, 0] == 1


# --- grid world -------------------------------------------------------------------------------


def test_grid_world_of_two_by_two_is_zhaos() -> None:
    # 0 1   1 is forbidden, 3 the target
    # 2 3
    grid = grid_world(2, 2, forbidden=[(0, 1)], target=(1, 1))
    successors = grid.matrix.reshape(4, 5, 4).argmax(-1)
    np.testing.assert_array_equal(
        successors, [[0, 1, 2, 0, 0], [1, 1, 3, 0, 1], [0, 3, 2, 2, 2], [1, 3, 3, 2, 3]]
    )
    np.testing.assert_array_equal(
        grid.rewards,
        [[-1, -1, 0, -1, 0], [-1, -1, 1, 0, -1], [0, 1, -1, -1, 0], [-1, -1, -1, 0, 1]],
    )
    assert (grid.matrix.sum(1) == 1).all()


def test_grid_world_pays_each_kind_of_step_its_own_reward() -> None:
    grid = grid_world(
        1, 3, forbidden=[(0, 0)], target=(0, 2),
        reward_step=-2, reward_forbidden=-3, reward_target=4, reward_boundary=-5,
    )  # fmt: skip
    np.testing.assert_array_equal(
        grid.rewards, [[-5, -2, -5, -5, -3], [-5, 4, -5, -3, -2], [-5, -5, -5, -2, 4]]
    )


def test_large_grid_world_is_sparse_and_the_same() -> None:
    grid = grid_world(1, 1500, forbidden=[], target=(0, 0))
    assert sparse.issparse(grid.transitions)
    assert grid.matrix.shape == (7500, 1500)
    assert grid.matrix[5 * 700 + RIGHT, 701] == grid.matrix[5 * 700 + UP, 700] == 1
    assert len(grid.outcomes.next_states) == 7500


@pytest.mark.parametrize(
    ("rows", "forbidden", "target", "message"),
    [
        (2, [(0, 2)], (1, 1), r"forbidden cell (0, 2) lies outside"),
        (2, [], (-1, 0), r"target cell (-1, 0) lies outside"),
        (2, [(1, 1)], (1, 1), r"cell (1, 1) is both"),
        (0, [], (0, 0), r"0 rows and 2 columns"),
    ],
)
def test_bad_grid_is_refused(
    rows: int, forbidden: list[tuple[int, int]], target: tuple[int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        grid_world(rows, 2, forbidden=forbidden, target=target)
