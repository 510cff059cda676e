from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

import rl.monte_carlo as mc
from rl.blackjack import blackjack_state
from rl.mdp import TabularMDP, grid_world
from rl.planning import policy_evaluation, value_iteration
from rl.step_sizes import Power
from rl.tabular_schedules import Linear

END = TabularMDP([[[0.0]]], [[1.0]])  # one step, paying 1, then the end
LOOP = TabularMDP([[[1.0]]], [[1.0]])  # one state, round and round, paying 1
SWING = TabularMDP([[[0.0, 1.0]], [[1.0, 0.0]]], [[1.0], [-3.0]], [1.0, 0.0])
CHOICE = TabularMDP([[[0.0], [0.0]]], [[1.0, 3.0]])  # two actions, paying 1 or 3, then the end
WALK = TabularMDP(  # left and right over three states, 1 at the right end
    [
        [[0.0] * 3 if not 0 <= s + d < 3 else list(np.eye(3)[s + d]) for d in (-1, 1)]
        for s in range(3)
    ],
    [[0.0, 0.0], [0.0, 0.0], [0.0, 1.0]],
    [0.0, 1.0, 0.0],
)
EVEN = np.full((3, 2), 0.5)
RIGHTWARDS = np.tile([0.25, 0.75], (3, 1))


def equal(actual: object, expected: object) -> None:
    np.testing.assert_array_equal(actual, expected)


# --- prediction ---------------------------------------------------------------------------------


def test_first_and_every_visit_worked_by_hand() -> None:
    # Three steps 0, 1, 0 paying 1, -3, 1, then truncated in state 1, whose value is still 0.
    # Discount 1/2: G_2 = 1, G_1 = -3 + .5 = -2.5, G_0 = 1 - 1.25 = -.25
    learn = partial(mc.mc_prediction, SWING, [0, 0], discount=0.5, episodes=1, max_episode_steps=3)
    equal(learn(visit="first"), [-0.25, -2.5])
    equal(learn(visit="every"), [(1.0 - 0.25) / 2, -2.5])


def test_prediction_bootstraps_a_truncation_and_not_a_termination() -> None:
    # v = 4, discount 1/2: the return is 1, or 1 + .5 * 4, and replaces the initial value.
    learn = partial(mc.mc_prediction, discount=0.5, episodes=1, initial_value=4.0)
    equal(learn(END, [0]), [1.0])
    equal(learn(LOOP, [0], max_episode_steps=1), [3.0])
    equal(learn(LOOP, [0], max_episode_steps=1, step_size=0.5), [3.5])


def test_prediction_averages_the_returns() -> None:
    generator = np.random.default_rng(2)
    values = mc.mc_prediction(CHOICE, [[0.5, 0.5]], discount=1.0, episodes=64, seed=generator)
    # the mean of ones and threes, a multiple of 1/32 but for the rounding of a running mean
    assert values[0] * 32 == pytest.approx(round(values[0] * 32), abs=1e-9)
    assert 1.5 < values[0] < 2.5


def test_importance_sampling_worked_by_hand() -> None:
    # pi = (1/4, 3/4), b = (1/2, 1/2): ratios 1/2 and 3/2.  With n_1 of the actions paying 1 and n_3
    # paying 3 the ordinary mean is (.5 n_1 + 4.5 n_3) / n, the weighted one divides by
    # .5 n_1 + 1.5 n_3.
    learn = partial(
        mc.mc_prediction, CHOICE, [[0.25, 0.75]], behaviour=[[0.5, 0.5]], discount=1.0, episodes=8
    )
    seen = mc.mc_prediction(CHOICE, [[0.5, 0.5]], discount=1.0, episodes=8)[0]
    threes = round((seen - 1) / 2 * 8)  # the same draws
    ones = 8 - threes
    assert threes
    assert ones
    ordinary = (0.5 * ones + 4.5 * threes) / 8
    weighted = (0.5 * ones + 4.5 * threes) / (0.5 * ones + 1.5 * threes)
    np.testing.assert_allclose(learn(importance="ordinary"), [ordinary], rtol=1e-12)
    np.testing.assert_allclose(learn(importance="weighted"), [weighted], rtol=1e-12)
    np.testing.assert_allclose(learn(), [weighted], rtol=1e-12)


def test_a_policy_that_never_does_what_was_done_learns_nothing_of_it() -> None:
    # pi takes action 1, b took action 0: ratio 0. Ordinary counts it as a return of 0.
    learn = partial(
        mc.mc_prediction,
        CHOICE,
        [1],
        behaviour=[[1.0 - 1e-12, 1e-12]],
        discount=1.0,
        episodes=3,
        initial_value=7.0,
    )
    equal(learn(importance="weighted"), [7.0])
    equal(learn(importance="ordinary"), [0.0])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"visit": "every"},
        {"behaviour": RIGHTWARDS},
        {"behaviour": RIGHTWARDS, "visit": "every"},
        {"behaviour": RIGHTWARDS, "importance": "ordinary"},
    ],
)
def test_prediction_finds_the_exact_values(settings: dict[str, Any]) -> None:
    # Over 32 seeds the mean must lie within five of its standard errors. Weighted and every-visit
    # means are biased by the order of 1 / episodes, far below that.
    exact = policy_evaluation(WALK, EVEN, 0.9).values
    runs = np.stack(
        [
            mc.mc_prediction(WALK, EVEN, discount=0.9, episodes=4_000, seed=seed, **settings)
            for seed in range(32)
        ]
    )
    error = runs.std(0, ddof=1) / np.sqrt(len(runs))
    assert error.max() < 0.01
    assert (np.abs(runs.mean(0) - exact) < 5 * error).all()


def test_the_weighted_mean_is_less_noisy_than_the_ordinary_one() -> None:
    def spread(importance: Literal["ordinary", "weighted"]) -> NDArray[np.float64]:
        learn = partial(mc.mc_prediction, WALK, RIGHTWARDS, behaviour=EVEN, importance=importance)
        return np.stack([learn(discount=1.0, episodes=100, seed=seed) for seed in range(40)]).std(0)

    assert (spread("weighted") < spread("ordinary")).all()


# --- control ------------------------------------------------------------------------------------

Control = Callable[..., mc.ControlResult]


@pytest.mark.parametrize("method", [mc.mc_epsilon_greedy, mc.mc_exploring_starts, mc.mc_basic])
def test_control_bootstraps_a_truncation_and_not_a_termination(method: Control) -> None:
    learn = partial(method, discount=0.5, episodes=1, initial_value=4.0)
    iterations = {"iterations": 1} if method is mc.mc_basic else {}
    equal(learn(END, **iterations).action_values, [[1.0]])
    equal(learn(LOOP, max_episode_steps=1, **iterations).action_values, [[3.0]])


def test_control_of_first_and_every_visit_worked_by_hand() -> None:
    # As for prediction, with one action; a step size of 1/2 shows the order, last pair first:
    # q0 = 0 -> .5 (G_2 = 1) -> .125 (G_0 = -.25)
    learn = partial(mc.mc_epsilon_greedy, SWING, discount=0.5, episodes=1, max_episode_steps=3)
    equal(learn().action_values, [[-0.25], [-2.5]])
    equal(learn(visit="every").action_values, [[0.375], [-2.5]])
    equal(learn(visit="every", step_size=0.5).action_values, [[0.125], [-1.25]])


def test_mc_basic_values_a_policy_and_then_improves_it() -> None:
    # Iteration 1 follows action 0 (of equal ones the first), so from (0, 1): 0 + 1.  In state 1
    # action 1 pays 3; iteration 2 follows it: q(0, .) = 3.  Discount 1.
    mdp = TabularMDP([[[0.0, 1.0]] * 2, [[0.0, 0.0]] * 2], [[0.0, 0.0], [1.0, 3.0]])
    one = mc.mc_basic(mdp, discount=1.0, iterations=1)
    equal(one.action_values, [[1.0, 1.0], [1.0, 3.0]])
    two = mc.mc_basic(mdp, discount=1.0, iterations=2)
    equal(two.action_values, [[3.0, 3.0], [1.0, 3.0]])
    equal(two.policy, [0, 1])
    equal(two.episode_lengths, [2, 2, 1, 1, 2, 2, 1, 1])
    equal(two.episode_returns, [1.0, 1.0, 1.0, 3.0, 3.0, 3.0, 1.0, 3.0])


def test_mc_basic_is_exact_where_nothing_is_random() -> None:
    grid = grid_world(3, 3, forbidden=[(1, 1)], target=(2, 2))
    result = mc.mc_basic(grid, discount=0.5, iterations=12, max_episode_steps=30)
    exact = value_iteration(grid, 0.5, tolerance=1e-12)
    np.testing.assert_allclose(result.action_values, exact.action_values, rtol=0, atol=1e-8)
    np.testing.assert_allclose(
        policy_evaluation(grid, result.policy, 0.5).values, exact.values, rtol=1e-9
    )


def test_exploring_starts_visit_every_pair_that_can_be_come_to() -> None:
    # Start in state 0; state 1 is come to; state 2 never is.
    mdp = TabularMDP(
        [[[0.0, 1.0, 0.0]] * 2, [[0.0] * 3] * 2, [[0.0] * 3] * 2],
        [[0.0, 0.0], [1.0, 2.0], [5.0, 5.0]],
        [1.0, 0.0, 0.0],
    )
    result = mc.mc_exploring_starts(mdp, discount=1.0, episodes=400, step_size=0.5)
    np.testing.assert_allclose(
        result.action_values, [[2.0, 2.0], [1.0, 2.0], [0.0, 0.0]], rtol=0, atol=1e-3
    )


def basic_strategy(usable: int, dealer: int) -> int:
    """From which sum on to stick (Sutton & Barto 2018, figure 5.2)."""
    if usable:
        return 19 if dealer in (1, 9, 10) else 18
    return 17 if dealer in (1, 7, 8, 9, 10) else 13 if dealer in (2, 3) else 12


def test_exploring_starts_find_the_basic_strategy_of_blackjack() -> None:
    result = mc.mc_exploring_starts("Blackjack-v1", discount=1.0, episodes=2_000_000, seed=0)
    values = result.action_values
    for usable in (0, 1):
        for dealer in range(1, 11):
            for total in range(12, 22):
                state = blackjack_state(total, dealer, usable)
                gap = values[state, 0] - values[state, 1]
                if abs(gap) > 0.03:  # nearer ones are for more episodes to tell
                    assert (gap > 0) == (total >= basic_strategy(usable, dealer)), (
                        total,
                        dealer,
                        usable,
                    )


@pytest.mark.parametrize("visit", ["first", "every"])
def test_epsilon_greedy_monte_carlo_comes_near_the_best_on_the_lake(visit: mc.Visit) -> None:
    lake = "FrozenLake-v1"
    best = value_iteration(lake, 0.95).values[0]
    tables = [
        mc.mc_epsilon_greedy(
            lake,
            discount=0.95,
            steps=500_000,
            step_size=Power(1.0, 0.6),
            epsilon=Linear(1.0, 0.05, steps=350_000),
            visit=visit,
            seed=seed,
        ).action_values
        for seed in range(8)
    ]
    policy = np.mean(tables, 0).argmax(1)
    assert policy_evaluation(lake, policy, 0.95).values[0] > 0.99 * best


def test_an_episode_that_the_budget_of_steps_cuts_short_is_not_learned_from() -> None:
    result = mc.mc_epsilon_greedy(SWING, discount=1.0, steps=5, max_episode_steps=3)
    equal(result.episode_lengths, [3])
    equal(result.episode_returns, [-1.0])


# --- bad input ----------------------------------------------------------------------------------


def test_methods_that_begin_anywhere_ask_for_a_model() -> None:
    import gymnasium

    game = gymnasium.make("Blackjack-v1")
    blind = gymnasium.wrappers.TransformReward(game, lambda reward: 2 * reward)
    for method in (mc.mc_basic, mc.mc_exploring_starts):
        with pytest.raises(ValueError, match="TransformReward changes Blackjack-v1, but the model"):
            method(blind, discount=1.0, episodes=1)


@pytest.mark.parametrize("method", [mc.mc_basic, mc.mc_exploring_starts])
def test_policies_that_never_end_ask_for_a_time_limit(method: Control) -> None:
    for env in (LOOP, "CliffWalking-v1"):
        with pytest.raises(ValueError, match=r"some policies never end.*max_episode_steps="):
            method(env, discount=1.0, episodes=1)
    method("CliffWalking-v1", discount=1.0, episodes=1, max_episode_steps=5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"visit": "last"}, "visit='last' is unknown: it is 'first' or 'every'"),
        ({"importance": "none"}, "importance='none' is unknown"),
        ({"behaviour": EVEN, "step_size": 0.1}, "a weighted mean has no step size"),
        ({"behaviour": [1, 1, 1]}, "takes action 0 in state 0, but the behaviour never does"),
        ({"behaviour": [1, 1]}, r"behaviour has shape \(2,\)"),
        ({"policy": np.ones((3, 2))}, r"policy\[0\] = \[1.0, 1.0\] is no distribution"),
        ({"policy": np.ones((2, 3))}, r"policy has shape \(2, 3\)"),
        ({"discount": -0.1}, "discount=-0.1"),
        ({"episodes": 0}, "episodes=0"),
        ({"step_size": 0}, "step_size=0"),
        ({"env": "Taxi-v3"}, "Taxi-v4"),
        ({"env": "Pendulum-v1"}, "observations of Pendulum-v1 are Box"),
    ],
)
def test_bad_input_is_named_before_the_work(settings: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"env": WALK, "policy": EVEN, "discount": 1.0, "episodes": 1}
    given |= settings
    with pytest.raises(ValueError, match=message):
        mc.mc_prediction(given.pop("env"), given.pop("policy"), **given)


def test_episode_that_all_but_never_ends_is_not_kept_until_the_memory_is_full() -> None:
    rare = TabularMDP(np.array([[[1 - 1e-8]]]), np.zeros((1, 1)))
    with pytest.raises(ValueError, match="10,000,000 steps without end: set max_episode_steps="):
        mc.mc_prediction(rare, [0], discount=0.9, episodes=1)


def test_bad_input_of_control_is_named() -> None:
    with pytest.raises(ValueError, match="iterations=0"):
        mc.mc_basic(END, discount=1.0, iterations=0)
    with pytest.raises(ValueError, match="visit='both'"):
        mc.mc_exploring_starts(END, discount=1.0, episodes=1, visit="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="steps=None, episodes=None"):
        mc.mc_epsilon_greedy(END, discount=1.0)
