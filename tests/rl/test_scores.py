from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.colors import to_hex
from scipy import stats

from launch.palette import SERIES
from rl.scores import bootstrap_interval, iqm, plot_curves


def test_interquartile_mean_leaves_out_a_quarter_at_each_end() -> None:
    assert iqm([9.0, 0.0, 4.0, 2.0]) == 3.0
    assert iqm([1.0, 2.0, 6.0]) == 3.0  # a quarter of three is none
    assert iqm([[100.0, 1.0], [2.0, -50.0]]) == 1.5  # of all tasks together
    assert iqm(7.0 * np.ones(1)) == 7.0


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30))
def test_interquartile_mean_is_scipys_trimmed_mean(scores: list[float]) -> None:
    assert iqm(scores) == pytest.approx(stats.trim_mean(scores, 0.25), rel=1e-9, abs=1e-9)


def test_interval_holds_the_share_of_enumerated_resamples() -> None:
    # The mean of two drawn from {0, 1} is 0, 1/2, 1 with probability 1/4, 1/2, 1/4.
    def mean(x: np.ndarray) -> float:
        return float(x.mean())

    assert bootstrap_interval([0.0, 1.0], mean) == (0.0, 1.0)
    assert bootstrap_interval([0.0, 1.0], mean, confidence=0.4) == (0.5, 0.5)


def test_interval_is_scipys_percentile_bootstrap() -> None:
    scores = np.random.default_rng(0).normal(size=12)
    theirs = stats.bootstrap(
        (scores,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval
    ours = bootstrap_interval(scores, lambda x: float(x.mean()), resamples=20_000)
    width = theirs.high - theirs.low
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.03 * width)


def test_seeds_are_drawn_within_each_task() -> None:
    # Every seed scores 0 on one task and 100 on the other: no resample can change the mean.
    scores = [[0.0, 100.0]] * 4
    assert bootstrap_interval(scores, lambda x: float(x.mean())) == (50.0, 50.0)
    # Two tasks whose seeds vary: drawn apart, they need not vary together.
    drawn: list[bool] = []
    pair = np.array([[0.0, 0.0], [1.0, 1.0]])
    bootstrap_interval(pair, lambda x: drawn.append(bool((x[:, 0] != x[:, 1]).any())) or 0.0)
    assert 0.4 < np.mean(drawn) < 0.85


def test_interval_is_the_same_for_the_same_seed_and_widens_with_confidence() -> None:
    scores = np.random.default_rng(0).normal(size=(5, 3))
    assert bootstrap_interval(scores, seed=3) == bootstrap_interval(scores, seed=3)
    low, high = bootstrap_interval(scores, confidence=0.5)
    lower, higher = bootstrap_interval(scores, confidence=0.99)
    assert lower < low < iqm(scores) < high < higher


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([], r"shape \(0,\)"),
        (np.zeros((2, 2, 2)), r"shape \(2, 2, 2\)"),
        (1.0, r"shape \(\)"),
        ([1.0, np.nan], "no finite number"),
    ],
)
def test_scores_that_cannot_be_judged_are_refused(scores: object, said: str) -> None:
    for judge in (iqm, bootstrap_interval):
        with pytest.raises(ValueError, match=said):
            judge(scores)


def test_settings_of_the_bootstrap_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"confidence=1\.0"):
        bootstrap_interval([1.0], confidence=1.0)
    with pytest.raises(ValueError, match="resamples=0"):
        bootstrap_interval([1.0], resamples=0)


# --- curves -----------------------------------------------------------------------------------


def test_curve_is_the_interquartile_mean_in_a_band_and_the_optimum_is_dashed() -> None:
    steps = [0, 100, 200]
    seeds = [[0.0, 1.0, 5.0], [1.0, 2.0, 5.0], [2.0, 3.0, 5.0], [9.0, 9.0, 5.0]]
    figure = plot_curves({"ppo": (steps, seeds), "dqn": (steps, [4.0, 4.0, 4.0])}, optimum=10.0)
    (axes,) = figure.axes
    ppo, dqn, best = axes.lines
    assert ppo.get_xdata().tolist() == steps
    assert ppo.get_ydata().tolist() == [1.5, 2.5, 5.0]
    assert dqn.get_ydata().tolist() == [4.0, 4.0, 4.0]
    assert best.get_ydata() == [10.0, 10.0]
    assert [to_hex(line.get_color()) for line in (ppo, dqn)] == list(SERIES[:2])
    (band,) = axes.collections  # one seed has none
    assert isinstance(band, FillBetweenPolyCollection)
    corners = band.get_paths()[0].vertices
    assert corners[:, 1].min() == 0.0
    assert corners[:, 1].max() == 9.0
    at_200 = corners[corners[:, 0] == 200, 1]
    assert set(at_200) == {5.0}
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["ppo", "dqn", "optimum"]


def test_curves_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'ppo' has env_steps of shape \(2,\).*\(1, 3\)"):
        plot_curves({"ppo": ([0, 1], [1.0, 2.0, 3.0])})
