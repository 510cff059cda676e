"""Bandit algorithms: how to choose among actions whose mean rewards must be found out.

Each is a frozen object of settings with the three methods of `Algorithm`, which work on the state
of all runs at once. Arrays are float64, actions int64; ties are broken uniformly at random, for
each run by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from rl.step_sizes import Constant, Power, StepSize, check_size

__all__ = [
    "UCB1",
    "ActionValues",
    "Algorithm",
    "BetaPosteriors",
    "EpsilonGreedy",
    "GradientBandit",
    "Preferences",
    "Thompson",
]

Array: TypeAlias = NDArray[np.float64]
Actions: TypeAlias = NDArray[np.int64]
State = TypeVar("State")


class Algorithm(Protocol[State]):
    """How to play. ``step`` counts from 1."""

    def start(self, runs: int, actions: int) -> State:
        """Return the state of all runs before the first step."""
        ...

    def choose(self, state: State, step: int, generator: np.random.Generator) -> Actions:
        """Return an action for each run, ``(runs,)``."""
        ...

    def learn(self, state: State, step: int, actions: Actions, rewards: Array) -> None:
        """Update ``state`` in place with what the actions earned, ``(runs,)`` each."""
        ...


@dataclass(slots=True, eq=False)
class ActionValues:
    """Estimated mean rewards, and how often each action was chosen."""

    values: Array
    """``(runs, A)``."""
    counts: Actions
    """``(runs, A)``."""

    def learn(self, actions: Actions, rewards: Array, step_size: Power | Constant) -> None:
        """Move the values of ``actions`` towards ``rewards`` (Sutton & Barto 2018, eq. 2.3)."""
        where = (np.arange(len(actions)), actions)
        self.counts[where] += 1
        self.values[where] += step_size(self.counts[where]) * (rewards - self.values[where])


@dataclass(frozen=True, slots=True)
class EpsilonGreedy:
    """The action of greatest value, or with probability epsilon any action (Sutton & Barto 2.4).

    A fixed epsilon makes regret grow linearly; ``Power(scale=c * A / d**2)`` is the epsilon_n of
    Auer et al. 2002 (figure 3), whose regret grows with the logarithm.

    Raises:
        ValueError: Epsilon is outside 0 to 1, or a step size is not positive.
    """

    epsilon: float | StepSize = 0.1
    """A number, or a function of the step, counted from 1, whose values above 1 count as 1."""
    initial_value: float = 0.0
    """An optimistic one makes even greedy play try every action (section 2.6)."""
    step_size: Power | Constant | float | None = None
    """Of an action's own count; None takes 1 / count, so that the value is the mean reward."""

    def __post_init__(self) -> None:
        if not callable(self.epsilon) and not 0 <= self.epsilon <= 1:
            raise ValueError(f"epsilon={self.epsilon}: a probability lies between 0 and 1")
        if not math.isfinite(self.initial_value):
            raise ValueError(f"initial_value={self.initial_value}: use a finite number")
        if not isinstance(self.step_size, Power | Constant | None):
            check_size("step_size", self.step_size)

    def start(self, runs: int, actions: int) -> ActionValues:
        """Return values of ``initial_value``."""
        return _action_values(runs, actions, self.initial_value)

    def choose(self, state: ActionValues, step: int, generator: np.random.Generator) -> Actions:
        """Return greedy actions, with probability epsilon uniform ones."""
        runs, actions = state.values.shape
        epsilon = self.epsilon(step) if callable(self.epsilon) else self.epsilon
        if not epsilon >= 0:
            raise ValueError(f"epsilon({step})={epsilon}: a probability is 0 or more")
        explores = generator.random(runs) < epsilon
        anything = generator.integers(actions, size=runs)
        return np.where(explores, anything, _greatest(state.values, generator))

    def learn(self, state: ActionValues, step: int, actions: Actions, rewards: Array) -> None:
        """Move the chosen actions' values towards their rewards."""
        size = Power() if self.step_size is None else self.step_size
        state.learn(actions, rewards, size if callable(size) else Constant(size))


@dataclass(frozen=True, slots=True)
class UCB1:
    r"""The action of greatest upper confidence bound (Auer et al. 2002, figure 1).

        mean_a + exploration * sqrt(ln n / n_a),   n = sum of n_a, the steps played so far

    The first A steps try each action once, in order. The regret bound of the paper's theorem 1 is
    for rewards from 0 to 1 and the default exploration. Sutton & Barto 2018 (eq. 2.10) take the
    logarithm of the present step, n + 1, instead.

    Raises:
        ValueError: Exploration is negative or not finite.
    """

    exploration: float = math.sqrt(2)
    """In units of reward."""

    def __post_init__(self) -> None:
        if not 0 <= self.exploration < math.inf:
            raise ValueError(f"exploration={self.exploration}: use a finite number of 0 or more")

    def start(self, runs: int, actions: int) -> ActionValues:
        """Return values of actions that nobody has tried."""
        return _action_values(runs, actions, 0.0)

    def choose(self, state: ActionValues, step: int, generator: np.random.Generator) -> Actions:
        """Return the next untried action, then those of greatest bound."""
        runs, actions = state.values.shape
        if step <= actions:
            return np.full(runs, step - 1)
        width = self.exploration * np.sqrt(math.log(step - 1) / state.counts)
        return _greatest(state.values + width, generator)

    def learn(self, state: ActionValues, step: int, actions: Actions, rewards: Array) -> None:
        """Keep the mean reward of each action."""
        state.learn(actions, rewards, Power())


@dataclass(slots=True, eq=False)
class Preferences:
    """What a gradient bandit has learnt."""

    preferences: Array
    """``(runs, A)``, H: an action's probability is the softmax of them."""
    baselines: Array
    """``(runs,)``, the mean of the rewards so far; 0 where no baseline is kept."""

    def probabilities(self) -> Array:
        """Return the softmax of the preferences, ``(runs, A)`` (eq. 2.11)."""
        weights = np.exp(self.preferences - self.preferences.max(1, keepdims=True))
        return weights / weights.sum(1, keepdims=True)


@dataclass(frozen=True, slots=True)
class GradientBandit:
    r"""Stochastic gradient ascent on preferences (Sutton & Barto 2018, section 2.8, eq. 2.12).

        H_a += step_size * (reward - baseline) * ((a is chosen) - pi_a),   pi = softmax(H)

    The baseline is the mean of the rewards before this one, and at the first step the reward
    itself, so that nothing is learnt from it; the book's figure 2.5 counts this reward, too.

    Raises:
        ValueError: The step size is not positive.
    """

    step_size: float = 0.1
    baseline: bool = True
    """False compares rewards with 0."""

    def __post_init__(self) -> None:
        check_size("step_size", self.step_size)

    def start(self, runs: int, actions: int) -> Preferences:
        """Return equal preferences."""
        return Preferences(preferences=np.zeros((runs, actions)), baselines=np.zeros(runs))

    def choose(self, state: Preferences, step: int, generator: np.random.Generator) -> Actions:
        """Return actions drawn with their probabilities."""
        reached = state.probabilities().cumsum(1)
        threshold = generator.random((len(reached), 1)) * reached[:, -1:]
        return (reached <= threshold).sum(1)

    def learn(self, state: Preferences, step: int, actions: Actions, rewards: Array) -> None:
        """Climb the gradient of the expected reward."""
        baselines = rewards if self.baseline and step == 1 else state.baselines
        gradient = -state.probabilities()
        gradient[np.arange(len(actions)), actions] += 1
        state.preferences += self.step_size * (rewards - baselines)[:, None] * gradient
        if self.baseline:
            state.baselines += (rewards - state.baselines) / step


@dataclass(slots=True, eq=False)
class BetaPosteriors:
    """Beta distributions of the actions' probabilities, prior included."""

    successes: Array
    """``(runs, A)``, the first parameter."""
    failures: Array
    """``(runs, A)``, the second parameter."""


@dataclass(frozen=True, slots=True)
class Thompson:
    """The action whose sampled probability is greatest (Thompson 1933).

    For rewards of 0 and 1 (Agrawal & Goyal 2012, algorithm 1). Each action is chosen as often as it
    is likely to be the best.

    Raises:
        ValueError: The prior is not two positive numbers, or a reward is neither 0 nor 1.
    """

    prior: tuple[float, float] = (1.0, 1.0)
    """Parameters of the Beta prior: successes and failures; (1, 1) is uniform."""

    def __post_init__(self) -> None:
        if len(self.prior) != 2 or not all(0 < count < math.inf for count in self.prior):
            raise ValueError(f"prior={self.prior}: a Beta prior has two positive parameters")

    def start(self, runs: int, actions: int) -> BetaPosteriors:
        """Return the prior."""
        successes, failures = (np.full((runs, actions), float(count)) for count in self.prior)
        return BetaPosteriors(successes=successes, failures=failures)

    def choose(self, state: BetaPosteriors, step: int, generator: np.random.Generator) -> Actions:
        """Return the actions of greatest sample."""
        return _greatest(generator.beta(state.successes, state.failures), generator)

    def learn(self, state: BetaPosteriors, step: int, actions: Actions, rewards: Array) -> None:
        """Count successes and failures."""
        if not np.isin(rewards, (0.0, 1.0)).all():
            raise ValueError(
                f"Thompson counts successes and failures, but step {step} earned "
                f"{rewards[~np.isin(rewards, (0.0, 1.0))][0]}: play a BernoulliBandit"
            )
        where = (np.arange(len(actions)), actions)
        state.successes[where] += rewards
        state.failures[where] += 1 - rewards


def _action_values(runs: int, actions: int, value: float) -> ActionValues:
    shape = (runs, actions)
    return ActionValues(values=np.full(shape, float(value)), counts=np.zeros(shape, np.int64))


def _greatest(values: Array, generator: np.random.Generator) -> Actions:
    """Return the index of each row's greatest value, any of them where several are equal."""
    reached = (values == values.max(1, keepdims=True)).cumsum(1)
    pick = (generator.random(len(values)) * reached[:, -1]).astype(np.int64)
    return (reached <= pick[:, None]).sum(1)
