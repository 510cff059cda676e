"""Planning: values and policies of a known model by dynamic and linear programming."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rl.bellman import (
    Solution,
    action_values_of,
    check_discount,
    check_optimal,
    check_settled,
    checked_policy,
    checked_values,
    greedy_policy,
    most_sweeps,
    never_ending,
    one_hot,
    solution_of,
    values_of,
)
from rl.mdp import TabularMDP, as_mdp
from rl.planning_average import relative_value_iteration
from rl.proper import ending_actions

if TYPE_CHECKING:
    import gymnasium

__all__ = [
    "Solution",
    "finite_horizon",
    "linear_program",
    "policy_evaluation",
    "policy_iteration",
    "relative_value_iteration",
    "truncated_policy_iteration",
    "value_iteration",
]

BETTER = 1e-12
"""By how much an action must be better for policy iteration to take it."""
TRUNCATED_TOLERANCE = 1e-8


def policy_evaluation(
    mdp: str | gymnasium.Env | TabularMDP, policy: ArrayLike, discount: float
) -> Solution:
    r"""Values of a policy, from its linear equations (Zhao 2025, section 2.7.1).

        v = (I - discount * P_\pi)^{-1} r_\pi

    Args:
        mdp: A model, or an environment that has one.
        policy: Actions ``(S,)``, or probabilities of actions ``(S, A)``.
        discount: In [0, 1]; with 1 the policy must end with probability 1 from every state.

    >>> model = TabularMDP([[[0.5]]], [[1.0]])
    >>> policy_evaluation(model, [0], 1.0).values  # 1 + 1/2 + 1/4 + ...
    array([2.])
    """
    model = as_mdp(mdp)
    check_discount(discount)
    given = np.asarray(policy)
    chances = checked_policy(given, model)
    if discount == 1 and (never := never_ending(model, chances > 0)).any():
        raise ValueError(
            f"discount=1, but from state {np.flatnonzero(never)[0]} the policy never ends the "
            "episode, so its rewards have no sum; use a discount below 1 or a policy that ends"
        )
    values = values_of(model, chances, discount)
    action_values = action_values_of(model, discount, values)
    error = np.abs((chances * action_values).sum(1) - values).max()
    return Solution(
        values=values,
        action_values=action_values,
        policy=given,
        iterations=1,
        residuals=np.array([error]),
    )


def value_iteration(
    mdp: str | gymnasium.Env | TabularMDP,
    discount: float,
    *,
    tolerance: float = 1e-8,
    initial_values: ArrayLike | None = None,
) -> Solution:
    r"""Best values and policy by sweeps of the optimality equation (Zhao 2025, algorithm 4.1).

        v_{k+1} = max_\pi (r_\pi + discount * P_\pi v_k)   until   max |v_{k+1} - v_k| < tolerance

    The values are then within ``tolerance * discount / (1 - discount)`` of the best. With
    discount 1, and a cycle that earns exactly 0, sweeps from 0 find the best over all policies,
    also those that never end; the other planners find the best that does.

    Args:
        mdp: A model, or an environment that has one.
        discount: In [0, 1]; with 1 some policy must end from every state.
        tolerance: In units of reward, above 0.
        initial_values: ``(S,)``, where to begin; None is 0.

    >>> model = TabularMDP([[[0.5]]], [[1.0]])
    >>> value_iteration(model, 1.0, tolerance=0.2).residuals
    array([1.   , 0.5  , 0.25 , 0.125])
    """
    model = as_mdp(mdp)
    check_optimal(model, discount)
    if not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance={tolerance}: values settle within a number above 0")
    values = checked_values(initial_values, model)
    from rl.sweeps import compiled_optimality_sweeps

    transitions = model.csr
    values, residuals = compiled_optimality_sweeps(
        transitions.indptr,
        transitions.indices,
        transitions.data,
        model.rewards,
        values,
        float(discount),
        float(tolerance),
        most_sweeps(model, discount, tolerance, values),
    )
    check_settled(residuals[-1], len(residuals), discount, tolerance)
    return solution_of(model, discount, values, residuals)


def policy_iteration(
    mdp: str | gymnasium.Env | TabularMDP,
    discount: float,
    *,
    initial_policy: ArrayLike | None = None,
) -> Solution:
    """Best values and policy by exact evaluation and improvement in turn (Howard 1960; Zhao 4.2).

    An action is kept unless another is better by 1e-12, so equally good ones do not take turns.
    The last evaluation, which confirms the policy, counts as an iteration.

    Args:
        mdp: A model, or an environment that has one.
        discount: In [0, 1]; with 1 some policy must end from every state.
        initial_policy: Actions ``(S,)``; None is action 0 everywhere (with discount 1, where that
            never ends, a shortest way to the end). With discount 1 it must end from every state.
    """
    model = as_mdp(mdp)
    check_optimal(model, discount)
    policy = _first_policy(model, discount, initial_policy)
    values = np.zeros(model.states)
    residuals: list[float] = []
    seen: set[bytes] = set()
    while True:
        previous, values = values, values_of(model, one_hot(policy, model.actions), discount)
        residuals.append(float(np.abs(values - previous).max()))
        seen.add(policy.tobytes())
        action_values = action_values_of(model, discount, values)
        improved = _improved(model, discount, action_values, policy)
        # Where rewards are so large that rounding exceeds 1e-12, policies could take turns.
        if improved.tobytes() in seen:
            return Solution(
                values=values,
                action_values=action_values,
                policy=policy,
                iterations=len(residuals),
                residuals=np.array(residuals),
            )
        policy = improved


def truncated_policy_iteration(
    mdp: str | gymnasium.Env | TabularMDP, discount: float, *, backups: int
) -> Solution:
    r"""Best values and policy by improvement and a few backups in turn (Zhao 2025, algorithm 4.3).

        \pi = argmax_\pi (r_\pi + discount * P_\pi v)
        v <- r_\pi + discount * P_\pi v     (``backups`` times)

    From values of 0, improving first: so one backup is value iteration, sweep by sweep, and
    infinitely many are policy iteration (Puterman & Shin 1978). It stops when no value changes by
    1e-8 or more in an iteration.

    Args:
        mdp: A model, or an environment that has one.
        discount: In [0, 1]; with 1 some policy must end from every state.
        backups: Backups of each policy, 1 or more.
    """
    model = as_mdp(mdp)
    check_optimal(model, discount)
    if isinstance(backups, bool) or not isinstance(backups, int | np.integer) or backups < 1:
        raise ValueError(
            f"backups={backups!r}: a policy is backed up a whole number of times, 1 or more"
        )
    pairs = np.arange(model.states) * model.actions
    rewards = model.rewards.ravel()
    values = np.zeros(model.states)
    most = most_sweeps(model, discount, TRUNCATED_TOLERANCE, values)
    residuals: list[float] = []
    while not residuals or residuals[-1] >= TRUNCATED_TOLERANCE:
        if len(residuals) == most:
            check_settled(residuals[-1], most, discount, TRUNCATED_TOLERANCE)
        previous = values
        chosen = pairs + action_values_of(model, discount, values).argmax(1)
        transitions = model.csr[chosen]
        for _ in range(backups):
            values = rewards[chosen] + discount * (transitions @ values)
        residuals.append(float(np.abs(values - previous).max()))
    return solution_of(model, discount, values, np.array(residuals))


def finite_horizon(mdp: str | gymnasium.Env | TabularMDP, horizon: int) -> Solution:
    """Best sums of rewards over ``horizon`` steps, backwards in time (Puterman 1994, section 4.5).

        v_t(s) = max_a r(s, a) + sum_{s'} P(s' | s, a) v_{t+1}(s'),    v_horizon = 0

    Nothing is discounted, and no policy need end.

    Returns:
        ``values`` ``(horizon + 1, S)``, row t of what is still to come at time t; ``policy``
        ``(horizon, S)``; ``residuals`` in the order of the sweeps, the last step's first.
    """
    model = as_mdp(mdp)
    if isinstance(horizon, bool) or not isinstance(horizon, int | np.integer) or horizon < 1:
        raise ValueError(f"horizon={horizon!r}: it is a whole number of steps, 1 or more")
    values = np.zeros((horizon + 1, model.states))
    action_values = np.empty((horizon, model.states, model.actions))
    for t in reversed(range(horizon)):
        action_values[t] = action_values_of(model, 1.0, values[t + 1])
        values[t] = action_values[t].max(1)
    return Solution(
        values=values,
        action_values=action_values,
        policy=action_values.argmax(2),
        iterations=int(horizon),
        residuals=np.abs(np.diff(values, axis=0)).max(1)[::-1].copy(),
    )


def linear_program(mdp: str | gymnasium.Env | TabularMDP, discount: float) -> Solution:
    """Best values as the smallest that no action exceeds (Puterman 1994, section 6.9; HiGHS).

        min sum_s v(s) / S   where   v(s) >= r(s, a) + discount * sum_{s'} P(s' | s, a) v(s')

    The solver is exact to 1e-10 only, so the policy that it finds is evaluated once more.

    Args:
        mdp: A model, or an environment that has one.
        discount: In [0, 1]; with 1 some policy must end from every state.
    """
    model = as_mdp(mdp)
    check_optimal(model, discount)
    from scipy import sparse
    from scipy.optimize import linprog

    pairs = np.arange(model.states * model.actions)
    own = sparse.csr_matrix((np.ones(len(pairs)), (pairs, pairs // model.actions)))
    found = linprog(  # type: ignore[call-overload]  # its stubs know no sparse matrix
        np.full(model.states, 1 / model.states),
        A_ub=discount * model.csr - own,
        b_ub=-model.rewards.ravel(),
        bounds=(None, None),
        method="highs",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    if found.x is None:
        raise ValueError(f"the linear program of {model} was not solved: {found.message}")
    policy = greedy_policy(model, discount, action_values_of(model, discount, found.x))
    values = values_of(model, one_hot(policy, model.actions), discount)
    action_values = action_values_of(model, discount, values)
    return Solution(
        values=values,
        action_values=action_values,
        policy=policy,
        iterations=int(found.nit),
        residuals=np.array([np.abs(action_values.max(1) - values).max()]),
    )


def _first_policy(
    mdp: TabularMDP, discount: float, initial_policy: ArrayLike | None
) -> NDArray[np.int64]:
    given = initial_policy is not None
    policy = np.asarray(initial_policy) if given else np.zeros(mdp.states, dtype=np.int64)
    if policy.shape != (mdp.states,):
        raise ValueError(
            f"got initial_policy of shape {policy.shape}: expected actions ({mdp.states},)"
        )
    chosen = checked_policy(policy, mdp) > 0
    if discount < 1 or not (never := never_ending(mdp, chosen)).any():
        return policy.astype(np.int64)
    if given:
        raise ValueError(
            f"discount=1, but from state {np.flatnonzero(never)[0]} initial_policy never ends the "
            "episode, so its rewards have no sum; begin with a policy that ends, or with None"
        )
    return ending_actions(mdp, np.ones_like(chosen))


def _improved(
    mdp: TabularMDP,
    discount: float,
    action_values: NDArray[np.float64],
    policy: NDArray[np.int64],
) -> NDArray[np.int64]:
    kept = np.take_along_axis(action_values, policy[:, None], 1)[:, 0]
    better = action_values.max(1) - kept > BETTER
    improved = np.where(better, action_values.argmax(1), policy)
    if discount < 1:
        return improved
    # In exact arithmetic what is better than a policy that ends does end, no cycle being worth it.
    return np.where(never_ending(mdp, one_hot(improved, mdp.actions) > 0), policy, improved)
