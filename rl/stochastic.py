"""Stochastic approximation: roots and minima of what can only be observed with noise.

`rl.step_sizes`, `rl.bandits` and `rl.bandit_algorithms` belong to this chapter; their names can be
imported from here, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rl.bandit_algorithms import UCB1, EpsilonGreedy, GradientBandit, Thompson
from rl.bandits import (
    BanditResult,
    BernoulliBandit,
    Curve,
    GaussianBandit,
    play,
    plot_regret,
)
from rl.step_sizes import Constant, Power, StepSize, evaluate_steps

__all__ = [
    "UCB1",
    "Approximation",
    "BanditResult",
    "BernoulliBandit",
    "Constant",
    "Curve",
    "DivergenceError",
    "EpsilonGreedy",
    "GaussianBandit",
    "GradientBandit",
    "Observe",
    "Power",
    "Project",
    "StepSize",
    "Thompson",
    "incremental_mean",
    "kiefer_wolfowitz",
    "play",
    "plot_regret",
    "robbins_monro",
]

Array: TypeAlias = NDArray[np.float64]
Observe: TypeAlias = Callable[[Array, np.random.Generator], Array]
"""One noisy observation at w, its noise drawn from the generator; w is not to be changed."""
Project: TypeAlias = Callable[[Array], Array]
"""The nearest point of an allowed set, such as ``lambda w: np.clip(w, -10, 10)``."""

_WAY_OUT = (
    "keep w in a bounded set with project=, such as lambda w: np.clip(w, -10, 10), "
    "or take smaller steps"
)


class DivergenceError(ArithmeticError, ValueError):
    """An iterate left the range of float64, or of what can be told apart in it.

    Arithmetic shows it, and other arguments mend it, so it is a ValueError as well.
    """


@dataclass(frozen=True, slots=True, eq=False)
class Approximation:
    """What a stochastic approximation found. Every array is float64; ``...`` is w's own shape."""

    last: Array
    """``(...)``, the iterate after the last update."""
    average: Array
    """``(...)``, the mean of the iterates after each update, the initial one left out."""
    iterates: Array | None
    """``(steps, ...)``, the iterate after each update; None unless recorded."""


def robbins_monro(
    observe: Observe,
    initial: ArrayLike,
    *,
    step_size: StepSize | float,
    steps: int,
    seed: int | np.random.Generator,
    project: Project | None = None,
    record: bool = False,
) -> Approximation:
    r"""Look for the root of E[g(w, noise)] (Robbins & Monro 1951; Zhao 2025, eq. 6.5).

        w_{k+1} = project(w_k - a_k g(w_k, noise_k)),   k = 1, ..., steps

    The average of the iterates (Polyak & Juditsky 1992) reaches the least asymptotic
    variance without knowledge of the slope at the root, if a_k falls slower than 1/k. We average
    the iterates after each update, the paper those before it.

    Where E[g] decreases through the root, observe -g instead. In stochastic gradient descent g is
    the gradient of a sample.

    Args:
        observe: ``(w, generator) -> g``, both float64 arrays of the shape of ``initial``.
        initial: w_1, of any shape, so that its entries may be problems or replicates.
        step_size: a_k as a function of k, counted from 1; a number keeps it constant.
        steps: Number of updates.
        seed: An integer, or a generator, which the call advances.
        project: ``w -> w``, brings each iterate back into a set that holds the root.
        record: Keep all iterates.

    Raises:
        ValueError: A step size that is not positive or not finite, an initial value that is not
            finite (both before the work), or an observation of another shape or type than w's.
        DivergenceError: An iterate is not finite; names the step.

    >>> mean = robbins_monro(
    ...     lambda w, generator: w - generator.normal(3.0, 1.0, w.shape),
    ...     np.zeros(1000), step_size=Power(), steps=400, seed=0,
    ... )
    >>> mean.last.mean().round(2), mean.last.std().round(2)  # 1 / sqrt(400)
    (np.float64(3.0), np.float64(0.05))
    """
    start, generator = _start(initial), np.random.default_rng(seed)
    sizes = evaluate_steps(step_size, steps, name="step_size")

    def direction(w: Array, _: int) -> Array:
        return _checked(observe(w, generator), w.shape, "observe")

    return _descend(direction, start, sizes, project=project, record=record)


def incremental_mean(
    samples: ArrayLike,
    *,
    step_size: StepSize | float = Power(),  # noqa: B008  # frozen
    initial: ArrayLike = 0.0,
) -> Array:
    r"""Return the running means of samples (Zhao 2025, eq. 6.2 and 6.4; Sutton & Barto 2018, 2.4).

        m_k = m_{k-1} + a_k (x_k - m_{k-1}),   m_0 = initial

    With the default a_k = 1 / k, m_k is the mean of the first k samples and ``initial`` is
    forgotten at once. A constant step size weights the past with a geometric series instead, the
    initial value among it (Sutton & Barto 2018, eq. 2.6).

    Args:
        samples: ``(steps, ...)``, steps >= 1.
        step_size: a_k as a function of k, counted from 1; a number keeps it constant.
        initial: m_0, ``(...)`` or what broadcasts to it.

    Returns:
        ``(steps, ...)`` float64, m_1 to m_steps; the last row is the mean of all.

    Raises:
        ValueError: There are no samples, one of them is not finite, or a step size is not positive.

    >>> incremental_mean([4.0, 2.0, 6.0])
    array([4., 3., 4.])
    >>> incremental_mean([4.0, 2.0, 6.0], step_size=0.5)
    array([2., 2., 4.])
    """
    samples = np.asarray(samples, dtype=np.float64)
    if samples.ndim == 0:
        raise ValueError("samples is a single number: give an array, one sample for each row")
    if not np.isfinite(samples).all():
        raise ValueError("samples hold NaN or infinity: leave them out, they have no mean")
    sizes = evaluate_steps(step_size, len(samples), name="step_size")
    means = np.empty_like(samples)
    mean = np.broadcast_to(np.asarray(initial, dtype=np.float64), samples.shape[1:])
    for row, (a, x) in enumerate(zip(sizes, samples, strict=True)):
        mean = mean + a * (x - mean)
        means[row] = mean
    return means


def kiefer_wolfowitz(
    observe: Observe,
    initial: ArrayLike,
    *,
    step_size: StepSize | float,
    width: StepSize | float = Power(exponent=1 / 6),  # noqa: B008  # frozen
    steps: int,
    seed: int | np.random.Generator,
    project: Project | None = None,
    record: bool = False,
) -> Approximation:
    r"""Look for the minimum of E[f(w, noise)] from values alone (Kiefer & Wolfowitz 1952).

        g_i     = (f(w_k + c_k e_i, noise) - f(w_k - c_k e_i, noise')) / (2 c_k),  each coordinate i
        w_{k+1} = project(w_k - a_k g),   k = 1, ..., steps

    Noise is drawn afresh for each value. The paper wants c_k -> 0, and finite sums of a_k c_k and
    of (a_k / c_k)^2, beside an infinite sum of a_k; step sizes 1/k with widths k^-1/6 or the
    paper's own k^-1/3 do. It maximises in one dimension, and its step sizes are half of ours, for
    it divides by c_k; points of many coordinates are due to
    Blum 1954 (with one-sided differences).

    Args:
        observe: ``(w, generator) -> f``. ``w`` has the shape of ``initial``. Values of the shape
            ``(...)`` for a ``w`` of the shape ``(..., D)`` make the last axis a point of D
            coordinates, at 2 D calls a step; values of the shape of ``w`` make each entry a problem
            of its own, at 2 calls. The first call, at ``initial``, only looks which.
        initial: w_1, of any shape; leading axes are replicates.
        step_size: a_k as a function of k, counted from 1; a number keeps it constant.
        width: c_k, likewise.
        steps: Number of updates.
        seed: An integer, or a generator, which the call advances.
        project: ``w -> w``, brings each iterate back into a set that holds the minimum.
        record: Keep all iterates.

    Raises:
        ValueError: A step size or width that is not positive or not finite, an initial value that
            is not finite (both before the work), or an observation of the wrong shape or type.
        DivergenceError: An iterate is not finite, or so large that it swallows the width; names the
            step.

    >>> found = kiefer_wolfowitz(
    ...     lambda w, generator: ((w - [1.0, 2.0]) ** 2).sum(-1),
    ...     np.zeros((5, 2)), step_size=Constant(0.5), steps=1, seed=0,
    ... )
    >>> found.last[0]
    array([1., 2.])
    """
    start, generator = _start(initial), np.random.default_rng(seed)
    sizes = evaluate_steps(step_size, steps, name="step_size")
    widths = evaluate_steps(width, steps, name="width")
    with np.errstate(all="ignore"):
        shape = np.shape(observe(start.copy(), generator))
    if shape not in (start.shape, start.shape[:-1]):
        raise ValueError(
            f"observe returned values of shape {shape} for w of shape {start.shape}: return one "
            f"for each entry, {start.shape}, or one for each point, {start.shape[:-1]}"
        )
    one_each = shape == start.shape
    units = [np.ones(())] if one_each else list(np.eye(start.shape[-1]))

    def direction(w: Array, k: int) -> Array:
        c, g = widths[k - 1], np.zeros(w.shape)
        if (w + c == w).any():  # the slope would be 0, and the run look settled
            raise DivergenceError(
                f"step {k} of {steps}: w has grown to {abs(w).max():.1e}, beside which its width "
                f"{c:.1e} is nothing: {_WAY_OUT}, or use larger widths"
            )
        for unit in units:
            above, below = (
                _checked(observe(np.asarray(w + side), generator), shape, "observe")
                for side in (c * unit, -c * unit)
            )
            slope = (above - below) / (2 * c)
            g += slope if one_each else slope[..., None] * unit
        return g

    return _descend(direction, start, sizes, project=project, record=record)


def _start(initial: ArrayLike) -> Array:
    start = np.array(initial, dtype=np.float64)
    if not np.isfinite(start).all():
        raise ValueError("initial holds NaN or infinity: start from finite numbers")
    return start


def _descend(
    direction: Callable[[Array, int], Array],
    w: Array,
    sizes: Sequence[float],
    *,
    project: Project | None,
    record: bool,
) -> Approximation:
    """Step from ``w`` against ``direction(w, k)``, k from 1, with the step sizes given."""
    iterates = np.empty((len(sizes), *w.shape)) if record else None
    total = np.zeros(w.shape)
    # Numbers that leave float64 are reported below, with the step; numpy would only warn.
    with np.errstate(all="ignore"):
        for k, a in enumerate(sizes, 1):
            w = np.asarray(w - a * direction(w, k))
            if project is not None:
                w = _checked(project(w), w.shape, "project")
            total += w
            if not np.isfinite(total).all():
                raise DivergenceError(
                    f"step {k} of {len(sizes)} left the range of float64 in "
                    f"{np.sum(~np.isfinite(total))} of {w.size} entries: {_WAY_OUT}"
                )
            if iterates is not None:
                iterates[k - 1] = w
    return Approximation(last=w, average=np.asarray(total / len(sizes)), iterates=iterates)


def _checked(returned: Array, shape: tuple[int, ...], name: str) -> Array:
    """Return an array of a user's function if it has the shape and type that it must have."""
    array = np.asarray(returned)
    if array.shape != shape or array.dtype != np.float64:
        raise ValueError(
            f"{name} returned shape {array.shape} of {array.dtype}, expected shape {shape} of "
            "float64: nothing is broadcast or converted, lest one noise serve many replicates"
        )
    return array
