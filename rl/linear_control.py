"""Linear control online: semi-gradient Sarsa."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rl.bellman import check_discount
from rl.features import Features
from rl.linear_arrays import Floats, check_counts, check_fractions, finite_array
from rl.linear_tasks import LinearWorld, ObservedFeatures, Rate, check_error, rate_of
from rl.step_sizes import StepSize
from rl.tabular_tasks import Seed
from rl.tabular_updates import epsilon_greedy
from rl.tabular_worlds import Env

__all__ = ["LinearControl", "semi_gradient_sarsa"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LinearControl:
    """Action values that are linear in features of the observation, and what was earned."""

    weights: Floats
    """``(A, d)``."""
    episode_returns: Floats
    """``(E,)``, the undiscounted sum of rewards of each episode, exploration included."""
    episode_lengths: NDArray[np.int64]
    """``(E,)``, in steps."""
    features: ObservedFeatures
    """Of the environment's observations."""
    first_action: int
    """What the environment calls its first action, mostly 0."""

    def action_values(self, observations: Any) -> Floats:  # noqa: ANN401 as environments give them
        """Return ``(B, A)`` of B observations of the environment."""
        return self.features(observations) @ self.weights.T

    def act(self, observations: Any, deterministic: bool = True) -> NDArray[np.int64]:  # noqa: ANN401
        """Return the greedy actions ``(B,)``, of equal ones the first.

        Nothing is random about them; ``deterministic`` is what ``rl.evaluation`` passes to any
        policy.
        """
        return self.first_action + self.action_values(observations).argmax(1)


@np.errstate(over="ignore", invalid="ignore")  # reported as DivergenceError
def semi_gradient_sarsa(
    env: Env,
    features: Features | ArrayLike,
    *,
    discount: float = 1.0,
    episodes: int,
    step_size: Rate,
    epsilon: float | StepSize = 0.1,
    trace: float = 0.0,
    seed: Seed = 0,
    initial_weights: ArrayLike | None = None,
    max_episode_steps: int | None = None,
) -> LinearControl:
    """Episodic semi-gradient Sarsa(lambda) (Sutton & Barto 2018, sections 10.1 and 12.7).

        q(s, a) = x(s)^T w_a
        z <- discount * trace * z, and z_a <- z_a + x
        w <- w + step_size * (r + discount * q(s', a') - q(s, a)) * z

    Actions are epsilon-greedy, any of the best where several are equal; a' is the one taken next,
    where the episode is truncated the one that would have been. So long as rewards are negative,
    weights of 0 promise too much, which explores by itself.

    Args:
        env: A gymnasium id, an instance or a `TabularMDP`, with finitely many actions.
        features: A function of observations ``(B, D)`` to ``(B, d)``, such as those of
            ``rl.features``, or for numbered states an array ``(S, d)``. Of binary ones (with
            ``active``) only the active are touched.
        discount: gamma in [0, 1].
        episodes: How many to play.
        step_size: Above 0: a number, one for each feature ``(d,)``, or a function of the update,
            from 1. Nothing divides it: with tile coding use a / tilings, such as 0.5 / 8.
        epsilon: A number in [0, 1], or a function of the step, counted from 1, whose values above 1
            count as 1.
        trace: lambda in [0, 1]; with 0 no trace is kept. Traces accumulate.
        seed: An int or a generator, which is advanced; the environment gets a seed drawn from it.
        initial_weights: ``(A, d)``; None is 0.
        max_episode_steps: A time limit, in place of an id's own.

    Raises:
        ValueError: An argument is out of its range, before the work; or the environment returns
            what is not finite.
        DivergenceError: The weights left the range of float64.
    """
    check_discount(discount)
    check_counts("episodes", episodes)
    check_fractions("trace", trace)
    if not callable(epsilon):
        check_fractions("epsilon", epsilon)
    world = LinearWorld(env, features, seed=seed, max_episode_steps=max_episode_steps)
    world.check_ends(None)
    w = np.zeros((world.actions, world.size))
    if initial_weights is not None:
        w = finite_array("initial_weights", initial_weights, *w.shape).copy()
    rate = rate_of("step_size", step_size, world.size)
    traces = np.zeros_like(w if trace > 0 else w[:0])
    scores = np.empty((episodes, 2))
    k = 0
    for episode in range(episodes):
        traces[:] = 0.0
        ended = False
        where, x = world.observed.located(world.reset())
        action = _choose(w[:, where] @ x, epsilon, k + 1, world.generator)
        while not ended:
            k += 1
            row, reward, terminated, truncated = world.step(action)
            ended = terminated or truncated
            error = reward - w[action, where] @ x
            next_where, next_x = world.observed.located(row)
            next_action = 0
            if not terminated:
                next_values = w[:, next_where] @ next_x
                next_action = _choose(next_values, epsilon, k + 1, world.generator)
                error += discount * next_values[next_action]
            check_error(error, k)
            if trace > 0:
                traces *= discount * trace
                np.add.at(traces[action], where, x)
                w += (rate(k) * error) * traces
            else:
                size = rate(k)
                size = size[where] if isinstance(size, np.ndarray) else size
                np.add.at(w[action], where, (size * error) * x)
            where, x, action = next_where, next_x, next_action
        scores[episode] = world.earned, world.length
    check_error(w.sum(), k)
    return LinearControl(
        weights=w,
        episode_returns=scores[:, 0].copy(),
        episode_lengths=scores[:, 1].astype(np.int64),
        features=world.observed,
        first_action=world.first_action,
    )


def _choose(
    values: Floats, epsilon: float | StepSize, step: int, generator: np.random.Generator
) -> int:
    chance = epsilon(step) if callable(epsilon) else epsilon
    if not chance >= 0:
        raise ValueError(f"epsilon({step})={chance}: a probability is 0 or more")
    return int(epsilon_greedy(values, chance, generator))
