from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.random import Generator
from scipy import stats

import rl.bandit_algorithms
import rl.bandits
import rl.stochastic
from rl.stochastic import (
    Array,
    Constant,
    DivergenceError,
    Power,
    Project,
    StepSize,
    incremental_mean,
    kiefer_wolfowitz,
    robbins_monro,
)


def noisy_mean(w: Array, generator: Generator) -> Array:
    return w - generator.standard_normal(w.shape)


def never(w: Array, generator: Generator) -> Array:
    raise AssertionError("observed before the arguments were checked")


# --- Robbins-Monro ----------------------------------------------------------------------------


def test_updates_of_hand_worked_line() -> None:
    # w <- w - (1/k) 2 (w - 3) from 7:  7 - 8 = -1;  -1 + (1/2) 8 = 3;  3
    found = robbins_monro(
        lambda w, _: 2 * (w - 3.0), 7.0, step_size=Power(), steps=3, seed=0, record=True
    )
    assert found.iterates is not None
    np.testing.assert_array_equal(found.iterates, np.array([-1.0, 3.0, 3.0]), strict=True)
    np.testing.assert_array_equal(found.last, np.array(3.0), strict=True)
    np.testing.assert_array_equal(found.average, np.array(5 / 3), strict=True)


def test_iterates_are_kept_only_on_request() -> None:
    found = robbins_monro(noisy_mean, np.zeros((2, 3)), step_size=0.5, steps=4, seed=0)
    kept = robbins_monro(noisy_mean, np.zeros((2, 3)), step_size=0.5, steps=4, seed=0, record=True)
    assert found.iterates is None
    assert kept.iterates is not None
    assert kept.iterates.shape == (4, 2, 3)
    np.testing.assert_array_equal(kept.iterates[-1], found.last, strict=True)
    np.testing.assert_allclose(kept.iterates.mean(0), found.average, rtol=1e-14)


@given(
    samples=hnp.arrays("float64", st.tuples(st.integers(1, 9), st.integers(0, 3))).filter(
        lambda x: bool((np.abs(x) < 1e150).all())
    ),
    start=st.floats(-100, 100),
)
def test_mean_estimation_is_the_running_mean_to_the_bit(samples: Array, start: float) -> None:
    rows = iter(samples)
    found = robbins_monro(
        lambda w, _: w - next(rows),
        np.full(samples.shape[1], start),
        step_size=Power(scale=0.75),
        steps=len(samples),
        seed=0,
        record=True,
    )
    means = incremental_mean(samples, step_size=Power(scale=0.75), initial=start)
    assert found.iterates is not None
    np.testing.assert_array_equal(found.iterates, means, strict=True)


@pytest.mark.parametrize("step_size", [Power(exponent=0.8), Constant(0.1), 0.1, lambda k: 1 / k])
def test_root_of_a_function_without_noise_is_found(step_size: StepSize | float) -> None:
    # w^3 + w = 10 at w = 2, slope 13
    found = robbins_monro(
        lambda w, _: (w**3 + w - 10) / 13,
        np.array([1.0, 3.0]),
        step_size=step_size,
        steps=2000,
        seed=0,
    )
    np.testing.assert_allclose(found.last, 2.0, atol=1e-3)


def test_same_seed_gives_the_same_and_another_does_not() -> None:
    def run(seed: int | Generator) -> Array:
        return robbins_monro(noisy_mean, np.zeros(3), step_size=Power(), steps=5, seed=seed).last

    np.testing.assert_array_equal(run(7), run(7))
    np.testing.assert_array_equal(run(7), run(np.random.default_rng(7)))
    assert (run(7) != run(8)).all()
    generator = np.random.default_rng(7)
    assert (run(generator) != run(generator)).all()


def test_initial_is_copied_and_turned_into_float64() -> None:
    initial = np.array([1, 2], dtype=np.int32)
    seen: list[Array] = []

    def observe(w: Array, generator: Generator) -> Array:
        seen.append(w)
        assert type(w) is np.ndarray
        assert isinstance(generator, Generator)
        w[:] = 0.0
        return np.ones(2)

    found = robbins_monro(observe, initial, step_size=1.0, steps=1, seed=0)
    assert seen[0].dtype == np.float64
    np.testing.assert_array_equal(initial, [1, 2])
    np.testing.assert_array_equal(found.last, [-1.0, -1.0])
    robbins_monro(
        lambda w, g: (seen.append(w), w)[1], 1.0, step_size=Constant(0.5), steps=2, seed=0
    )
    assert [type(w) is np.ndarray and w.shape == () for w in seen[1:]] == [True, True]


def test_projection_follows_every_update() -> None:
    # 0 + 1 = 1;  1 + 1 = 2 -> 1.5;  1.5 + 1 -> 1.5
    found = robbins_monro(
        lambda w, _: -np.ones(1),
        [0.0],
        step_size=1.0,
        steps=3,
        seed=0,
        project=lambda w: np.clip(w, -1.5, 1.5),
        record=True,
    )
    assert found.iterates is not None
    np.testing.assert_array_equal(found.iterates[:, 0], [1.0, 1.5, 1.5])


def test_diverging_run_names_the_step_and_the_way_out() -> None:
    def cubic(w: Array, _: Generator) -> Array:
        return w**3

    # 10 -> 10 - 1e3 -> 1e9 -> 1e27 -> 1e81 -> 1e243 -> beyond; 0 stays
    run = {"step_size": 1.0, "steps": 50, "seed": 0}
    with pytest.raises(DivergenceError, match=r"^step 6 of 50 .* in 1 of 2 entries: .*project="):
        robbins_monro(cubic, np.array([10.0, 0.0]), **run)  # type: ignore[arg-type]  # a dict
    for kind in (ValueError, ArithmeticError):
        with pytest.raises(kind, match="step 6 of 50"):
            robbins_monro(cubic, 10.0, **run)  # type: ignore[arg-type]  # a dict
    clipped: Project = lambda w: np.clip(w, -1, 1)  # noqa: E731  # shown so in the docs
    found = robbins_monro(cubic, 10.0, project=clipped, **run)  # type: ignore[arg-type]  # a dict
    assert found.last == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_observation_that_is_no_number_stops_the_run(bad: float) -> None:
    values = iter([1.0, bad])
    with pytest.raises(DivergenceError, match="step 2 of 3"):
        robbins_monro(lambda w, _: np.array(next(values)), 0.0, step_size=0.5, steps=3, seed=0)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (np.ones(()), r"shape \(\) of float64, expected shape \(3,\)"),
        (np.ones((1, 3)), r"shape \(1, 3\) of float64, expected shape \(3,\)"),
        (np.ones(3, np.float32), r"shape \(3,\) of float32, expected shape \(3,\) of float64"),
        (np.ones(3, np.int64), r"shape \(3,\) of int64, .* of float64"),
        (None, r"shape \(\) of object"),
    ],
)
def test_observation_or_projection_of_another_kind_is_refused(returned: Array, said: str) -> None:
    with pytest.raises(ValueError, match=f"observe returned {said}"):
        robbins_monro(lambda w, _: returned, np.zeros(3), step_size=1.0, steps=2, seed=0)
    with pytest.raises(ValueError, match=f"project returned {said}"):
        robbins_monro(
            noisy_mean, np.zeros(3), step_size=1.0, steps=2, seed=0, project=lambda w: returned
        )


@pytest.mark.parametrize("step_size", [0.0, -0.1, math.nan, lambda k: 2.0 - k])
def test_bad_step_size_is_refused_before_the_work(step_size: StepSize | float) -> None:
    with pytest.raises(ValueError, match=r"^step_size.*greater than 0$"):
        robbins_monro(never, 0.0, step_size=step_size, steps=3, seed=0)
    with pytest.raises(ValueError, match=r"^step_size.*greater than 0$"):
        kiefer_wolfowitz(never, 0.0, step_size=step_size, steps=3, seed=0)
    with pytest.raises(ValueError, match=r"^width.*greater than 0$"):
        kiefer_wolfowitz(never, 0.0, step_size=1.0, width=step_size, steps=3, seed=0)
    with pytest.raises(ValueError, match=r"^step_size.*greater than 0$"):
        incremental_mean([1.0, 2.0], step_size=step_size)


@pytest.mark.parametrize("approximate", [robbins_monro, kiefer_wolfowitz])
def test_bad_start_or_count_is_refused_before_the_work(approximate) -> None:  # noqa: ANN001  # either
    with pytest.raises(ValueError, match="initial holds NaN or infinity"):
        approximate(never, [0.0, math.nan], step_size=1.0, steps=3, seed=0)
    with pytest.raises(ValueError, match="steps=0"):
        approximate(never, 0.0, step_size=1.0, steps=0, seed=0)


# --- laws of the noise ------------------------------------------------------------------------


def variance_interval(replicates: int) -> tuple[float, float]:
    """Sample variance over true variance of normal numbers lies here but once in 10^6 seeds."""
    degrees = replicates - 1
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], degrees) / degrees
    return float(low), float(high)


def test_average_reaches_the_least_variance_whatever_the_slope() -> None:
    # Polyak & Juditsky 1992, theorem 1: steps * Var -> noise variance / slope^2 = 4 / 9. The
    # average is linear in the noise, so its exact variance follows from the weights as well.
    slope, noise, steps, replicates = 3.0, 2.0, 2000, 2000
    step_size = Power(scale=0.5, exponent=2 / 3)
    weights, carry = np.empty(steps), 0.0
    for k in range(steps, 0, -1):  # d(sum of w_i, i > k) / d(noise_k) = -a_k (1 + what follows)
        weights[k - 1] = step_size(k) * (1 + carry) / steps
        carry = (1 - step_size(k) * slope) * (1 + carry)
    exact = noise**2 * (weights**2).sum()
    assert steps * exact == pytest.approx(noise**2 / slope**2, rel=0.03)

    def observe(w: Array, generator: Generator) -> Array:
        return slope * w + noise * generator.standard_normal(w.shape)

    found = robbins_monro(observe, np.zeros(replicates), step_size=step_size, steps=steps, seed=1)
    low, high = variance_interval(replicates)
    assert low < found.average.var(ddof=1) / exact < high
    assert abs(found.average.mean()) < 5 * math.sqrt(exact / replicates)
    # the last iterate is far from it: it varies by about a_n noise^2 / (2 slope)
    assert found.last.var(ddof=1) > 3 * exact


def test_reciprocal_steps_have_the_variance_that_the_slope_gives_them() -> None:
    # Sacks 1958: n Var -> (c noise)^2 / (2 c slope - 1) for a_k = c / k; here 4 / (4 - 1)
    steps, replicates = 1000, 3000

    def observe(w: Array, generator: Generator) -> Array:
        return 2 * w + 2 * generator.standard_normal(w.shape)

    found = robbins_monro(observe, np.zeros(replicates), step_size=Power(), steps=steps, seed=2)
    exact = 0.0
    for k in range(1, steps + 1):
        exact = (1 - 2 / k) ** 2 * exact + (2 / k) ** 2
    assert steps * exact == pytest.approx(4 / 3, rel=0.01)
    low, high = variance_interval(replicates)
    assert low < found.last.var(ddof=1) / exact < high


# --- means ------------------------------------------------------------------------------------


def test_running_means_of_hand_worked_samples() -> None:
    np.testing.assert_array_equal(
        incremental_mean([[4, 1], [2, 1], [6, 4]]),
        [[4.0, 1.0], [3.0, 1.0], [4.0, 2.0]],
        strict=True,
    )
    # from 8 with 1/2:  6, 4, 5
    np.testing.assert_array_equal(
        incremental_mean([4.0, 2.0, 6.0], step_size=0.5, initial=8.0), [6.0, 4.0, 5.0]
    )


@given(
    samples=hnp.arrays("float64", (7, 2), elements=st.floats(-1e6, 1e6)), start=st.floats(-10, 10)
)
def test_running_means_are_means(samples: Array, start: float) -> None:
    counts = np.arange(1, 8)[:, None]
    np.testing.assert_allclose(
        incremental_mean(samples, initial=start), samples.cumsum(0) / counts, rtol=1e-9, atol=1e-8
    )


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (3.0, "single number"),
        ([], "steps=0"),
        ([1.0, math.nan], "samples hold NaN or infinity"),
        ([[math.inf]], "samples hold NaN or infinity"),
    ],
)
def test_samples_that_have_no_mean_are_refused(samples: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        incremental_mean(samples)


# --- Kiefer-Wolfowitz -------------------------------------------------------------------------


def test_differences_of_hand_worked_cubic() -> None:
    # ((w + c)^3 - (w - c)^3) / 2c = 3 w^2 + c^2, at w = 1 with c = 2: 7;  1 - 7/2 = -2.5
    # then w = -2.5, c = 1 (c_k = 2 / k), a = 1/4: -2.5 - (18.75 + 1) / 4 = -7.4375
    found = kiefer_wolfowitz(
        lambda w, _: w**3,
        1.0,
        step_size=Power(scale=0.5),
        width=Power(scale=2.0),
        steps=2,
        seed=0,
        record=True,
    )
    assert found.iterates is not None
    np.testing.assert_array_equal(found.iterates, [-2.5, -7.4375], strict=True)


def test_points_and_entries_are_told_apart_by_the_values() -> None:
    # f = x^2 y: central differences of a function linear or quadratic in each are its gradient
    calls: list[tuple[int, ...]] = []

    def per_point(w: Array, _: Generator) -> Array:
        calls.append(w.shape)
        return w[..., 0] ** 2 * w[..., 1]

    start = np.array([[1.0, 2.0], [3.0, -1.0]])
    settings = {"step_size": 0.5, "width": 0.25, "steps": 1, "seed": 0}
    found = kiefer_wolfowitz(per_point, start, **settings)  # type: ignore[arg-type]  # a dict
    # (2xy, x^2) = (4, 1) and (-6, 9)
    np.testing.assert_array_equal(found.last, [[-1.0, 1.5], [6.0, -5.5]])
    assert calls == [(2, 2)] * (1 + 2 * 2)

    calls.clear()

    def per_entry(w: Array, _: Generator) -> Array:
        calls.append(w.shape)
        return w**2

    found = kiefer_wolfowitz(per_entry, start, **settings)  # type: ignore[arg-type]  # a dict
    np.testing.assert_array_equal(found.last, np.zeros((2, 2)))  # w - (1/2) 2 w
    assert calls == [(2, 2)] * (1 + 2)


def test_minimum_is_found_through_noise() -> None:
    def observe(w: Array, generator: Generator) -> Array:
        return ((w - [1.0, -2.0]) ** 2).sum(-1) + generator.standard_normal(w.shape[:-1])

    found = kiefer_wolfowitz(observe, np.zeros((200, 2)), step_size=Power(), steps=2000, seed=0)
    # mean of 200 runs, whose deviation is about 0.2 each
    error = found.last.std(0, ddof=1) / math.sqrt(200)
    np.testing.assert_array_less(abs(found.last.mean(0) - [1.0, -2.0]), 5 * error)
    np.testing.assert_array_less(found.last.std(0), 0.25)


def test_values_of_another_shape_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"shape \(2,\) for w of shape \(4, 3\): .*\(4, 3\).*\(4,\)"
    ):
        kiefer_wolfowitz(lambda w, _: np.ones(2), np.ones((4, 3)), step_size=1.0, steps=1, seed=0)
    with pytest.raises(ValueError, match=r"observe returned shape \(4,\) of int64"):
        kiefer_wolfowitz(
            lambda w, _: np.ones(4, np.int64), np.ones((4, 3)), step_size=1.0, steps=1, seed=0
        )


def test_diverging_descent_names_the_step() -> None:
    # down -w^4 from 10, w is 4e3, 3e11, 8e34 after 1, 2, 3 steps, and float64 has 16 digits
    with pytest.raises(DivergenceError, match=r"step 4 of 50: .*\de\+3\d.*project="):
        kiefer_wolfowitz(lambda w, _: -(w**4), 10.0, step_size=1.0, steps=50, seed=0)
    with pytest.raises(DivergenceError, match=r"step 1 of 50 left .*project="):
        kiefer_wolfowitz(lambda w, _: -np.exp(w * w), 20.0, step_size=1e307, steps=50, seed=0)
    found = kiefer_wolfowitz(
        lambda w, _: -(w**4),
        10.0,
        step_size=1.0,
        steps=50,
        seed=0,
        project=lambda w: np.clip(w, -20, 20),
    )
    assert found.last == 20.0


# --- the module -------------------------------------------------------------------------------


def test_names_of_bandits_can_be_imported_from_here() -> None:
    for module, name in (
        (rl.bandits, "play"),
        (rl.bandits, "plot_regret"),
        (rl.bandits, "BernoulliBandit"),
        (rl.bandits, "GaussianBandit"),
        (rl.bandit_algorithms, "EpsilonGreedy"),
        (rl.bandit_algorithms, "UCB1"),
        (rl.bandit_algorithms, "GradientBandit"),
        (rl.bandit_algorithms, "Thompson"),
    ):
        assert getattr(rl.stochastic, name) is getattr(module, name)
        assert name in rl.stochastic.__all__


def test_importing_loads_neither_torch_nor_matplotlib_nor_scipy() -> None:
    code = "import sys, rl.stochastic; print({'torch', 'matplotlib', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
