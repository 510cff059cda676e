"""Bandits, and playing them in many independent runs at once.

A bandit has ``means`` and ``draw``, an algorithm the methods of `rl.bandit_algorithms.Algorithm`;
anything with these can be played. Arrays are float64, actions int64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rl.bandit_algorithms import Algorithm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Bandit",
    "BanditResult",
    "BernoulliBandit",
    "Curve",
    "GaussianBandit",
    "play",
    "plot_regret",
]

Array: TypeAlias = NDArray[np.float64]
Actions: TypeAlias = NDArray[np.int64]
State = TypeVar("State")


class Bandit(Protocol):
    """What can be played: A actions, each with a mean reward that the player does not know."""

    @property
    def means(self) -> Array:
        """``(A,)``, or ``(runs, A)`` for a problem of its own in each run; regret is against it."""
        ...

    def draw(self, actions: Actions, generator: np.random.Generator) -> Array:
        """Return the rewards ``(runs,)`` of one action in each run."""
        ...


class BernoulliBandit:
    """Rewards of 1 with an action's own probability, else 0.

    Args:
        probabilities: ``(A,)``, or ``(runs, A)`` for a problem of its own in each run.

    Raises:
        ValueError: A probability is outside 0 to 1, or the shape is none of the two.
    """

    def __init__(self, probabilities: ArrayLike) -> None:
        self.means = _table("probabilities", probabilities)
        if (outside := self.means[(self.means < 0) | (self.means > 1)]).size:
            raise ValueError(f"probabilities hold {outside[0]}: each lies between 0 and 1")

    def draw(self, actions: Actions, generator: np.random.Generator) -> Array:
        """Return rewards 0.0 or 1.0, ``(runs,)``."""
        return (generator.random(len(actions)) < _of(self.means, actions)).astype(np.float64)


class GaussianBandit:
    """Normally distributed rewards (the testbed of Sutton & Barto 2018, section 2.3).

    Args:
        means: ``(A,)``, or ``(runs, A)`` for a problem of its own in each run.
        deviations: Standard deviations: one for all, ``(A,)``, or the shape of ``means``; 0 takes
            the noise away.

    Raises:
        ValueError: A number is not finite, a deviation is negative, or a shape does not fit.
    """

    def __init__(self, means: ArrayLike, deviations: ArrayLike = 1.0) -> None:
        self.means = _table("means", means)
        spread, shape = np.asarray(deviations, dtype=np.float64), self.means.shape
        if spread.shape not in (shape[i:] for i in range(len(shape) + 1)):
            raise ValueError(
                f"deviations have shape {spread.shape}, expected that of the means, {shape}, "
                "or a single number"
            )
        self.deviations = _table("deviations", np.broadcast_to(spread, shape))
        if self.deviations.min() < 0:
            raise ValueError(f"deviations hold {self.deviations.min()}: each is 0 or more")

    def draw(self, actions: Actions, generator: np.random.Generator) -> Array:
        """Return rewards ``(runs,)``."""
        noise = generator.standard_normal(len(actions))
        return _of(self.means, actions) + _of(self.deviations, actions) * noise


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Curve:
    """A mean over runs with its confidence band, ``(steps,)`` each."""

    mean: Array
    low: Array
    high: Array


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BanditResult:
    """What every run did, ``(runs, steps)`` each."""

    actions: Actions
    rewards: Array
    optimal: NDArray[np.bool_]
    """Whether the action is one of the best."""
    regret: Array
    """Cumulative pseudo-regret: the best mean less the chosen action's, summed up to this step."""

    def curve(self, *, confidence: float = 0.95) -> Curve:
        """Return the mean regret over runs, with Student's interval for it at every step.

        The band of a single run is NaN: nothing is known of its spread.

        Raises:
            ValueError: The confidence is not between 0 and 1.
        """
        from scipy.special import stdtrit

        if not 0 < confidence < 1:
            raise ValueError(f"confidence={confidence}: use a share between 0 and 1, such as 0.95")
        mean, runs = self.regret.mean(0), len(self.regret)
        if runs == 1:
            return Curve(mean=mean, low=np.full_like(mean, np.nan), high=np.full_like(mean, np.nan))
        error = self.regret.std(0, ddof=1) / math.sqrt(runs)
        half = float(stdtrit(runs - 1, (1 + confidence) / 2)) * error
        return Curve(mean=mean, low=mean - half, high=mean + half)


def play(
    bandit: Bandit,
    algorithm: Algorithm[State],
    *,
    steps: int,
    runs: int = 1,
    seed: int | np.random.Generator,
) -> BanditResult:
    """Play ``algorithm`` on ``bandit`` in independent runs, all of them a step at a time.

    Raises:
        ValueError: There are no steps or runs, or the bandit has problems for another number of
            runs.

    >>> from rl.bandit_algorithms import UCB1
    >>> result = play(GaussianBandit([1.0, 0.0], 0.0), UCB1(), steps=4, runs=1, seed=0)
    >>> result.actions, result.regret
    (array([[0, 1, 0, 0]]), array([[0., 1., 1., 1.]]))
    """
    if not steps >= 1 or not runs >= 1:
        raise ValueError(f"steps={steps}, runs={runs}: use at least 1 of each")
    means = bandit.means
    if means.ndim == 2 and len(means) != runs:
        raise ValueError(f"the bandit has problems for {len(means)} runs, but runs={runs}")
    generator = np.random.default_rng(seed)
    state = algorithm.start(runs, means.shape[-1])
    actions, rewards = np.empty((steps, runs), np.int64), np.empty((steps, runs))
    for step in range(1, steps + 1):
        chosen = algorithm.choose(state, step, generator)
        earned = bandit.draw(chosen, generator)
        algorithm.learn(state, step, chosen, earned)
        actions[step - 1], rewards[step - 1] = chosen, earned
    gaps = means.max(-1, keepdims=True) - means
    lost = np.take_along_axis(np.broadcast_to(gaps, (runs, means.shape[-1])), actions.T, axis=1)
    return BanditResult(
        actions=actions.T, rewards=rewards.T, optimal=lost == 0, regret=lost.cumsum(1)
    )


def plot_regret(results: Mapping[str, BanditResult], *, confidence: float = 0.95) -> Figure:
    """Draw the mean regret of each result over the steps, with its confidence band.

    Raises:
        ValueError: There are no results.
    """
    from matplotlib.figure import Figure

    from launch.palette import SERIES

    if not results:
        raise ValueError("no results to draw: give at least one, {name: result}")
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for index, (name, result) in enumerate(results.items()):
        curve, colour = result.curve(confidence=confidence), SERIES[index % len(SERIES)]
        steps = np.arange(1, len(curve.mean) + 1)
        axes.plot(steps, curve.mean, color=colour, label=name)
        axes.fill_between(steps, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0)
    axes.set(xlabel="step", ylabel="regret")
    axes.legend(frameon=False)
    return figure


def _table(name: str, numbers: ArrayLike) -> Array:
    table = np.array(numbers, dtype=np.float64)
    if table.ndim not in (1, 2) or table.size == 0:
        raise ValueError(f"{name} have shape {table.shape}, expected (A,) or (runs, A)")
    if not np.isfinite(table).all():
        raise ValueError(f"{name} hold {table[~np.isfinite(table)][0]}: each is a finite number")
    table.setflags(write=False)
    return table


def _of(table: Array, actions: Actions) -> Array:
    """Return the entries of the actions, from a table for all runs or from each run's own row."""
    return table[actions] if table.ndim == 1 else table[np.arange(len(actions)), actions]
