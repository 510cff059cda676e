"""Linear prediction online: the values of a policy, from the episodes that it or another plays.

Values are x(s)^T w. What all share: with ``rho`` the ratio of probabilities, policy over behaviour,
of the action taken, delta = r + discount * x'^T w - x^T w, the discount 0 where the episode
terminated (one that is truncated is bootstrapped). Traces and emphasis begin anew in each episode.

Arguments of all:

- ``env``: a gymnasium id, an instance or a `TabularMDP`, with finitely many actions.
- ``policy``: whose values are learned: for numbered states actions ``(S,)`` or probabilities
  ``(S, A)``, or a function of an observation ``(D,)`` that returns an action or probabilities.
- ``features``: a function of observations ``(B, D)`` to ``(B, d)``, such as those of
  ``rl.features``, or for numbered states an array ``(S, d)``.
- ``behaviour``: who acts, given like ``policy``; None is the policy itself.
- ``discount``: gamma in [0, 1].
- ``episodes``: how many to play.
- ``step_size``, ``secondary_step_size``: above 0: a number, one for each feature ``(d,)``, or a
  function of the update, counted from 1, such as `Power`. They multiply the features as they are:
  with tile coding, whose ``tilings`` active features add up, use a / tilings.
- ``seed``: an int or a generator, which is advanced; the environment gets a seed drawn from it.
- ``initial_weights``: ``(d,)``; None is 0.
- ``max_episode_steps``: a time limit, for environments without their own.

They return the weights ``(d,)`` and raise a ValueError, before the work, where an argument is out
of its range, and a DivergenceError where the weights leave the range of float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rl.bellman import check_discount
from rl.features import Features
from rl.linear_arrays import Floats, check_counts, check_fractions, finite_array
from rl.linear_tasks import (
    LinearWorld,
    Policy,
    Rate,
    Step,
    check_error,
    play,
    policy_of,
    rate_of,
)
from rl.tabular_tasks import Seed
from rl.tabular_worlds import Env

__all__ = ["emphatic_td", "gtd2", "semi_gradient_td", "tdc"]


@np.errstate(over="ignore", invalid="ignore")  # reported as DivergenceError
def semi_gradient_td(
    env: Env,
    policy: Policy,
    features: Features | ArrayLike,
    *,
    discount: float,
    episodes: int,
    step_size: Rate,
    trace: float = 0.0,
    behaviour: Policy | None = None,
    seed: Seed = 0,
    initial_weights: ArrayLike | None = None,
    max_episode_steps: int | None = None,
) -> Floats:
    """Semi-gradient TD(lambda) (Sutton & Barto 2018, section 12.2; off-policy eq. 12.25).

        z <- rho * (discount * trace * z + x)
        w <- w + step_size * delta * z

    Off-policy it can diverge. Beside the arguments that all share:

    - ``trace``: lambda in [0, 1].
    """
    check_fractions("trace", trace)
    task = _open(
        env,
        policy,
        features,
        behaviour=behaviour,
        discount=discount,
        episodes=episodes,
        step_size=step_size,
        seed=seed,
        initial_weights=initial_weights,
        max_episode_steps=max_episode_steps,
    )
    w, z = task.weights, np.zeros(len(task.weights))
    for k, (x, reward, gamma, x_next, ratio, first) in enumerate(task.steps, 1):
        if first:
            z[:] = 0.0
        z = ratio * (discount * trace * z + x)
        error = reward + gamma * (x_next @ w) - x @ w
        check_error(error, k)
        w += task.rate(k) * error * z
    check_error(w.sum(), k)
    return w


@np.errstate(over="ignore", invalid="ignore")  # reported as DivergenceError
def gtd2(
    env: Env,
    policy: Policy,
    features: Features | ArrayLike,
    *,
    discount: float,
    episodes: int,
    step_size: Rate,
    secondary_step_size: Rate,
    behaviour: Policy | None = None,
    seed: Seed = 0,
    initial_weights: ArrayLike | None = None,
    max_episode_steps: int | None = None,
) -> Floats:
    """GTD2 (Sutton et al. 2009; Sutton & Barto 2018, section 11.7), stable off-policy.

        w <- w + step_size * rho * (x - discount * x') * (x^T h)
        h <- h + secondary_step_size * rho * (delta - x^T h) * x

    Both from their old values; h, which learns the expected error given x, begins at 0.
    """
    task = _open(
        env,
        policy,
        features,
        behaviour=behaviour,
        discount=discount,
        episodes=episodes,
        step_size=step_size,
        seed=seed,
        initial_weights=initial_weights,
        max_episode_steps=max_episode_steps,
    )
    w, h = task.weights, np.zeros(len(task.weights))
    second = rate_of("secondary_step_size", secondary_step_size, len(w))
    for k, (x, reward, gamma, x_next, ratio, _) in enumerate(task.steps, 1):
        error, expected = reward + gamma * (x_next @ w) - x @ w, x @ h
        check_error(error, k)
        w += task.rate(k) * ratio * expected * (x - gamma * x_next)
        h += second(k) * ratio * (error - expected) * x
    check_error(w.sum(), k)
    return w


@np.errstate(over="ignore", invalid="ignore")  # reported as DivergenceError
def tdc(
    env: Env,
    policy: Policy,
    features: Features | ArrayLike,
    *,
    discount: float,
    episodes: int,
    step_size: Rate,
    secondary_step_size: Rate,
    behaviour: Policy | None = None,
    seed: Seed = 0,
    initial_weights: ArrayLike | None = None,
    max_episode_steps: int | None = None,
) -> Floats:
    """TD with gradient correction (Sutton et al. 2009; Sutton & Barto 2018, section 11.7).

        w <- w + step_size * rho * (delta * x - discount * x' * (x^T h))
        h <- h + secondary_step_size * rho * (delta - x^T h) * x

    Both from their old values; h begins at 0. Stable off-policy, if h learns faster than w.
    """
    task = _open(
        env,
        policy,
        features,
        behaviour=behaviour,
        discount=discount,
        episodes=episodes,
        step_size=step_size,
        seed=seed,
        initial_weights=initial_weights,
        max_episode_steps=max_episode_steps,
    )
    w, h = task.weights, np.zeros(len(task.weights))
    second = rate_of("secondary_step_size", secondary_step_size, len(w))
    for k, (x, reward, gamma, x_next, ratio, _) in enumerate(task.steps, 1):
        error, expected = reward + gamma * (x_next @ w) - x @ w, x @ h
        check_error(error, k)
        w += task.rate(k) * ratio * (error * x - gamma * expected * x_next)
        h += second(k) * ratio * (error - expected) * x
    check_error(w.sum(), k)
    return w


@np.errstate(over="ignore", invalid="ignore")  # reported as DivergenceError
def emphatic_td(
    env: Env,
    policy: Policy,
    features: Features | ArrayLike,
    *,
    discount: float,
    episodes: int,
    step_size: Rate,
    trace: float = 0.0,
    behaviour: Policy | None = None,
    seed: Seed = 0,
    initial_weights: ArrayLike | None = None,
    max_episode_steps: int | None = None,
) -> Floats:
    """Emphatic TD(lambda) (Sutton, Mahmood & White 2016, arXiv:1503.04671; S&B section 12.11).

        F <- rho_{t-1} * discount * F + 1
        M = trace + (1 - trace) * F
        z <- rho * (discount * trace * z + M * x)
        w <- w + step_size * delta * z

    Every state is of interest 1. Stable in expectation; the variance of F can be without bound.
    Beside the arguments that all share:

    - ``trace``: lambda in [0, 1].
    """
    check_fractions("trace", trace)
    task = _open(
        env,
        policy,
        features,
        behaviour=behaviour,
        discount=discount,
        episodes=episodes,
        step_size=step_size,
        seed=seed,
        initial_weights=initial_weights,
        max_episode_steps=max_episode_steps,
    )
    w, z = task.weights, np.zeros(len(task.weights))
    follow_on, previous_ratio = 0.0, 0.0
    for k, (x, reward, gamma, x_next, ratio, first) in enumerate(task.steps, 1):
        if first:
            z[:] = 0.0
            follow_on = 0.0
        follow_on = previous_ratio * discount * follow_on + 1
        emphasis = trace + (1 - trace) * follow_on
        z = ratio * (discount * trace * z + emphasis * x)
        error = reward + gamma * (x_next @ w) - x @ w
        check_error(error, k)
        w += task.rate(k) * error * z
        previous_ratio = ratio
    check_error(w.sum(), k)
    return w


class _Task(NamedTuple):
    weights: Floats
    steps: Iterator[Step]
    rate: Callable[[int], float | Floats]


def _open(
    env: Env,
    policy: Policy,
    features: Features | ArrayLike,
    *,
    behaviour: Policy | None,
    discount: float,
    episodes: int,
    step_size: Rate,
    seed: Seed,
    initial_weights: ArrayLike | None,
    max_episode_steps: int | None,
) -> _Task:
    """Check the arguments that all share."""
    check_discount(discount)
    check_counts("episodes", episodes)
    world = LinearWorld(env, features, seed=seed, max_episode_steps=max_episode_steps)
    target = policy_of("policy", policy, world)
    acting = target if behaviour is None else policy_of("behaviour", behaviour, world)
    world.check_ends(acting)
    weights = np.zeros(world.size)
    if initial_weights is not None:
        weights = finite_array("initial_weights", initial_weights, world.size).copy()
    rate = rate_of("step_size", step_size, world.size)
    return _Task(weights, play(world, target, acting, float(discount), episodes), rate)
