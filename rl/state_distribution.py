"""How much of its time a policy spends in each state of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rl.bellman import checked_policy
from rl.linear_arrays import Floats
from rl.mdp import TabularMDP, as_mdp

if TYPE_CHECKING:
    import gymnasium
    from scipy import sparse

__all__ = ["on_policy_distribution", "policy_transitions"]


def on_policy_distribution(mdp: str | gymnasium.Env | TabularMDP, policy: ArrayLike) -> Floats:
    """Return ``(S,)``, the share of steps that a policy spends in each state; it sums to 1.

    Of a policy whose episodes go on for ever it is the stationary distribution; of one whose
    episodes end, the expected visits to each state in an episode from ``mdp.start`` over their sum
    (Sutton & Barto 2018, section 9.2). In general it is what a run tends to that begins a new
    episode where one ends, and may get into one of several sets of states for good.

    Args:
        mdp: A model, or an environment that has one.
        policy: Actions ``(S,)``, or probabilities of actions ``(S, A)``.

    >>> walk = TabularMDP([[[0.0, 1.0]], [[0.0, 0.5]]], [[0.0], [0.0]], start=[1.0, 0.0])
    >>> on_policy_distribution(walk, [0, 0])  # one visit to state 0, two to state 1
    array([0.33333333, 0.66666667])
    """
    model = as_mdp(mdp)
    chances = checked_policy(np.asarray(policy), model)
    transitions = policy_transitions(model, chances)
    ends = (chances * model.endings).sum(1) > 0
    reached = _reached(transitions, model.start)
    staying = [states for states in _closed_sets(transitions, ends) if reached[states[0]]]
    passing = reached.copy()
    for states in staying:
        passing[states] = False
    through = np.flatnonzero(passing)
    visits = np.zeros(model.states)
    if through.size:
        visits[through] = _visits(transitions[through][:, through], model.start[through])
    if not staying:
        return visits / visits.sum()
    entering = model.start + transitions.T @ visits
    shares = np.zeros(model.states)
    for states in staying:
        inside = transitions[states][:, states].tolil()
        inside[:, 0] = 0  # until it comes back to the set's first state
        first = np.eye(len(states))[0]
        times = _visits(inside.tocsr(), first)
        shares[states] = entering[states].sum() * times / times.sum()
    return shares / shares.sum()


def policy_transitions(mdp: TabularMDP, chances: Floats) -> sparse.csr_matrix[np.float64]:
    """Return ``(S, S)``, the probability that an episode goes on from one state to another."""
    from scipy import sparse

    pairs = np.arange(chances.size + 1)
    choice = sparse.csr_matrix((chances.ravel(), pairs[:-1], pairs[:: mdp.actions]))
    transitions = sparse.csr_matrix(choice @ mdp.csr)
    transitions.eliminate_zeros()
    return transitions


def _visits(transitions: sparse.csr_matrix[np.float64], start: Floats) -> Floats:
    """Return n of n = start + transitions^T n, expected visits before these states are left."""
    from scipy import sparse
    from scipy.sparse.linalg import spsolve

    system = sparse.identity(len(start), format="csc") - transitions.T.tocsc()
    return np.atleast_1d(spsolve(system, start))


def _reached(transitions: sparse.csr_matrix[np.float64], start: Floats) -> NDArray[np.bool_]:
    reached = start > 0
    while True:
        further = reached | (transitions.T @ reached.astype(np.float64) > 0)
        if (further == reached).all():
            return reached
        reached = further


def _closed_sets(
    transitions: sparse.csr_matrix[np.float64], ends: NDArray[np.bool_]
) -> list[NDArray[np.int64]]:
    """Return the sets of states, each reachable from each, that are never left."""
    from scipy.sparse import csgraph

    count, labels = csgraph.connected_components(transitions, connection="strong")
    moves = transitions.tocoo()
    leaves = np.zeros(count, np.bool_)
    leaves[labels[moves.row[labels[moves.row] != labels[moves.col]]]] = True
    leaves[labels[ends]] = True
    return [np.flatnonzero(labels == label) for label in np.flatnonzero(~leaves)]
