"""The update rules of tabular learning, each written once.

They are plain functions of numbers and arrays, which the readable loop calls as they are and the
compiled loop compiles (``rl.tabular_fast``); equal draws give equal results, bit for bit. As
everywhere in monro, ``discount`` is gamma, or 0 where the transition terminated; so a truncated
episode still bootstraps. A table of action values is updated through its flat view, at
``state * actions + action``.

Their torch relatives for batches are in ``rl.estimators.td``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, TypeVar

import numpy as np
from numba.extending import register_jitable
from numpy.typing import NDArray

__all__ = [
    "ACCUMULATING",
    "REPLACING",
    "TRUE_ONLINE",
    "Floats",
    "Ints",
    "along_traces",
    "double_q_target",
    "draw",
    "epsilon_greedy",
    "epsilon_greedy_probabilities",
    "expected_sarsa_target",
    "greedy",
    "mark_trace",
    "q_learning_target",
    "q_sigma_target",
    "shared",
    "td_target",
    "toward",
]

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
F = TypeVar("F", bound=Callable[..., object])

ACCUMULATING, REPLACING, TRUE_ONLINE = 0, 1, 2
"""Kinds of eligibility trace."""


def shared(function: F) -> F:
    """Mark a function that both loops use: called as it is, or compiled into the caller."""
    return register_jitable(forceinline=True)(function)


# --- targets ----------------------------------------------------------------------------------


@shared
def td_target(reward: float, discount: float, next_value: float) -> float:
    """TD(0) and Sarsa: ``r + discount * v(s')`` (Sutton & Barto 2018, eq. 6.2 and 6.7).

    >>> td_target(1.0, 0.5, 4.0)
    3.0
    """
    return reward + discount * next_value


@shared
def expected_sarsa_target(
    reward: float, discount: float, next_q: Floats, next_probabilities: Floats
) -> float:
    """Expected Sarsa: ``r + discount * sum_a pi(a|s') q(s', a)`` (Sutton & Barto 2018, eq. 6.9).

    >>> float(expected_sarsa_target(1.0, 0.5, np.array([4.0, 8.0]), np.array([0.75, 0.25])))
    3.5
    """
    return reward + discount * _mean(next_q, next_probabilities)


@shared
def q_learning_target(reward: float, discount: float, next_q: Floats) -> float:
    """Q-learning: ``r + discount * max_a q(s', a)`` (Sutton & Barto 2018, eq. 6.8).

    >>> float(q_learning_target(1.0, 0.5, np.array([4.0, 8.0])))
    5.0
    """
    best = next_q[0]
    for action in range(1, len(next_q)):
        best = max(best, next_q[action])
    return reward + discount * best


@shared
def double_q_target(reward: float, discount: float, next_q: Floats, next_target_q: Floats) -> float:
    """Double Q-learning: one table chooses, the other one values (van Hasselt 2010, alg. 1).

    ``r + discount * q_target(s', argmax_a q(s', a))``; of equal maxima the first.

    >>> float(double_q_target(1.0, 0.5, np.array([4.0, 8.0]), np.array([10.0, 2.0])))
    2.0
    """
    best = 0
    for action in range(1, len(next_q)):
        if next_q[action] > next_q[best]:
            best = action
    return reward + discount * next_target_q[best]


@shared
def q_sigma_target(
    reward: float,
    discount: float,
    next_return: float,
    next_q: Floats,
    next_action: int,
    next_probabilities: Floats,
    sigma: float,
) -> float:
    r"""One step back of the Q(sigma) return (De Asis et al. 2018, arXiv:1703.01327).

        G_t = r + discount * (sigma * G_{t+1}
                              + (1 - sigma) * (\bar v + pi(a'|s') * (G_{t+1} - q(s', a'))))

    with ``\bar v = sum_a pi(a|s') q(s', a)``. ``sigma=1`` samples, as Sarsa does; ``sigma=0`` takes
    expectations, as tree backup does. The recursion begins with ``G = q(s', a')``.

    >>> float(q_sigma_target(1.0, 0.5, 6.0, np.array([4.0, 8.0]), 0, np.array([0.75, 0.25]), 0.0))
    4.25
    """
    branches = _mean(next_q, next_probabilities) + next_probabilities[next_action] * (
        next_return - next_q[next_action]
    )
    return reward + discount * (sigma * next_return + (1.0 - sigma) * branches)


@shared
def _mean(values: Floats, probabilities: Floats) -> float:
    total = 0.0
    for k in range(len(values)):  # in order: a library's sum rounds differently in the two loops
        total += probabilities[k] * values[k]
    return total


# --- steps ------------------------------------------------------------------------------------


@shared
def toward(table: Floats, index: int, target: float, step_size: float) -> None:
    """Move one entry of a flat table: ``x <- x + step_size * (target - x)``."""
    table[index] += step_size * (target - table[index])


@shared
def mark_trace(traces: Floats, index: int, step_size: float, kind: int) -> None:
    """Raise the trace of the entry just visited; all traces have decayed before.

    Accumulating: ``z + 1``. Replacing: ``1``. True online, a dutch trace:
    ``z + 1 - step_size * z`` (Sutton & Barto 2018, eq. 12.5 and 12.11).
    """
    if kind == REPLACING:
        traces[index] = 1.0
    elif kind == TRUE_ONLINE:
        traces[index] += 1.0 - step_size * traces[index]
    else:
        traces[index] += 1.0


@shared
def along_traces(
    table: Floats,
    traces: Floats,
    index: int,
    error: float,
    drift: float,
    step_size: float,
) -> None:
    """Move a flat table along its traces, ``x <- x + step_size * error * z``.

    True online TD(lambda) adds a ``drift``, by how much the entry just visited has changed since
    it was last the bootstrap (Sutton & Barto 2018, section 12.5):
    ``x <- x + step_size * (error + drift) * z - step_size * drift * e_index``. It is 0 otherwise.
    """
    table += (step_size * (error + drift)) * traces
    table[index] -= step_size * drift


# --- choices ----------------------------------------------------------------------------------


@shared
def greedy(row: Floats, generator: np.random.Generator) -> int:
    """Return an action of greatest value; of equal ones, which a new table is full of, any.

    Draws one uniform number where there are equal ones, none otherwise.
    """
    best, chosen, ties = row[0], 0, 1
    for action in range(1, len(row)):
        if row[action] > best:
            best = row[action]
            chosen = action
            ties = 1
        elif row[action] == best:
            ties += 1
    if ties > 1:
        skip = int(generator.random() * ties)
        while skip > 0:
            chosen += 1
            if row[chosen] == best:
                skip -= 1
    return chosen


@shared
def epsilon_greedy(row: Floats, epsilon: float, generator: np.random.Generator) -> int:
    """With probability ``epsilon`` any action, else a greedy one."""
    if generator.random() < epsilon:
        return int(generator.random() * len(row))
    return greedy(row, generator)


@shared
def epsilon_greedy_probabilities(row: Floats, epsilon: float, out: Floats) -> None:
    """Write into ``out`` with what probability ``epsilon_greedy`` takes each action."""
    best = row[0]
    for action in range(1, len(row)):
        best = max(best, row[action])
    ties = 0
    for action in range(len(row)):
        ties += row[action] == best
    for action in range(len(row)):
        out[action] = epsilon / len(row) + (row[action] == best) * (1.0 - epsilon) / ties


@shared
def draw(probabilities: Floats, generator: np.random.Generator) -> int:
    """Draw an action with these probabilities, by one uniform number."""
    uniform, cumulative, last = generator.random(), 0.0, 0
    for action in range(len(probabilities)):
        if probabilities[action] > 0.0:
            cumulative += probabilities[action]
            last = action
            if cumulative > uniform:
                break
    return last
