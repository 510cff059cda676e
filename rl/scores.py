"""How sure a few seeds can make us of a result: interquartile means, intervals and curves.

Means over a few seeds mislead, so this follows Agarwal et al. 2021, "Deep reinforcement learning
at the edge of the statistical precipice", arXiv:2108.13264.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from launch.palette import INK, MUTED, RULE, SERIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Curve", "bootstrap_interval", "iqm", "plot_curves"]

Curve: TypeAlias = tuple[ArrayLike, ArrayLike]
"""``(points,)`` env steps and ``(seeds, points)`` returns."""


def iqm(scores: ArrayLike) -> float:
    """Return the mean of the middle half, the interquartile mean (Agarwal et al. 2021, 4.3).

    A quarter of the scores, rounded down, is left out at each end. It is less swayed by a single
    seed than the mean, and wastes less than the median.

    Args:
        scores: ``(seeds,)``, or ``(seeds, tasks)``, of which all are taken together.

    >>> iqm([1.0, 2.0, 3.0, 100.0])
    2.5
    """
    return float(_middle_mean(_checked(scores).reshape(-1), 0))


def bootstrap_interval(
    scores: ArrayLike,
    statistic: Callable[[NDArray[np.float64]], float] = iqm,
    *,
    confidence: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return a percentile bootstrap interval (Efron 1979; Agarwal et al. 2021, section 4.1).

    Seeds are drawn anew with replacement, for each task by itself (stratified), and the statistic
    is taken of each such set.

    Args:
        scores: ``(seeds,)`` or ``(seeds, tasks)``.
        statistic: Of an array of the same shape.
        confidence: Share of the resampled statistics within the interval.
        resamples: Agarwal et al. take 50,000; 2,000 settle the ends to a few hundredths of the
            interval's width.
        seed: Of the resampling.

    >>> bootstrap_interval([7.0, 7.0, 7.0])
    (7.0, 7.0)
    """
    array = _checked(scores)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: it lies between 0 and 1, such as 0.95")
    if resamples < 1:
        raise ValueError(f"resamples={resamples}: at least one is needed")
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(array), size=(resamples, *array.shape))
    values = [statistic(np.take_along_axis(array, rows, 0)) for rows in drawn]
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def plot_curves(curves: Mapping[str, Curve], *, optimum: float | None = None) -> Figure:
    """Draw returns over env steps: the interquartile mean of the seeds in its 95% interval.

    Args:
        curves: Name to ``(points,)`` env steps and ``(seeds, points)`` returns; one seed, which
            may be ``(points,)``, has no band.
        optimum: The best possible return, drawn as a dashed line.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 2.8), facecolor="none", layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("none")
    for index, (name, (steps, returns)) in enumerate(curves.items()):
        x, y = np.asarray(steps, float), np.atleast_2d(_checked(returns))
        if x.shape != y.shape[1:]:
            raise ValueError(
                f"the curve {name!r} has env_steps of shape {x.shape} and returns of shape "
                f"{y.shape}: they are (points,) and (seeds, points)"
            )
        colour = SERIES[index % len(SERIES)]
        axes.plot(x, _middle_mean(y, 0), color=colour, label=name, linewidth=1.6)
        if len(y) > 1:
            axes.fill_between(x, *_band(y), color=colour, alpha=0.16, linewidth=0)
    if optimum is not None:
        axes.axhline(optimum, color=MUTED, linestyle=(0, (4, 2)), linewidth=1, label="optimum")
    axes.set_xlabel("env steps", color=MUTED, fontsize=8.5)
    axes.set_ylabel("return", color=MUTED, fontsize=8.5)
    axes.tick_params(length=0, labelsize=8.5, colors=MUTED)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.spines[:].set_visible(False)
    if len(curves) + (optimum is not None) > 1:
        axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    return figure


def _band(returns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the ends of the 95% interval at each point, ``(2, points)``; whole seeds are drawn."""
    drawn = np.random.default_rng(0).integers(len(returns), size=(1_000, len(returns)))
    return np.quantile(_middle_mean(returns[drawn], 1), [0.025, 0.975], axis=0)


def _middle_mean(scores: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    count = scores.shape[axis]
    cut = count // 4
    middle = np.take(np.sort(scores, axis), range(cut, count - cut), axis)
    return middle.mean(axis)


def _checked(scores: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(scores, np.float64)
    if array.ndim not in (1, 2) or array.size == 0:
        raise ValueError(
            f"got scores of shape {array.shape}: they are (seeds,) or (seeds, tasks), "
            "at least one of each"
        )
    if not np.isfinite(array).all():
        raise ValueError("got a score that is no finite number: leave out no seed, mend it")
    return array
