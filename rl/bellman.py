"""Bellman's equation of a model: the steps that every planner is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rl.mdp import TabularMDP
from rl.outcomes import ROUNDING
from rl.proper import NONE, check_undiscounted, ending_actions

if TYPE_CHECKING:
    from scipy import sparse

__all__ = [
    "Solution",
    "action_values_of",
    "check_discount",
    "check_optimal",
    "check_settled",
    "checked_policy",
    "checked_values",
    "greedy_policy",
    "most_sweeps",
    "never_ending",
    "one_hot",
    "policy_transitions",
    "solution_of",
    "values_of",
]

UNDISCOUNTED_SWEEPS = 1_000_000
"""With discount 1 no bound on the sweeps is known; after so many, we give up."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Solution:
    """What a planner found, in float64."""

    values: NDArray[np.float64]
    """``(S,)``; of ``finite_horizon`` ``(horizon + 1, S)``, of ``relative_value_iteration`` the
    bias."""
    action_values: NDArray[np.float64]
    """``(S, A)``, the reward of each action and ``values`` after it; ``finite_horizon``:
    ``(horizon, S, A)``."""
    policy: NDArray[np.int64] | NDArray[np.float64]
    """``(S,)``, the best actions, of equally good ones the lowest (with discount 1, the lowest that
    leads to an end); ``finite_horizon``: ``(horizon, S)``; ``policy_evaluation``: as given."""
    iterations: int
    """Sweeps; policy iteration: policies evaluated; linear program: iterations of the solver."""
    residuals: NDArray[np.float64]
    """``(iterations,)``, the largest change of a value in each; of the direct methods
    (``policy_evaluation``, ``linear_program``) one number, how far the values are from solving
    Bellman's equation."""
    gain: float | None = None
    """The average reward a step, of ``relative_value_iteration`` alone."""


def action_values_of(
    mdp: TabularMDP, discount: float, values: NDArray[np.float64]
) -> NDArray[np.float64]:
    r"""Return ``(S, A)`` values of actions, r(s, a) + discount * \sum_{s'} P(s' | s, a) v(s')."""
    return mdp.rewards + discount * (mdp.csr @ values).reshape(mdp.rewards.shape)


def values_of(
    mdp: TabularMDP, chances: NDArray[np.float64], discount: float
) -> NDArray[np.float64]:
    """Return the ``(S,)`` values of a policy ``(S, A)``; with discount 1 it must be proper."""
    from scipy import sparse
    from scipy.sparse.linalg import spsolve

    transitions = policy_transitions(mdp, chances)
    rewards = (chances * mdp.rewards).sum(1)
    if transitions.nnz * 20 > mdp.states**2:  # too full for a sparse solver to gain anything
        return np.linalg.solve(np.eye(mdp.states) - discount * transitions.toarray(), rewards)
    system = sparse.identity(mdp.states, format="csc") - discount * transitions.tocsc()
    return np.atleast_1d(spsolve(system, rewards))


def policy_transitions(
    mdp: TabularMDP, chances: NDArray[np.float64]
) -> sparse.csr_matrix[np.float64]:
    """Return ``(S, S)``, the probability that an episode goes on from one state to another."""
    from scipy import sparse

    pairs = np.arange(chances.size + 1)
    choice = sparse.csr_matrix((chances.ravel(), pairs[:-1], pairs[:: mdp.actions]))
    transitions = sparse.csr_matrix(choice @ mdp.csr)
    transitions.eliminate_zeros()
    return transitions


def one_hot(policy: NDArray[np.int64], actions: int) -> NDArray[np.float64]:
    """Return actions ``(S,)`` as probabilities ``(S, A)``."""
    return np.eye(actions)[policy]


def never_ending(mdp: TabularMDP, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return ``(S,)``, True where no action of those ``chosen`` ``(S, A)`` leads to an end."""
    return ending_actions(mdp, chosen) == NONE


def greedy_policy(
    mdp: TabularMDP, discount: float, action_values: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the best actions, of equally good ones the lowest.

    With discount 1 the best can include going round for ever to no gain, as where all moves but the
    last pay 0. States from which the lowest best actions never end take, of those that are as good
    but for rounding, the lowest that leads nearer to the end.
    """
    policy = action_values.argmax(1)
    if discount < 1:
        return policy
    never = never_ending(mdp, one_hot(policy, mdp.actions) > 0)
    if not never.any():
        return policy
    best = action_values.max(1, keepdims=True)
    ending = ending_actions(mdp, action_values >= best - 1e-6 * np.maximum(1, np.abs(best)))
    return np.where(never & (ending != NONE), ending, policy)


def solution_of(
    mdp: TabularMDP,
    discount: float,
    values: NDArray[np.float64],
    residuals: NDArray[np.float64],
) -> Solution:
    """Return what sweeps that ended in ``values`` have found."""
    action_values = action_values_of(mdp, discount, values)
    return Solution(
        values=values,
        action_values=action_values,
        policy=greedy_policy(mdp, discount, action_values),
        iterations=len(residuals),
        residuals=residuals,
    )


def check_discount(discount: float) -> None:
    """Raise ValueError where ``discount`` is not in [0, 1]."""
    if not 0 <= discount <= 1:
        raise ValueError(
            f"discount={discount} is outside [0, 1]: 0 sees only the next reward, 1 sums them all"
        )


def check_optimal(mdp: TabularMDP, discount: float) -> None:
    """Raise ValueError where the best values under ``discount`` are not defined or not finite."""
    check_discount(discount)
    if discount == 1:
        check_undiscounted(mdp)


def checked_values(values: ArrayLike | None, mdp: TabularMDP) -> NDArray[np.float64]:
    """Return ``values`` as ``(S,)`` float64, None as zeros."""
    if values is None:
        return np.zeros(mdp.states)
    table = np.array(values, dtype=np.float64)
    if table.shape != (mdp.states,):
        raise ValueError(f"got initial_values of shape {table.shape}: expected ({mdp.states},)")
    if not np.isfinite(table).all():
        state = np.flatnonzero(~np.isfinite(table))[0]
        raise ValueError(f"initial_values[{state}] is {table[state]}: not a finite number")
    return table


def checked_policy(policy: NDArray[np.generic], mdp: TabularMDP) -> NDArray[np.float64]:
    """Return actions ``(S,)`` or probabilities ``(S, A)`` as probabilities ``(S, A)``."""
    if policy.shape == (mdp.states,):
        if not np.issubdtype(policy.dtype, np.integer):
            raise ValueError(
                f"got a policy of {policy.dtype}: actions ({mdp.states},) are integers"
            )
        actions = policy.astype(np.int64)
        for state in np.flatnonzero((actions < 0) | (actions >= mdp.actions)):
            raise ValueError(
                f"policy[{state}] is {policy[state]}: the actions are 0 to {mdp.actions - 1}"
            )
        return one_hot(actions, mdp.actions)
    if policy.shape != mdp.rewards.shape:
        raise ValueError(
            f"got a policy of shape {policy.shape}: expected actions ({mdp.states},) or "
            f"probabilities of actions {mdp.rewards.shape}"
        )
    chances = policy.astype(np.float64)
    for state, action in np.argwhere(~((chances >= 0) & (chances < np.inf))):
        raise ValueError(f"policy[{state}, {action}] is {chances[state, action]}: no probability")
    for state in np.flatnonzero(np.abs(chances.sum(1) - 1) > ROUNDING):
        raise ValueError(f"policy[{state}] sums to {chances[state].sum()}: probabilities sum to 1")
    return chances


def most_sweeps(
    mdp: TabularMDP, discount: float, tolerance: float, values: NDArray[np.float64]
) -> int:
    """Return after how many sweeps from ``values`` changes must have come below ``tolerance``.

    After k sweeps, or iterations of truncated policy iteration, values are within 3 discount^k b of
    the best, b = (max |r| + max |v|) / (1 - discount), so they change by at most 6 discount^k b but
    for rounding, for which there are a few sweeps more.
    """
    if discount == 1:
        return UNDISCOUNTED_SWEEPS
    first = 6 * float(np.abs(mdp.rewards).max() + np.abs(values).max()) / (1 - discount)
    if discount == 0 or first <= tolerance:
        return 10
    return 10 + math.ceil(math.log(tolerance / first) / math.log(discount))


def check_settled(change: float, sweeps: int, discount: float, tolerance: float) -> None:
    """Raise ValueError where the last ``change`` of a value was not below ``tolerance``."""
    if change < tolerance:
        return
    if discount < 1:
        raise ValueError(
            f"after {sweeps} sweeps values still change by {change:.3g}, by rounding alone: "
            f"tolerance={tolerance} is finer than float64 resolves values of this size"
        )
    raise ValueError(
        f"after {sweeps} sweeps with discount=1 values still change by {change:.3g}: they settle "
        "too slowly, or rewards cancel in a cycle; use policy_iteration, or a discount below 1"
    )
