from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.random import Generator
from scipy import stats

from rl.bandit_algorithms import (
    UCB1,
    ActionValues,
    Algorithm,
    Array,
    BetaPosteriors,
    EpsilonGreedy,
    GradientBandit,
    Preferences,
    State,
    Thompson,
)
from rl.bandits import BernoulliBandit, GaussianBandit, play
from rl.step_sizes import Constant, Power

RUNS = 20_000


def shares_are(actions: Array | np.ndarray, probabilities: list[float]) -> None:
    """Each action is chosen as often as its probability says, in all but 1 of 10^6 seeds."""
    counts = np.bincount(actions, minlength=len(probabilities))
    low, high = stats.binom.ppf([[5e-7], [1 - 5e-7]], len(actions), probabilities)
    assert ((low <= counts) & (counts <= high)).all(), counts / len(actions)


def choose(algorithm: Algorithm[State], state: State, step: int = 9) -> np.ndarray:
    return algorithm.choose(state, step, np.random.default_rng(0))


def values(row: list[float]) -> ActionValues:
    table = np.tile(np.array(row), (RUNS, 1))
    return ActionValues(values=table, counts=np.ones(table.shape, np.int64))


# --- epsilon-greedy ---------------------------------------------------------------------------


def test_greedy_takes_the_greatest_and_breaks_ties_evenly() -> None:
    greedy = EpsilonGreedy(epsilon=0.0)
    assert set(choose(greedy, values([1.0, 3.0, 2.0])).tolist()) == {1}
    shares_are(choose(greedy, values([3.0, 1.0, 3.0, 3.0])), [1 / 3, 0.0, 1 / 3, 1 / 3])


def test_ties_are_broken_for_each_row_by_itself() -> None:
    rows = np.array([[2.0, 2.0, 1.0], [0.0, 1.0, 1.0]] * (RUNS // 2))
    state = ActionValues(values=rows, counts=np.ones(rows.shape, np.int64))
    actions = choose(EpsilonGreedy(epsilon=0.0), state)
    shares_are(actions[0::2], [0.5, 0.5, 0.0])
    shares_are(actions[1::2], [0.0, 0.5, 0.5])


def test_explorer_takes_any_action_the_greedy_one_among_them() -> None:
    # 0.3 / 3 for each, and what is left for the greatest
    shares_are(choose(EpsilonGreedy(epsilon=0.3), values([1.0, 3.0, 2.0])), [0.1, 0.8, 0.1])
    shares_are(choose(EpsilonGreedy(epsilon=1.0), values([1.0, 3.0])), [0.5, 0.5])


def test_epsilon_may_depend_on_the_step_and_is_capped_at_1() -> None:
    falling = EpsilonGreedy(epsilon=Power(scale=4.0))
    shares_are(choose(falling, values([0.0, 1.0]), step=2), [0.5, 0.5])  # 2 counts as 1
    shares_are(choose(falling, values([0.0, 1.0]), step=8), [0.25, 0.75])  # 1/2
    late = EpsilonGreedy(epsilon=lambda step: float(step < 3))
    shares_are(choose(late, values([0.0, 1.0]), step=2), [0.5, 0.5])
    shares_are(choose(late, values([0.0, 1.0]), step=3), [0.0, 1.0])


def test_optimistic_greedy_play_of_hand_worked_bandit() -> None:
    # From 5 halfway to 1 or 2: 3 and 3.5 once both are tried, in any order. Then action 1
    # (3.5 -> 2.75), action 0 (3 -> 2), and action 1 for ever, for its value stays above 2.
    algorithm = EpsilonGreedy(epsilon=0.0, initial_value=5.0, step_size=0.5)
    result = play(GaussianBandit([1.0, 2.0], 0.0), algorithm, steps=8, runs=50, seed=0)
    assert {tuple(row) for row in result.actions[:, :2].tolist()} == {(0, 1), (1, 0)}
    assert {tuple(row) for row in result.actions[:, 2:].tolist()} == {(1, 0, 1, 1, 1, 1)}


@pytest.mark.parametrize(
    ("step_size", "expected"),
    [
        (None, [4.0, 3.0]),  # 4, then (4 + 2) / 2
        (Power(exponent=0.0), [4.0, 2.0]),
        (Constant(0.5), [2.0, 2.0]),  # 0 -> 2 -> 2
        (0.5, [2.0, 2.0]),
        (np.float32(0.5), [2.0, 2.0]),
    ],
)
def test_values_move_by_the_step_size_of_their_own_count(
    step_size: Power | Constant | float | None, expected: list[float]
) -> None:
    algorithm = EpsilonGreedy(step_size=step_size)
    state = algorithm.start(runs=2, actions=3)
    algorithm.learn(state, 5, np.array([2, 0]), np.array([4.0, 7.0]))
    assert state.values[0].tolist() == [0.0, 0.0, expected[0]]
    algorithm.learn(state, 6, np.array([2, 1]), np.array([2.0, 7.0]))
    assert state.values[0].tolist() == [0.0, 0.0, expected[1]]
    assert state.counts.tolist() == [[0, 0, 2], [1, 1, 0]]


# --- UCB1 -------------------------------------------------------------------------------------


def test_ucb1_order_of_hand_worked_bandit() -> None:
    # Means 1, 0; n = 2: both wait equally, action 0. n = 3: 1 + sqrt(ln 3) = 2.05 against
    # sqrt(2 ln 3) = 1.48: 0. n = 4: 1 + sqrt(2 ln 4 / 3) = 1.96, sqrt(2 ln 4) = 1.67: 0.
    # n = 5: 1 + sqrt(2 ln 5 / 4) = 1.897, 1.794: 0. n = 6: 1 + sqrt(2 ln 6 / 5) = 1.847, 1.893: 1.
    result = play(GaussianBandit([1.0, 0.0], 0.0), UCB1(), steps=7, runs=2, seed=0)
    assert result.actions.tolist() == [[0, 1, 0, 0, 0, 0, 1]] * 2


@given(
    means=st.lists(st.floats(0, 1), min_size=2, max_size=4, unique=True),
    exploration=st.sampled_from([0.0, 0.5, 2**0.5, 3.0]),
)
def test_ucb1_follows_its_bounds(means: list[float], exploration: float) -> None:
    result = play(GaussianBandit(means, 0.0), UCB1(exploration), steps=60, seed=0)
    played = result.actions[0].tolist()
    assert played[: len(means)] == list(range(len(means)))
    for step in range(len(means), 60):  # whatever was played, its bound was the greatest
        counts = np.bincount(played[:step], minlength=len(means))
        bounds = np.array(means) + exploration * np.sqrt(math.log(step) / counts)
        assert bounds[played[step]] >= bounds.max() - 1e-12


def test_ucb1_breaks_later_ties_at_random() -> None:
    actions = play(GaussianBandit([1.0, 1.0], 0.0), UCB1(), steps=3, runs=RUNS, seed=0).actions
    assert (actions[:, :2] == [0, 1]).all()
    shares_are(actions[:, 2], [0.5, 0.5])


# --- gradient bandit --------------------------------------------------------------------------


def test_gradient_steps_of_hand_worked_rewards() -> None:
    algorithm = GradientBandit(step_size=0.5)
    state = algorithm.start(runs=1, actions=2)
    # The first reward is its own baseline.
    algorithm.learn(state, 1, np.array([0]), np.array([1.0]))
    assert state.preferences.tolist() == [[0.0, 0.0]]
    assert state.baselines.tolist() == [1.0]
    # 1/2 (3 - 1) (1 - 1/2) = 1/2 up, 1/2 (3 - 1) 1/2 down; mean reward (1 + 3) / 2
    algorithm.learn(state, 2, np.array([1]), np.array([3.0]))
    assert state.preferences.tolist() == [[-0.5, 0.5]]
    assert state.baselines.tolist() == [2.0]
    # pi_0 = 1 / (1 + e); 1/2 (-1 - 2) = -3/2
    algorithm.learn(state, 3, np.array([1]), np.array([-1.0]))
    first = 1 / (1 + math.e)
    expected = [[-0.5 + 1.5 * first, 0.5 - 1.5 * first]]
    np.testing.assert_allclose(state.preferences, expected, rtol=1e-15)
    assert state.baselines.tolist() == [1.0]


def test_gradient_without_baseline_compares_with_0() -> None:
    algorithm = GradientBandit(step_size=0.5, baseline=False)
    state = algorithm.start(runs=2, actions=2)
    algorithm.learn(state, 1, np.array([0, 1]), np.array([1.0, 2.0]))
    # 1/2 * 1 * 1/2;  1/2 * 2 * 1/2
    assert state.preferences.tolist() == [[0.25, -0.25], [-0.5, 0.5]]
    assert state.baselines.tolist() == [0.0, 0.0]


def test_preferences_are_chosen_by_their_softmax() -> None:
    row = np.log([6.0, 3.0, 1.0])
    state = Preferences(preferences=np.tile(row + 800.0, (RUNS, 1)), baselines=np.zeros(RUNS))
    np.testing.assert_allclose(state.probabilities()[0], [0.6, 0.3, 0.1], rtol=1e-12)
    shares_are(choose(GradientBandit(), state), [0.6, 0.3, 0.1])
    never = Preferences(
        preferences=np.tile([-2000.0, 0.0, -2000.0], (RUNS, 1)), baselines=np.zeros(RUNS)
    )
    assert set(choose(GradientBandit(), never).tolist()) == {1}


@given(
    preferences=hnp.arrays("float64", 4, elements=st.floats(-5, 5)),
    means=hnp.arrays("float64", 4, elements=st.floats(-5, 5)),
    baseline=st.floats(-5, 5),
)
def test_expected_step_is_the_gradient_of_the_expected_reward(
    preferences: Array, means: Array, baseline: float
) -> None:
    # d(sum pi q) / dH_a = pi_a (q_a - sum pi q), whatever the baseline; one run for each action
    state = Preferences(preferences=np.tile(preferences, (4, 1)), baselines=np.full(4, baseline))
    pi = state.probabilities()[0]
    GradientBandit(step_size=0.25).learn(state, 2, np.arange(4), means)
    moved = pi @ (state.preferences - preferences)
    np.testing.assert_allclose(moved, 0.25 * pi * (means - pi @ means), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(state.preferences.sum(1), preferences.sum(), rtol=0, atol=1e-12)


# --- Thompson ---------------------------------------------------------------------------------


def test_posterior_counts_successes_and_failures_beside_the_prior() -> None:
    algorithm = Thompson(prior=(2.0, 0.5))
    state = algorithm.start(runs=2, actions=2)
    algorithm.learn(state, 1, np.array([0, 1]), np.array([1.0, 0.0]))
    algorithm.learn(state, 2, np.array([0, 0]), np.array([0.0, 1.0]))
    assert state.successes.tolist() == [[3.0, 2.0], [3.0, 2.0]]
    assert state.failures.tolist() == [[1.5, 0.5], [0.5, 1.5]]


def test_thompson_chooses_an_action_as_often_as_it_is_likely_to_be_best() -> None:
    # P(x > y) = 2/3 for x of density 2x and y uniform; 5/6 if y has density 2 (1 - y)
    uniform, one_more = np.ones((RUNS, 2)), np.tile([2.0, 1.0], (RUNS, 1))
    one = BetaPosteriors(successes=one_more, failures=uniform)
    shares_are(choose(Thompson(), one), [2 / 3, 1 / 3])
    both = BetaPosteriors(successes=one_more, failures=one_more[:, ::-1])
    shares_are(choose(Thompson(), both), [5 / 6, 1 / 6])


def test_thompson_refuses_rewards_that_are_no_counts() -> None:
    with pytest.raises(ValueError, match=r"step 1 earned 0\.5: play a BernoulliBandit"):
        play(GaussianBandit([1.0, 0.5], 0.0), Thompson(), steps=50, runs=9, seed=0)


# --- all of them ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "algorithm",
    [EpsilonGreedy(), UCB1(), GradientBandit(), GradientBandit(baseline=False), Thompson()],
)
def test_algorithm_comes_to_prefer_the_better_action(algorithm: Algorithm[object]) -> None:
    result = play(BernoulliBandit([0.1, 0.9]), algorithm, steps=400, runs=200, seed=0)
    early, late = result.optimal[:, :20].mean(), result.optimal[:, -20:].mean()
    assert result.actions.dtype == np.int64
    assert late > 0.9
    assert late > early


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: EpsilonGreedy(epsilon=1.1), r"epsilon=1\.1: .*between 0 and 1"),
        (lambda: EpsilonGreedy(epsilon=-0.1), r"epsilon=-0\.1"),
        (lambda: EpsilonGreedy(epsilon=math.nan), "epsilon=nan"),
        (lambda: EpsilonGreedy(initial_value=math.inf), "initial_value=inf"),
        (lambda: EpsilonGreedy(step_size=0.0), r"step_size=0\.0: .*greater than 0"),
        (lambda: EpsilonGreedy(step_size=math.nan), "step_size=nan"),
        (lambda: UCB1(exploration=-1.0), r"exploration=-1\.0"),
        (lambda: UCB1(exploration=math.nan), "exploration=nan"),
        (lambda: GradientBandit(step_size=0.0), r"step_size=0\.0"),
        (lambda: GradientBandit(step_size=math.nan), "step_size=nan"),
        (lambda: Thompson(prior=(0.0, 1.0)), r"prior=\(0\.0, 1\.0\): .*two positive"),
        (lambda: Thompson(prior=(1.0, math.nan)), "two positive"),
        (lambda: Thompson(prior=(1.0, 1.0, 1.0)), "two positive"),
    ],
)
def test_impossible_setting_is_refused_in_one_line(make, said: str) -> None:  # noqa: ANN001  # a lambda
    with pytest.raises(ValueError, match=said) as raised:
        make()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("bad", [-0.5, math.nan])
def test_schedule_that_gives_no_probability_is_refused_with_its_step(bad: float) -> None:
    def schedule(step: int) -> float:
        return 0.1 if step < 3 else bad

    with pytest.raises(ValueError, match=rf"epsilon\(3\)={bad}"):
        play(BernoulliBandit([0.5]), EpsilonGreedy(epsilon=schedule), steps=9, seed=0)


def test_drawn_numbers_do_not_depend_on_what_the_other_runs_do() -> None:
    # Every step draws equally many numbers, so a tie in one run moves nothing in another.
    def second(first_row: list[float], generator: Generator) -> list[int]:
        table = np.array([first_row, [1.0, 1.0]])
        state = ActionValues(values=table, counts=np.ones((2, 2), np.int64))
        greedy = EpsilonGreedy(epsilon=0.5)
        return [int(greedy.choose(state, step, generator)[1]) for step in range(1, 30)]

    assert second([1.0, 1.0], np.random.default_rng(0)) == second(
        [0.0, 1.0], np.random.default_rng(0)
    )
