"""The sums over n steps, taken in and completed by compiled loops.

Each is the Python that it reads as, too, under ``.py_func``, and tests hold both equal.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rl.classic_kernels import compiled

__all__ = ["complete", "push", "take_in"]


@compiled
def take_in(
    begun: NDArray[np.int64],
    held: NDArray[np.bool_],
    sums: NDArray[np.float64],
    discounts: NDArray[np.float64],
    rewards: NDArray[np.float64],
    discount: float,
    valid: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Begin a sum in each environment that made a step, and add its reward to all that are held.

    Args:
        begun: ``(B,)`` sums begun so far, changed; that modulo n is the slot of the next.
        held: ``(n, B)`` whether a slot holds a sum, changed.
        sums: ``(n, B)`` changed.
        discounts: ``(n, B)`` of what follows, changed.
        rewards: ``(B,)``.
        discount: gamma.
        valid: ``(B,)`` False where there was no step.

    Returns:
        The environments that made a step, and where in ``held.ravel()`` their sums begin.
    """
    steps, count = held.shape
    taken, places = np.empty(count, np.int64), np.empty(count, np.int64)
    found = 0
    for b in range(count):
        if not valid[b]:
            continue
        slot = begun[b] % steps
        held[slot, b], sums[slot, b], discounts[slot, b] = True, 0.0, 1.0
        for k in range(steps):
            sums[k, b] += discounts[k, b] * rewards[b]
            discounts[k, b] *= discount
        begun[b] += 1
        taken[found], places[found] = b, slot * count + b
        found += 1
    return taken[:found], places[:found]


@compiled
def complete(
    begun: NDArray[np.int64],
    held: NDArray[np.bool_],
    discounts: NDArray[np.float64],
    terminated: NDArray[np.bool_],
    truncated: NDArray[np.bool_],
    valid: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Let go of the sums over n steps, and of all that are held where an episode has ended.

    Args:
        begun: ``(B,)``, after ``take_in``.
        held: ``(n, B)``, changed.
        discounts: ``(n, B)``, 0 afterwards where the sum ends in a terminal state.
        terminated: ``(B,)``.
        truncated: ``(B,)``.
        valid: ``(B,)`` False where there was no step.

    Returns:
        The environments of what was let go, oldest steps first, and where in ``held.ravel()``.
    """
    steps, count = held.shape
    environments, places = np.empty(steps * count, np.int64), np.empty(steps * count, np.int64)
    found = 0
    for age in range(steps):
        for b in range(count):
            # The slot that is next in turn holds the oldest step, if n are held at all.
            slot = (begun[b] + age) % steps
            due = age == 0 or terminated[b] or truncated[b]
            if valid[b] and held[slot, b] and due:
                held[slot, b] = False
                if terminated[b]:
                    discounts[slot, b] = 0.0
                environments[found], places[found] = b, slot * count + b
                found += 1
    return environments[:found], places[:found]


@compiled
def push(
    begun: NDArray[np.int64],
    held: NDArray[np.bool_],
    sums: NDArray[np.float64],
    discounts: NDArray[np.float64],
    rewards: NDArray[np.float64],
    discount: float,
    terminated: NDArray[np.bool_],
    truncated: NDArray[np.bool_],
    valid: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """``take_in``, then ``complete``."""
    taken, begins = take_in(begun, held, sums, discounts, rewards, discount, valid)
    environments, places = complete(begun, held, discounts, terminated, truncated, valid)
    return taken, begins, environments, places
