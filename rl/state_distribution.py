"""How much of its time a policy spends in each state of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rl.bellman import checked_policy, policy_transitions
from rl.linear_arrays import Floats
from rl.mdp import TabularMDP, as_mdp
from rl.tabular_graph import reached_states

if TYPE_CHECKING:
    import gymnasium
    from scipy import sparse

__all__ = ["expected_visits", "on_policy_distribution"]


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
    reached = reached_states(model, chances > 0)
    staying = [states for states in _closed_sets(transitions, ends) if reached[states[0]]]
    passing = reached.copy()
    for states in staying:
        passing[states] = False
    through = np.flatnonzero(passing)
    visits = np.zeros(model.states)
    if through.size:
        visits[through] = expected_visits(transitions[through][:, through], model.start[through])
    if not staying:
        return visits / visits.sum()
    entering = model.start + transitions.T @ visits
    shares = np.zeros(model.states)
    for states in staying:
        inside = transitions[states][:, states].tolil()
        inside[:, 0] = 0  # until it comes back to the set's first state
        first = np.eye(len(states))[0]
        times = expected_visits(inside.tocsr(), first)
        shares[states] = entering[states].sum() * times / times.sum()
    return shares / shares.sum()


def expected_visits(transitions: sparse.csr_matrix[np.float64], start: Floats) -> Floats:
    """Return n of n = start + transitions^T n, expected visits before these states are left.

    ``start`` is ``(S,)``, or ``(S, d)`` for d of them at once.
    """
    from scipy import sparse
    from scipy.sparse.linalg import spsolve

    system = sparse.identity(len(start), format="csc") - transitions.T.tocsc()
    return np.reshape(spsolve(system, start), start.shape)


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
