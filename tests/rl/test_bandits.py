from __future__ import annotations

import io
import math

import numpy as np
import pytest
from numpy.random import Generator
from scipy import stats

from rl.bandit_algorithms import UCB1, Actions, EpsilonGreedy, Thompson
from rl.bandits import (
    Array,
    BanditResult,
    BernoulliBandit,
    GaussianBandit,
    play,
    plot_regret,
)
from rl.step_sizes import Power


class Scripted:
    """Plays a fixed sequence of actions, the same in every run, and notes what it is told."""

    def __init__(self, *script: int) -> None:
        self.script = script
        self.told: list[tuple[int, list[int], list[float]]] = []

    def start(self, runs: int, actions: int) -> int:
        return runs

    def choose(self, state: int, step: int, generator: Generator) -> Actions:
        return np.full(state, self.script[step - 1])

    def learn(self, state: int, step: int, actions: Actions, rewards: Array) -> None:
        self.told.append((step, actions.tolist(), rewards.tolist()))


def with_regret(regret: list[list[float]]) -> BanditResult:
    table = np.array(regret)
    return BanditResult(
        actions=np.zeros(table.shape, np.int64),
        rewards=np.zeros_like(table),
        optimal=np.zeros(table.shape, bool),
        regret=table,
    )


# --- bandits ----------------------------------------------------------------------------------


def test_bernoulli_rewards_are_1_with_the_actions_own_probability() -> None:
    bandit = BernoulliBandit([0.0, 1.0, 0.3])
    actions = np.repeat([0, 1, 2], 20_000)
    rewards = bandit.draw(actions, np.random.default_rng(0)).reshape(3, -1)
    assert rewards.dtype == np.float64
    assert rewards[0].tolist() == [0.0] * 20_000
    assert rewards[1].tolist() == [1.0] * 20_000
    low, high = stats.binom.ppf([1e-6, 1 - 1e-6], 20_000, 0.3)
    assert low <= rewards[2].sum() <= high
    assert set(rewards[2].tolist()) == {0.0, 1.0}


def test_gaussian_rewards_have_mean_and_deviation_of_their_action() -> None:
    bandit = GaussianBandit([-1.0, 4.0, 9.0], [1.0, 2.0, 0.0])
    actions = np.repeat([0, 1, 2], 20_000)
    rewards = bandit.draw(actions, np.random.default_rng(0)).reshape(3, -1)
    assert rewards[2].tolist() == [9.0] * 20_000
    for row, mean, deviation in ((0, -1.0, 1.0), (1, 4.0, 2.0)):
        assert stats.kstest(rewards[row], "norm", (mean, deviation)).pvalue > 1e-4
    assert GaussianBandit([1, 2]).deviations.tolist() == [1.0, 1.0]


def test_runs_may_have_problems_of_their_own() -> None:
    means = np.array([[0.0, 1.0, 5.0], [7.0, 1.0, 2.0]])
    actions, generator = np.array([2, 1]), np.random.default_rng(0)
    assert GaussianBandit(means, 0.0).draw(actions, generator).tolist() == [5.0, 1.0]
    assert BernoulliBandit(means > 3).draw(actions, generator).tolist() == [1.0, 0.0]
    result = play(GaussianBandit(means, 0.0), Scripted(0, 2), steps=2, runs=2, seed=0)
    # best 5 and 7; chosen 0, 5 and 7, 2
    assert result.regret.tolist() == [[5.0, 5.0], [0.0, 5.0]]
    assert result.optimal.tolist() == [[False, True], [True, False]]


def test_bandit_keeps_a_copy_that_cannot_be_changed() -> None:
    means = np.array([1.0, 2.0])
    bandit = GaussianBandit(means)
    means[0] = 9.0
    assert bandit.means.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="read-only"):
        bandit.means[0] = 9.0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: BernoulliBandit([0.5, 1.5]), r"probabilities hold 1\.5: .*between 0 and 1"),
        (lambda: BernoulliBandit([-0.1]), "between 0 and 1"),
        (lambda: BernoulliBandit([0.5, math.nan]), "probabilities hold nan: .*finite"),
        (lambda: BernoulliBandit(0.5), r"probabilities have shape \(\), expected \(A,\)"),
        (lambda: BernoulliBandit([]), r"shape \(0,\)"),
        (lambda: GaussianBandit([math.inf]), "means hold inf: .*finite"),
        (lambda: GaussianBandit([0.0], math.nan), "deviations hold nan: .*finite"),
        (lambda: GaussianBandit(np.zeros((99, 99)), -1.0), r"deviations hold -1\.0: .*0 or more"),
        (lambda: GaussianBandit([0.0, 1.0], [1.0, 1.0, 1.0]), r"deviations.*\(3,\).*\(2,\)"),
    ],
)
def test_impossible_bandit_is_refused(make, said: str) -> None:  # noqa: ANN001  # a lambda
    with pytest.raises(ValueError, match=said) as raised:
        make()
    assert "\n" not in str(raised.value)


# --- play -------------------------------------------------------------------------------------


def test_play_records_what_was_done_and_told() -> None:
    algorithm = Scripted(0, 1, 0)
    result = play(GaussianBandit([0.25, 1.0], 0.0), algorithm, steps=3, runs=2, seed=0)
    np.testing.assert_array_equal(result.actions, np.array([[0, 1, 0]] * 2), strict=True)
    np.testing.assert_array_equal(result.rewards, np.array([[0.25, 1.0, 0.25]] * 2), strict=True)
    # 1 - 0.25, then nothing, then 0.75 again
    np.testing.assert_array_equal(result.regret, np.array([[0.75, 0.75, 1.5]] * 2), strict=True)
    np.testing.assert_array_equal(result.optimal, np.array([[False, True, False]] * 2), strict=True)
    assert algorithm.told == [
        (1, [0, 0], [0.25, 0.25]),
        (2, [1, 1], [1.0, 1.0]),
        (3, [0, 0], [0.25, 0.25]),
    ]


def test_regret_is_of_means_and_not_of_drawn_rewards() -> None:
    result = play(GaussianBandit([0.0, 3.0], 5.0), Scripted(1, 1), steps=2, runs=4, seed=0)
    assert (result.rewards != 3.0).all()
    assert result.regret.tolist() == [[0.0, 0.0]] * 4
    equal = play(GaussianBandit([3.0, 3.0]), Scripted(0, 1), steps=2, runs=1, seed=0)
    assert equal.optimal.tolist() == [[True, True]]


@pytest.mark.parametrize("algorithm", [EpsilonGreedy(), UCB1(), Thompson()])
def test_same_seed_plays_the_same(algorithm: EpsilonGreedy | UCB1 | Thompson) -> None:
    def run(seed: int | Generator) -> BanditResult:
        bandit = BernoulliBandit([0.4, 0.6])
        return play(bandit, algorithm, steps=40, runs=3, seed=seed)  # type: ignore[arg-type]  # any

    first, again = run(5), run(np.random.default_rng(5))
    assert first.actions.tolist() == again.actions.tolist()
    assert first.rewards.tolist() == again.rewards.tolist()
    assert first.rewards.tolist() != run(6).rewards.tolist()


def test_impossible_play_is_refused_before_it_starts() -> None:
    bandit = BernoulliBandit(np.full((3, 2), 0.5))
    with pytest.raises(ValueError, match=r"steps=0, runs=3: use at least 1"):
        play(bandit, UCB1(), steps=0, runs=3, seed=0)
    with pytest.raises(ValueError, match=r"steps=2, runs=0"):
        play(bandit, UCB1(), steps=2, runs=0, seed=0)
    with pytest.raises(ValueError, match=r"problems for 3 runs, but runs=2"):
        play(bandit, UCB1(), steps=2, runs=2, seed=0)


# --- how regret grows -------------------------------------------------------------------------


def test_regret_of_ucb1_stays_below_its_bound() -> None:
    # Auer et al. 2002, theorem 1: 8 sum (ln n) / gap + (1 + pi^2 / 3) sum gap
    result = play(BernoulliBandit([0.9, 0.7, 0.5]), UCB1(), steps=3000, runs=200, seed=0)
    n = np.arange(1, 3001)
    bound = 8 * np.log(n) * (1 / 0.2 + 1 / 0.4) + (1 + math.pi**2 / 3) * (0.2 + 0.4)
    assert (result.curve().high < bound).all()
    # and the theorem's heart: an action is tried a logarithmic number of times
    assert (result.actions == 2).sum(1).mean() < 8 * math.log(3000) / 0.4**2 + 1 + math.pi**2 / 3


def test_regret_of_fixed_epsilon_grows_by_its_exploration() -> None:
    # Once both actions are known, epsilon / 2 of the steps go to the worse one, for ever.
    bandit, runs = GaussianBandit([1.0, 0.5], 0.0), 200
    result = play(bandit, EpsilonGreedy(epsilon=0.1), steps=2000, runs=runs, seed=0)
    wrong = (~result.optimal[:, 1000:]).sum()
    low, high = stats.binom.ppf([1e-6, 1 - 1e-6], 1000 * runs, 0.05)
    assert low <= wrong <= high
    assert result.regret[:, -1].tolist() == (0.5 * (~result.optimal).sum(1)).tolist()


def test_thompson_and_falling_epsilon_flatten_and_fixed_epsilon_does_not() -> None:
    bandit = BernoulliBandit([0.8, 0.4])
    growth = {}
    for name, algorithm in (
        ("thompson", Thompson()),
        ("falling", EpsilonGreedy(epsilon=Power(scale=5 * 2 / 0.4**2))),
        ("fixed", EpsilonGreedy(epsilon=0.2)),
    ):
        curve = play(bandit, algorithm, steps=2000, runs=300, seed=3).curve()
        growth[name] = (curve.mean[1999] - curve.mean[999]) / (curve.mean[999] - curve.mean[499])
    # Doubling the steps twice: a logarithm grows equally each time, a line twice as much.
    assert growth["fixed"] == pytest.approx(2.0, abs=0.2)
    assert growth["falling"] == pytest.approx(1.0, abs=0.2)
    assert growth["thompson"] < 1.6


def test_thompson_second_choice_has_its_enumerated_probability() -> None:
    # The first is a coin flip. A success makes its action the next with probability 2/3, a failure
    # with 1/3. So the next is action 0 with .8 * 2/3 + .2 / 3 = 9/15 after it, and with
    # .4 / 3 + .6 * 2/3 = 8/15 after action 1: 17/30.
    runs = 40_000
    result = play(BernoulliBandit([0.8, 0.4]), Thompson(), steps=2, runs=runs, seed=0)
    counts = result.optimal.sum(0)
    low, high = stats.binom.ppf([[5e-7], [1 - 5e-7]], runs, [1 / 2, 17 / 30])
    assert ((low <= counts) & (counts <= high)).all()


# --- curves -----------------------------------------------------------------------------------


def test_curve_of_hand_worked_runs() -> None:
    # (1, 3): mean 2, deviation sqrt 2, error 1; Student's quantile for 1 degree of freedom and
    # 95% is tan(0.475 pi) = 12.706
    curve = with_regret([[1.0, 4.0], [3.0, 4.0]]).curve()
    np.testing.assert_allclose(curve.mean, [2.0, 4.0], rtol=0)
    half = math.tan(0.475 * math.pi)
    np.testing.assert_allclose(curve.low, [2 - half, 4.0], rtol=1e-12)
    np.testing.assert_allclose(curve.high, [2 + half, 4.0], rtol=1e-12)
    # for 50% it is 1
    np.testing.assert_allclose(
        with_regret([[1.0], [3.0]]).curve(confidence=0.5).high, [3.0], rtol=1e-12
    )


def test_single_run_has_a_curve_and_no_band() -> None:
    curve = with_regret([[1.0, 4.0]]).curve()
    assert curve.mean.tolist() == [1.0, 4.0]
    assert np.isnan([curve.low, curve.high]).all()


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, math.nan])
def test_impossible_confidence_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match=rf"confidence={confidence}: .*between 0 and 1"):
        with_regret([[1.0], [2.0]]).curve(confidence=confidence)


def test_plot_has_a_line_and_a_band_for_each_result() -> None:
    results = {"two runs": with_regret([[1.0, 4.0], [3.0, 6.0]]), "one run": with_regret([[1.0]])}
    figure = plot_regret(results)
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["two runs", "one run"]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["two runs", "one run"]
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[1, 2], [2, 5]])
    band = axes.collections[0].get_paths()[0].vertices[:, 1]  # type: ignore[index]  # an array
    curve = results["two runs"].curve()
    assert {*curve.low, *curve.high} <= set(band.tolist())
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "regret")
    figure.savefig(io.BytesIO())  # also a band of NaN is drawn without a warning
    with pytest.raises(ValueError, match="no results to draw"):
        plot_regret({})
