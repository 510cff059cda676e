"""Sweeps of the optimality equation over all states: readable, and compiled."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["compiled_optimality_sweeps", "optimality_sweeps"]


def optimality_sweeps(
    offsets: NDArray[np.int32],
    successors: NDArray[np.int32],
    probabilities: NDArray[np.float64],
    rewards: NDArray[np.float64],
    values: NDArray[np.float64],
    discount: float,
    tolerance: float,
    most: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""Sweep until the values change by less than ``tolerance`` (Zhao 2025, algorithm 4.1).

        v_{k+1}(s) = max_a r(s, a) + discount * \sum_{s'} P(s' | s, a) v_k(s')

    Args:
        offsets: Of the transitions ``(S * A, S)``, the ``indptr`` of their CSR matrix.
        successors: Its ``indices``.
        probabilities: Its ``data``.
        rewards: ``(S, A)``.
        values: ``(S,)``, where to begin.
        discount: Of one step.
        tolerance: Stop when no value changes by as much.
        most: Stop after this many sweeps.

    Returns:
        The values ``(S,)``, and the largest change of each sweep ``(sweeps,)``.
    """
    from scipy import sparse

    transitions = sparse.csr_matrix(
        (probabilities, successors, offsets), shape=(rewards.size, len(values))
    )
    residuals: list[float] = []
    while len(residuals) < most and not (residuals and residuals[-1] < tolerance):
        following = (transitions @ values).reshape(rewards.shape)
        new = (rewards + discount * following).max(1)
        residuals.append(float(np.abs(new - values).max()))
        values = new
    return values, np.array(residuals)


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba has no types
def compiled_optimality_sweeps(
    offsets: NDArray[np.int32],
    successors: NDArray[np.int32],
    probabilities: NDArray[np.float64],
    rewards: NDArray[np.float64],
    values: NDArray[np.float64],
    discount: float,
    tolerance: float,
    most: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Do as ``optimality_sweeps``, without a temporary array or a call per sweep."""
    states, actions = rewards.shape
    old, new = values.copy(), np.empty_like(values)
    residuals = np.empty(min(most, 1024))
    sweeps = 0
    while sweeps < most:
        change = 0.0
        for state in range(states):
            best = -np.inf
            for action in range(actions):
                pair = state * actions + action
                following = 0.0
                for k in range(offsets[pair], offsets[pair + 1]):
                    following += probabilities[k] * old[successors[k]]
                best = max(best, rewards[state, action] + discount * following)
            new[state] = best
            change = max(change, abs(best - old[state]))
        old, new = new, old
        if sweeps == len(residuals):
            longer = np.empty(2 * len(residuals))
            longer[:sweeps] = residuals
            residuals = longer
        residuals[sweeps] = change
        sweeps += 1
        if change < tolerance:
            break
    return old, residuals[:sweeps].copy()
