from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

import rl.temporal_difference as td
from rl.estimators.td import double_q_targets, expected_sarsa_targets, q_learning_targets
from rl.mdp import TabularMDP, grid_world
from rl.planning import policy_evaluation, value_iteration
from rl.step_sizes import Power
from rl.tabular_updates import double_q_target, expected_sarsa_target, q_learning_target

CORRIDOR = TabularMDP(  # 0 -> 1 -> 2 -> end, paying 1, 2, 4; one action
    [[[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]], [[0.0, 0.0, 0.0]]],
    [[1.0], [2.0], [4.0]],
    [1.0, 0.0, 0.0],
)
END = TabularMDP([[[0.0]]], [[1.0]])  # one step, paying 1, then the end
LOOP = TabularMDP([[[1.0]]], [[1.0]])  # one state, round and round, paying 1
ALONE = [0, 0, 0]
WALK = (
    TabularMDP(  # the random walk of Sutton & Barto's example 6.2: left and right, 1 at the right
        [
            [[0.0] * 5 if not 0 <= s + d < 5 else list(np.eye(5)[s + d]) for d in (-1, 1)]
            for s in range(5)
        ],
        [[0.0, 1.0 if s == 4 else 0.0] for s in range(5)],
        [0.0, 0.0, 1.0, 0.0, 0.0],
    )
)
EVEN = np.full((5, 2), 0.5)
LAKE = "FrozenLake-v1"

Control = Callable[..., td.ControlResult]
CONTROL: dict[str, Control] = {
    "sarsa": td.sarsa,
    "expected_sarsa": td.expected_sarsa,
    "q_learning": td.q_learning,
    "n_step_sarsa": partial(td.n_step_sarsa, n=2),
    "n_step_tree_backup": partial(td.n_step_tree_backup, n=2),
    "n_step_q_sigma": partial(td.n_step_q_sigma, n=2, sigma=0.5),
    "sarsa_lambda": partial(td.sarsa_lambda, trace=0.5),
    "true_online": partial(td.sarsa_lambda, trace=0.5, kind="true online"),
    "watkins_q_lambda": partial(td.watkins_q_lambda, trace=0.5),
    "dyna_q": partial(td.dyna_q, planning_steps=0),
    "prioritized_sweeping": partial(td.prioritized_sweeping, planning_steps=1),
}
ALL_CONTROL = {**CONTROL, "double_q_learning": td.double_q_learning}
PREDICTION: dict[str, Callable[..., Any]] = {
    "td0": td.td0,
    "n_step_td": partial(td.n_step_td, n=2),
    "td_lambda": partial(td.td_lambda, trace=0.5),
    "true_online": partial(td.td_lambda, trace=0.5, kind="true online"),
}


def equal(actual: object, expected: object) -> None:
    np.testing.assert_array_equal(actual, expected)


def same(one: td.ControlResult, other: td.ControlResult) -> None:
    equal(one.action_values, other.action_values)
    equal(one.episode_returns, other.episode_returns)


# --- worked by hand -----------------------------------------------------------------------------


def test_td0_of_two_episodes_worked_by_hand() -> None:
    # step size and discount 1/2, v = 0.
    # episode 1: v0 = 1/2 * 1, v1 = 1/2 * 2, v2 = 1/2 * 4
    # episode 2: v0 = .5 + .5 (1 + .5 * 1 - .5), v1 = 1 + .5 (2 + .5 * 2 - 1), v2 = 2 + .5 (4 - 2)
    learn = partial(td.td0, CORRIDOR, ALONE, discount=0.5, step_size=0.5)
    equal(learn(episodes=1), [0.5, 1.0, 2.0])
    equal(learn(episodes=2), [1.0, 2.0, 3.0])


def test_two_step_td_worked_by_hand() -> None:
    # v = 8: G0 = 1 + .5 * 2 + .25 * 8 = 4, G1 = 2 + .5 * 4 = 4, G2 = 4; halfway from 8 each
    values = td.n_step_td(
        CORRIDOR, ALONE, n=2, discount=0.5, episodes=1, step_size=0.5, initial_value=8.0
    )
    equal(values, [6.0, 6.0, 6.0])


def test_td_lambda_worked_by_hand() -> None:
    # decay 1/4.  z = (1): v0 = .5.  z = (1/4, 1), error 2: v0 += .25, v1 = 1.
    # z = (1/16, 1/4, 1), error 4: v0 += .125, v1 += .5, v2 = 2
    values = td.td_lambda(CORRIDOR, ALONE, trace=0.5, discount=0.5, episodes=1, step_size=0.5)
    equal(values, [0.875, 1.5, 2.0])


@pytest.mark.parametrize(
    ("kind", "value"),
    # Two steps round the loop, then truncated; lambda 1, step size and discount 1/2.
    # Step 1: v = .5 (1 + .5 * 0) = .5.  Step 2: error 1 + .5 * .5 - .5 = .75.
    # accumulating: z = 1.5, v = .5 + .5 * .75 * 1.5;  replacing: z = 1, v = .5 + .5 * .75
    # true online, forward: first update .5 (1 + .5 + .25 * .5) = .8125,
    #   second .8125 + .5 (1 + .5 * .5 - .8125) = 1.03125
    [("accumulating", 1.0625), ("replacing", 0.875), ("true online", 1.03125)],
)
def test_kinds_of_trace_worked_by_hand(kind: td.TraceKind, value: float) -> None:
    arguments: dict[str, Any] = {"trace": 1.0, "kind": kind, "discount": 0.5, "step_size": 0.5}
    values = td.td_lambda(LOOP, [0], episodes=1, max_episode_steps=2, **arguments)
    equal(values, [value])
    result = td.sarsa_lambda(LOOP, episodes=1, max_episode_steps=2, **arguments)
    equal(result.action_values, [[value]])


@pytest.mark.parametrize("method", CONTROL)
def test_control_bootstraps_a_truncation_and_not_a_termination(method: str) -> None:
    # q = 4, step size and discount 1/2.  Terminated: 4 + .5 (1 - 4).
    # Truncated: 4 + .5 (1 + .5 * 4 - 4)
    learn = partial(
        CONTROL[method], discount=0.5, episodes=1, step_size=0.5, initial_value=4.0, seed=0
    )
    equal(learn(END).action_values, [[2.5]])
    equal(learn(LOOP, max_episode_steps=1).action_values, [[3.5]])


@pytest.mark.parametrize("method", PREDICTION)
def test_prediction_bootstraps_a_truncation_and_not_a_termination(method: str) -> None:
    learn = partial(PREDICTION[method], discount=0.5, episodes=1, step_size=0.5, initial_value=4.0)
    equal(learn(END, [0]), [2.5])
    equal(learn(LOOP, [0], max_episode_steps=1), [3.5])


def test_double_q_moves_one_table_and_reports_the_mean() -> None:
    # One table moves as above, the other stays at 4.
    learn = partial(
        td.double_q_learning, discount=0.5, episodes=1, step_size=0.5, initial_value=4.0, seed=0
    )
    equal(learn(END).action_values, [[3.25]])
    equal(learn(LOOP, max_episode_steps=1).action_values, [[3.75]])


def test_the_two_tables_of_double_q_have_visits_of_their_own() -> None:
    # By 1 / visits both go to 1 at their first update, and stay: the mean ends at 1 exactly.
    result = td.double_q_learning(
        END, discount=1.0, episodes=20, step_size=Power(), initial_value=4.0, seed=0
    )
    equal(result.action_values, [[1.0]])


def test_n_step_targets_of_two_actions_worked_by_hand() -> None:
    # State 0 pays 1 and leads to 1 whatever is done, state 1 pays 2 and ends.
    # q = ((0, -1), (8, 4)), epsilon 0: action 0 in both.  n = 2, step size 1, discount 1/2.
    # G of state 1 is 2.
    # pi = (1, 0), so on its own 1 + .5 * 2 = 2; off-policy, by action 1, 1 + .5 (1 * 8 + 0 * G) = 5
    mdp = TabularMDP([[[0.0, 1.0]] * 2, [[0.0, 0.0]] * 2], [[1.0, 1.0], [2.0, 2.0]], [1.0, 0.0])
    learn = partial(
        td.n_step_tree_backup,
        mdp,
        n=2,
        discount=0.5,
        episodes=1,
        step_size=1.0,
        epsilon=0.0,
        initial_value=[[0.0, -1.0], [8.0, 4.0]],
        seed=0,
    )
    equal(learn().action_values, [[2.0, -1.0], [2.0, 4.0]])
    equal(learn(behaviour=[0, 1]).action_values, [[5.0, -1.0], [8.0, 2.0]])


def test_watkins_cuts_the_traces_where_an_action_is_not_greedy() -> None:
    # Two states in a row, two actions alike, paying 0 and then 1; lambda, discount and step size 1.
    # Greedy all along, state 0 shares in the reward; an action that is not greedy cuts that off.
    mdp = TabularMDP([[[0.0, 1.0]] * 2, [[0.0, 0.0]] * 2], [[0.0] * 2, [1.0] * 2], [1.0, 0.0])
    learn = partial(
        td.watkins_q_lambda, mdp, trace=1.0, discount=1.0, episodes=1, step_size=1.0, seed=0
    )
    table = [[0.25, 0.25], [0.5, 0.25]]
    # error of state 0: .5 - .25, of state 1: 1 - .5, or 1 - .25 for the other action
    greedy = learn(behaviour=[0, 0], initial_value=table).action_values
    equal(greedy, [[0.25 + 0.25 + 0.5, 0.25], [1.0, 0.25]])
    other = learn(behaviour=[0, 1], initial_value=table).action_values
    equal(other, [[0.5, 0.25], [0.5, 1.0]])


def test_schedules_are_asked_with_steps_from_0_and_visits_from_1() -> None:
    asked: list[tuple[int, int]] = []

    def size(step: int, visits: int) -> float:
        asked.append((step, visits))
        return 1.0 / visits

    result = td.q_learning(CORRIDOR, discount=1.0, episodes=2, step_size=size, seed=0)
    assert asked == [(0, 1), (0, 1), (1, 1), (2, 1), (3, 2), (4, 2), (5, 2)]  # one to check it
    equal(result.action_values, [[2.0], [4.0], [4.0]])  # the mean of 1 and 3, of 2 and 6, 4
    asked.clear()
    td.sarsa(CORRIDOR, discount=1.0, episodes=2, epsilon=size, seed=0)
    choices = [(0, 1), (1, 1), (2, 1), (3, 2), (4, 2), (5, 2)]
    assert asked[1:7] == choices


def test_episodes_are_scored_without_discount_and_only_when_finished() -> None:
    result = td.q_learning(CORRIDOR, discount=0.5, steps=8, seed=0)
    equal(result.episode_returns, [7.0, 7.0])
    equal(result.episode_lengths, [3, 3])


# --- one method is another ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("special", "plain"),
    [
        (partial(td.n_step_sarsa, n=1), td.sarsa),
        (partial(td.n_step_q_sigma, n=3, sigma=1.0), partial(td.n_step_sarsa, n=3)),
        (partial(td.n_step_q_sigma, n=3, sigma=0.0), partial(td.n_step_tree_backup, n=3)),
        (partial(td.sarsa_lambda, trace=0.0), td.sarsa),
        (partial(td.sarsa_lambda, trace=0.0, kind="replacing"), td.sarsa),
        (partial(td.watkins_q_lambda, trace=0.0), td.q_learning),
        (partial(td.dyna_q, planning_steps=0), td.q_learning),
    ],
)
def test_a_method_at_its_limit_is_another_one_bit_for_bit(special: Control, plain: Control) -> None:
    arguments = {"discount": 0.9, "steps": 2000, "epsilon": 0.3, "initial_value": 0.5, "seed": 4}
    same(special("CliffWalking-v1", **arguments), plain("CliffWalking-v1", **arguments))


def test_prediction_at_its_limits_is_td0() -> None:
    arguments: dict[str, Any] = {"discount": 0.9, "episodes": 50, "initial_value": 0.5, "seed": 4}
    plain = td.td0(WALK, EVEN, **arguments)
    equal(td.n_step_td(WALK, EVEN, n=1, **arguments), plain)
    equal(td.td_lambda(WALK, EVEN, trace=0.0, **arguments), plain)
    equal(td.td_lambda(WALK, EVEN, trace=0.0, kind="replacing", **arguments), plain)
    true_online = td.td_lambda(WALK, EVEN, trace=0.0, kind="true online", **arguments)
    np.testing.assert_allclose(true_online, plain, rtol=1e-12)  # adds the drift and takes it off


def test_one_step_tree_backup_with_a_behaviour_is_q_learning_where_epsilon_is_0() -> None:
    arguments: dict[str, Any] = {"discount": 0.9, "steps": 3000, "epsilon": 0.0, "seed": 4}
    behaviour = np.full((48, 4), 0.25)
    backup = td.n_step_tree_backup("CliffWalking-v1", n=1, behaviour=behaviour, **arguments)
    plain = td.q_learning("CliffWalking-v1", behaviour=behaviour, **arguments)
    # pi spreads over equal maxima, so only the rounding of their mean differs
    np.testing.assert_allclose(backup.action_values, plain.action_values, rtol=1e-12)


def forward_view(rewards: list[float], sizes: float, discount: float, trace: float) -> np.ndarray:
    """Online lambda-return algorithm on the path 0, 1, 0, ... (Sutton & Barto, section 12.4)."""
    states = [t % 2 for t in range(len(rewards) + 1)]
    bootstraps = [np.zeros(2)]  # w^{t}_{t}, which bootstraps the returns that end at t
    for horizon in range(1, len(rewards) + 1):
        values = np.zeros(2)
        for t in range(horizon):
            returns = []
            for end in range(t + 1, horizon + 1):
                worth = sum(discount ** (k - t) * rewards[k] for k in range(t, end))
                tail = discount ** (end - t) * bootstraps[end - 1][states[end]]
                returns.append(worth + tail)
            mixed = trace ** (horizon - t - 1) * returns[-1]
            mixed += (1 - trace) * sum(trace**k * g for k, g in enumerate(returns[:-1]))
            values[states[t]] += sizes * (mixed - values[states[t]])
        bootstraps.append(values)
    return bootstraps[-1]


@given(
    trace=st.floats(0, 1),
    discount=st.floats(0, 1),
    size=st.floats(0.01, 1),
    length=st.integers(1, 6),
)
def test_true_online_td_lambda_is_the_online_forward_view(
    trace: float, discount: float, size: float, length: int
) -> None:
    swing = TabularMDP([[[0.0, 1.0]], [[1.0, 0.0]]], [[1.0], [-3.0]], [1.0, 0.0])
    values = td.td_lambda(
        swing,
        [0, 0],
        trace=trace,
        kind="true online",
        discount=discount,
        episodes=1,
        step_size=size,
        max_episode_steps=length,
    )
    rewards = [1.0, -3.0, 1.0, -3.0, 1.0, -3.0][:length]
    np.testing.assert_allclose(
        values, forward_view(rewards, size, discount, trace), rtol=1e-9, atol=1e-9
    )


@given(seed=st.integers(0, 2**16), discount=st.sampled_from([0.0, 0.9]), reward=st.floats(-9, 9))
def test_the_torch_targets_for_batches_are_the_same(
    seed: int, discount: float, reward: float
) -> None:
    generator = np.random.default_rng(seed)
    q, other = generator.normal(size=(2, 4))
    chances = generator.dirichlet(np.ones(4))
    r, d = torch.tensor(reward, dtype=torch.float64), torch.tensor(discount, dtype=torch.float64)
    row, target_row, pi = map(torch.from_numpy, (q, other, chances))
    assert q_learning_targets(r, d, row).item() == q_learning_target(reward, discount, q)
    double = double_q_target(reward, discount, q, other)
    assert double_q_targets(r, d, row, target_row).item() == double
    expected = expected_sarsa_target(reward, discount, q, chances)  # a sum, so to rounding
    assert expected_sarsa_targets(r, d, row, pi).item() == pytest.approx(expected, abs=1e-12)


# --- what they converge to ----------------------------------------------------------------------


@pytest.mark.parametrize("method", PREDICTION)
def test_prediction_finds_the_values_of_the_random_walk(method: str) -> None:
    # True values s/6 (Sutton & Barto, example 6.2). Over 32 seeds the mean must lie within five of
    # its standard errors; step sizes that fall leave no bias to speak of.
    runs = np.stack(
        [
            PREDICTION[method](
                WALK,
                EVEN,
                discount=1.0,
                episodes=4_000,
                step_size=Power(1.0, 0.7),
                initial_value=0.5,
                seed=seed,
            )
            for seed in range(32)
        ]
    )
    error = runs.std(0, ddof=1) / np.sqrt(len(runs))
    assert error.max() < 0.01
    assert (np.abs(runs.mean(0) - np.arange(1, 6) / 6) < 5 * error).all()


@pytest.mark.parametrize("method", ["q_learning", "sarsa", "expected_sarsa", "double_q_learning"])
def test_one_step_control_comes_near_the_best_on_the_lake(method: str) -> None:
    best = value_iteration(LAKE, 0.95).values[0]
    result = ALL_CONTROL[method](
        LAKE,
        discount=0.95,
        steps=500_000,
        step_size=Power(1.0, 0.7),
        epsilon=td.Linear(1.0, 0.02, steps=400_000),
        seed=1,
    )
    assert policy_evaluation(LAKE, result.policy, 0.95).values[0] > 0.97 * best


@pytest.mark.parametrize("method", ALL_CONTROL)
def test_control_finds_the_safe_way_home_in_a_grid(method: str) -> None:
    grid = grid_world(3, 4, forbidden=[(1, 1), (1, 2)], target=(2, 3))
    exact = value_iteration(grid, 0.9)
    result = ALL_CONTROL[method](
        grid,
        discount=0.9,
        steps=100_000,
        epsilon=td.Linear(1.0, 0.05, steps=80_000),
        max_episode_steps=30,
        seed=1,
    )
    found = policy_evaluation(grid, result.policy, 0.9).values
    np.testing.assert_allclose(found, exact.values, rtol=1e-6)


@pytest.mark.parametrize(
    "method", [td.q_learning, partial(td.prioritized_sweeping, planning_steps=20)]
)
def test_off_policy_values_are_exact_where_nothing_is_random(method: Control) -> None:
    grid = grid_world(3, 3, forbidden=[(1, 1)], target=(2, 2))
    result = method(grid, discount=0.5, steps=40_000, step_size=1.0, epsilon=1.0, seed=0)
    exact = value_iteration(grid, 0.5, tolerance=1e-12).action_values
    np.testing.assert_allclose(result.action_values, exact, rtol=0, atol=1e-3)


def test_planning_learns_from_fewer_steps() -> None:
    # One reward at the end of a corridor of 20; an episode of Q-learning moves it back one state.
    ends = [[list(np.eye(20)[max(s - 1, 0)]), list(np.eye(20)[s + 1])] for s in range(19)]
    chain = TabularMDP(
        [*ends, [list(np.eye(20)[18]), [0.0] * 20]],
        [[0.0, 0.0]] * 19 + [[0.0, 1.0]],
        np.eye(20)[0],
    )
    learn = {"discount": 0.9, "episodes": 2, "step_size": 1.0, "epsilon": 0.1, "seed": 0}
    q = td.q_learning(chain, **learn)
    dyna = td.dyna_q(chain, planning_steps=50, **learn)
    sweeping = td.prioritized_sweeping(chain, planning_steps=50, **learn)
    known = [(result.action_values > 0).any(1).sum() for result in (q, dyna, sweeping)]
    assert known[0] <= 2
    assert known[1] > 10
    assert known[2] == 20


# --- arguments ----------------------------------------------------------------------------------


def test_a_generator_is_advanced_and_a_seed_repeats() -> None:
    learn = partial(td.q_learning, LAKE, discount=0.9, steps=3000, initial_value=1.0)
    same(learn(seed=5), learn(seed=5))
    generator = np.random.default_rng(5)
    first, second = learn(seed=generator), learn(seed=generator)
    same(first, learn(seed=5))
    assert (first.action_values != second.action_values).any()


def test_an_initial_table_continues_a_run_and_is_not_written_to() -> None:
    table = np.full((1, 1), 4.0)
    result = td.q_learning(END, discount=1.0, episodes=1, step_size=0.5, initial_value=table)
    equal(table, [[4.0]])
    equal(result.action_values, [[2.5]])
    by_columns = np.asfortranarray(np.arange(64.0).reshape(16, 4))
    learn = partial(td.q_learning, LAKE, discount=0.9, steps=100)
    same(learn(initial_value=by_columns), learn(initial_value=by_columns.copy(order="C")))


class Numbered(gymnasium.Env[Any, Any]):
    """One step to the end, paying the action; observation and actions count from an offset."""

    observation_space: spaces.Space[Any] = spaces.MultiDiscrete([2, 3])
    action_space = spaces.Discrete(2, start=5)
    reward = 1.0
    shown: Any = (1, 2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        return self.shown, {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.shown, self.reward * action, True, False, {}


def test_observations_and_actions_of_other_spaces_are_numbered() -> None:
    result = td.q_learning(Numbered(), discount=1.0, episodes=20, step_size=1.0, epsilon=1.0)
    expected = np.zeros((6, 2))
    expected[5] = [5.0, 6.0]  # (1, 2) is 1 * 3 + 2
    equal(result.action_values, expected)


@pytest.mark.parametrize("steps", [None, 100])
def test_an_environment_that_returns_nan_is_refused(steps: int | None) -> None:
    broken = Numbered()
    broken.reward = float("nan")
    episodes = 1 if steps is None else None
    with pytest.raises(ValueError, match=r"returned a reward of nan at step 1 "):
        td.sarsa(broken, discount=1.0, steps=steps, episodes=episodes)


def test_an_environment_that_leaves_its_observation_space_is_refused() -> None:
    broken = Numbered()
    broken.shown = (1, 3)
    with pytest.raises(ValueError, match=r"observation \(1, 3\), which is not in its observation"):
        td.q_learning(broken, discount=1.0, steps=1)
    broken.shown = (float("nan"), 0)
    with pytest.raises(ValueError, match="which is not in its observation"):
        td.q_learning(broken, discount=1.0, steps=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"discount": 1.01}, r"discount=1.01: a discount is a number in \[0, 1\]"),
        ({"discount": float("nan")}, "discount=nan"),
        ({"discount": "0.9"}, "discount='0.9'"),
        ({"step_size": 0.0}, "step_size=0.0: it must be greater than 0"),
        ({"step_size": -1}, "step_size=-1: it must be"),
        ({"step_size": float("inf")}, "step_size=inf"),
        ({"step_size": td.Linear(0.5, 0.0, 9)}, r"step_size=Linear\(.*it must be greater than 0"),
        ({"step_size": lambda step, visits: -1.0}, r"step_size\(0, 1\) is -1.0"),
        ({"step_size": lambda step, visits: 1 - step}, r"step_size\(1, \d\) is 0: it must be"),
        ({"epsilon": 1.5}, r"epsilon=1.5: it must be a probability in \[0, 1\]"),
        ({"epsilon": Power(2.0)}, r"epsilon=Power\("),
        ({"epsilon": lambda step, visits: "no"}, r"epsilon\(0, 1\) is 'no'"),
        ({"steps": None}, "steps=None, episodes=None: give exactly one"),
        ({"episodes": 3}, "steps=10, episodes=3: give exactly one"),
        ({"steps": 0}, "steps=0: use a whole number of 1 or more"),
        ({"steps": 2.5}, "steps=2.5: use a whole number"),
        ({"initial_value": float("nan")}, "initial_value=nan: use a finite number"),
        ({"initial_value": [1.0, 2.0]}, r"or a table of shape \(16, 4\)"),
        ({"max_episode_steps": 0}, "max_episode_steps=0"),
        ({"env": "Taxi-v3"}, "Taxi-v4"),
        ({"env": "CartPole-v1"}, "the observations of CartPole-v1 are Box.*a table needs a row"),
        ({"env": "MountainCarContinuous-v0"}, "observations of MountainCarContinuous-v0 are Box"),
        ({"behaviour": np.ones((3, 4))}, r"behaviour has shape \(3, 4\).*expected an action for"),
        ({"behaviour": np.full((16, 4), 0.3)}, r"behaviour\[0\] = \[0.3.*is no distribution"),
        (
            {"behaviour": np.full(16, 4)},
            "behaviour takes actions 4 to 4, but there are only 0 to 3",
        ),
    ],
)
def test_bad_input_is_named_before_the_work(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"env": LAKE, "discount": 0.9, "steps": 10, "seed": 0, **arguments}
    with pytest.raises(ValueError, match=message) as raised:
        td.q_learning(given.pop("env"), **given)
    assert "\n" not in str(raised.value)


def test_a_step_size_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="step_size='big' is neither a number nor a function"):
        td.q_learning(LAKE, discount=0.9, steps=1, step_size="big")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (partial(td.n_step_sarsa, n=0), "n=0: the return bootstraps after a whole number"),
        (partial(td.n_step_tree_backup, n=1.5), "n=1.5"),
        (partial(td.n_step_q_sigma, n=2, sigma=1.1), "sigma=1.1"),
        (partial(td.sarsa_lambda, trace=-0.1), "trace=-0.1"),
        (
            partial(td.sarsa_lambda, trace=0.5, kind="dutch"),
            "kind='dutch' is unknown: it is one of",
        ),
        (partial(td.watkins_q_lambda, trace=0.5, kind="true online"), "is not for Q"),
        (partial(td.dyna_q, planning_steps=-1), "planning_steps=-1"),
        (partial(td.prioritized_sweeping, planning_steps=1, threshold=-1.0), "threshold=-1.0"),
    ],
)
def test_bad_settings_of_a_method_are_named(method: Control, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method(LAKE, discount=0.9, steps=10)


def test_a_policy_of_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"policy has shape \(3,\).*integers \(16,\), or its prob"):
        td.td0(LAKE, [0, 0, 0], discount=0.9, episodes=1)
    with pytest.raises(ValueError, match=r"policy has shape \(16,\) and type float64"):
        td.td0(LAKE, np.zeros(16), discount=0.9, episodes=1)


def test_waiting_for_an_end_that_never_comes_is_refused() -> None:
    up = np.zeros(48, np.int64)
    with pytest.raises(
        ValueError, match=r"never lead to the end of the episode.*max_episode_steps="
    ):
        td.td0("CliffWalking-v1", up, discount=0.9, episodes=1)
    with pytest.raises(ValueError, match="set a time limit"):
        td.q_learning(LOOP, discount=0.9, episodes=1)
    values = td.td0("CliffWalking-v1", up, discount=0.9, episodes=1, max_episode_steps=5)
    assert values[36] < 0
