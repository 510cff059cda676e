"""What a sum of rewards without discount needs: policies that end, and no cycle that pays.

A policy is proper when it ends with probability 1 from every state (Bertsekas & Tsitsiklis 1991).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rl.mdp import TabularMDP

__all__ = ["NONE", "check_undiscounted", "ending_actions", "paying_cycle"]

NONE = -1
"""In place of an action, where none leads to an end."""


def ending_actions(mdp: TabularMDP, allowed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return, for each state, the lowest allowed action that leads nearer to the end.

    From a state whose shortest way to the end has n steps, such an action ends the episode, or goes
    to a state of n - 1 with positive probability. Taken everywhere, these actions are proper.

    Args:
        mdp: The model.
        allowed: ``(S, A)``, the actions to choose from.

    Returns:
        ``(S,)`` actions; -1 where allowed actions never end.
    """
    from scipy import sparse
    from scipy.sparse import csgraph

    end = mdp.states  # one node more, behind every ending
    moves = mdp.csr.tocoo()
    kept = allowed.ravel()[moves.row]
    pairs, successors = moves.row[kept].astype(np.int64), moves.col[kept].astype(np.int64)
    ending = np.flatnonzero(allowed & (mdp.endings > 0))
    pairs = np.concatenate([pairs, ending])
    successors = np.concatenate([successors, np.full(len(ending), end)])
    origins = pairs // mdp.actions
    backwards = sparse.csr_matrix(
        (np.ones(len(pairs)), (successors, origins)), shape=(end + 1, end + 1)
    )
    steps = csgraph.dijkstra(backwards, indices=end, unweighted=True)
    nearer = steps[successors] < steps[origins]
    actions = np.full(mdp.states, mdp.actions, dtype=np.int64)
    np.minimum.at(actions, origins[nearer], pairs[nearer] % mdp.actions)
    return np.where(actions < mdp.actions, actions, NONE)


def check_undiscounted(mdp: TabularMDP) -> None:
    """Raise ValueError where the best sum of rewards, without discount, has no finite value."""
    stuck = np.flatnonzero(ending_actions(mdp, np.ones_like(mdp.rewards, dtype=np.bool_)) == NONE)
    if stuck.size:
        raise ValueError(
            f"discount=1 needs a proper policy, but from state {stuck[0]} no policy ends the "
            "episode; use a discount below 1, or relative_value_iteration for an average reward"
        )
    cycle = paying_cycle(mdp)
    if cycle is not None:
        raise ValueError(
            f"discount=1: a policy can stay in a cycle through state {cycle} for ever and earn "
            "more than 0 a round, so its value is infinite; use a discount below 1"
        )


def paying_cycle(mdp: TabularMDP) -> int | None:
    """Return a state of a cycle without end whose mean reward exceeds 0; None without such.

    The best mean reward of staying is the linear program over frequencies x (Puterman 1994, 8.8)

        max sum_sa x(s, a) r(s, a)
        where sum_a x(s', a) = sum_sa P(s' | s, a) x(s, a) for all s', sum_sa x(s, a) = 1
    """
    pairs = staying_pairs(mdp)
    rewards = mdp.rewards.ravel()[pairs]
    if not (rewards > 0).any():
        return None
    from scipy import sparse
    from scipy.optimize import linprog

    count = len(pairs)
    leaves = sparse.csr_matrix(
        (np.ones(count), (np.arange(count), pairs // mdp.actions)), shape=(count, mdp.states)
    )
    net = (leaves - mdp.csr[pairs]).T
    flows = sparse.vstack([net, sparse.csr_matrix(np.ones((1, count)))])
    worth = rewards / np.abs(rewards).max()
    found = linprog(  # type: ignore[call-overload]  # its stubs know no sparse matrix
        -worth, A_eq=flows, b_eq=np.append(np.zeros(mdp.states), 1.0)
    )
    if found.x is None or worth @ found.x <= 1e-7:  # HiGHS's own tolerance
        return None
    return int(pairs[np.argmax(found.x)] // mdp.actions)


def staying_pairs(mdp: TabularMDP) -> NDArray[np.int64]:
    """Return the pairs ``s * A + a`` after which an episode can still go on for ever."""
    staying = (mdp.endings == 0).ravel()
    while True:
        leaving = ~staying.reshape(mdp.states, mdp.actions).any(1)
        kept = staying & (mdp.csr @ leaving.astype(np.float64) == 0)
        if (kept == staying).all():
            return np.flatnonzero(kept)
        staying = kept
