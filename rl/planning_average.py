"""Planning for the average reward of a step, of models that never end."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from rl.bellman import Solution, action_values_of
from rl.mdp import TabularMDP, as_mdp

if TYPE_CHECKING:
    import gymnasium

__all__ = ["relative_value_iteration"]

STAY = 0.5
"""Probability of standing still instead, which rids the sweeps of periods."""
MOST_SWEEPS = 200_000


def relative_value_iteration(
    mdp: str | gymnasium.Env | TabularMDP, *, tolerance: float = 1e-10
) -> Solution:
    r"""Best average reward and bias, by sweeps relative to state 0 (Puterman 1994, section 8.5.5).

        h_{k+1} = w_k - w_k(0),    w_k = h_k + (1 - stay) * (max_a [r + \sum_{s'} P h_k] - h_k)

    until the best and the worst state gain the same but for ``tolerance``; then, with the gain g,

        g + h(s) = max_a r(s, a) + \sum_{s'} P(s' | s, a) h(s'),    h(0) = 0

    Standing still half of the time (``stay``) changes neither gain nor policy, and makes periodic
    models settle.

    Args:
        mdp: A model, or an environment that has one, in which no episode ends and the best average
            reward is the same from every state.
        tolerance: Of the gain, in units of reward.

    Returns:
        ``values`` is the bias h, ``action_values`` are r - g + P h, ``gain`` is g; ``residuals``
        are the differences between the best and the worst state's gain.

    >>> ring = TabularMDP([[[0, 1]], [[1, 0]]], [[0.0], [1.0]])  # pays 1 every second step
    >>> found = relative_value_iteration(ring)
    >>> found.gain, found.values
    (0.5, array([0. , 0.5]))
    """
    model = as_mdp(mdp)
    for state, action in np.argwhere(model.endings > 0):
        raise ValueError(
            f"an average reward needs a model that never ends, but state {state}, action {action} "
            f"ends with probability {model.endings[state, action]:.3g}; use value_iteration, or "
            "add what is missing to the transitions to a state that the next episode starts in"
        )
    if not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance={tolerance}: the gain settles within a number above 0")
    values = np.zeros(model.states)
    residuals: list[float] = []
    while not residuals or residuals[-1] >= tolerance:
        gains = action_values_of(model, 1.0, values).max(1) - values
        residuals.append(float(np.ptp(gains)))
        if len(residuals) == MOST_SWEEPS:
            low, high = np.argmin(gains), np.argmax(gains)
            raise ValueError(
                f"after {MOST_SWEEPS} sweeps the average reward is {gains[low]:.6g} from state "
                f"{low} and {gains[high]:.6g} from state {high}: there is no one gain, or it "
                "settles too slowly; make all states reachable from one another"
            )
        values = values + (1 - STAY) * gains
        values -= values[0]
    gain = float(gains.min() + gains.max()) / 2
    action_values = action_values_of(model, 1.0, values) - gain
    return Solution(
        values=values,
        action_values=action_values,
        policy=action_values.argmax(1),
        iterations=len(residuals),
        residuals=np.array(residuals),
        gain=gain,
    )
