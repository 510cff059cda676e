"""The Huber loss of Q values with its slopes, by a compiled loop."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rl.classic_kernels import compiled

__all__ = ["huber_slopes"]


@compiled
def huber_slopes(
    q_values: NDArray[np.float32],
    actions: NDArray[np.int64],
    targets: NDArray[np.float32],
    weights: NDArray[np.float32],
    slopes: NDArray[np.float32],
    chosen: NDArray[np.float32],
) -> float:
    r"""Return \sum_i weights_i Huber(e_i), where e_i = q_values[i, actions_i] - targets_i.

        Huber(e) = e^2 / 2 where |e| <= 1, else |e| - 1/2

    Args:
        q_values: ``(B, A)``.
        actions: ``(B,)``.
        targets: ``(B,)``.
        weights: ``(B,)``.
        slopes: ``(B, A)``, filled with the gradient by ``q_values``.
        chosen: ``(B,)``, filled with Q of the actions.
    """
    loss = 0.0
    slopes[:] = 0.0
    for i in range(len(actions)):
        chosen[i] = q_values[i, actions[i]]
        error = chosen[i] - targets[i]
        limited = min(max(error, np.float32(-1.0)), np.float32(1.0))
        slopes[i, actions[i]] = weights[i] * limited
        loss += weights[i] * limited * (error - limited / 2)
    return loss
