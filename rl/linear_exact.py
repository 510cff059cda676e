"""Linear prediction where the model is known: expected updates, fixed points and errors, exactly.

All take the features as an array ``(S, d)``, a row for each state; a feature object of
``rl.features`` gives it of ``np.arange(S)[:, None]``. Policies are actions ``(S,)`` or
probabilities ``(S, A)``. Importance ratios need not appear: the expectation over the behaviour of
what they weigh is the expectation over the target.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rl.bellman import check_discount, checked_policy, never_ending, policy_transitions
from rl.linear_arrays import Floats, check_fractions, finite_array, solve_unique
from rl.mdp import TabularMDP, as_mdp
from rl.planning import policy_evaluation
from rl.state_distribution import expected_visits, on_policy_distribution

if TYPE_CHECKING:
    import gymnasium
    from scipy import sparse

__all__ = [
    "PolicyModel",
    "bellman_error",
    "check_state_weights",
    "lstd_fixed_point",
    "policy_model",
    "projected_bellman_error",
    "projection",
    "value_error",
]


class PolicyModel(NamedTuple):
    """A model under a policy."""

    transitions: sparse.csr_matrix[np.float64]
    """``(S, S)``, probabilities of continuing."""
    rewards: Floats
    """``(S,)``."""
    endless: NDArray[np.bool_]
    """``(S,)``, from where the policy never ends the episode."""


def policy_model(mdp: TabularMDP, chances: Floats) -> PolicyModel:
    """Return the model under a policy of probabilities ``(S, A)``."""
    return PolicyModel(
        policy_transitions(mdp, chances),
        (chances * mdp.rewards).sum(1),
        never_ending(mdp, chances > 0),
    )


def lstd_fixed_point(
    mdp: str | gymnasium.Env | TabularMDP,
    policy: ArrayLike,
    features: ArrayLike,
    discount: float,
    trace: float = 0.0,
) -> Floats:
    r"""Return where TD(lambda) and LSTD(lambda) settle (Tsitsiklis & Van Roy 1997; Boyan 1999).

        A = X^T D (I - discount trace P)^{-1} (I - discount P) X
        b = X^T D (I - discount trace P)^{-1} r,          A w = b

    D is the on-policy distribution (``on_policy_distribution``): stationary, or of episodes the
    share of visits from ``mdp.start``. A trace of 1 gives the projection of the values.

    Args:
        mdp: A model, or an environment that has one.
        policy: Actions ``(S,)``, or probabilities of actions ``(S, A)``.
        features: ``(S, d)``, X.
        discount: In [0, 1].
        trace: lambda, in [0, 1].

    Returns:
        Weights ``(d,)``.

    Raises:
        ValueError: The fixed point is not unique, because features are linearly dependent on the
            states that the policy visits, or because nothing is ever discounted.

    >>> coin = TabularMDP([[[0.5]]], [[1.0]])
    >>> lstd_fixed_point(coin, [0], [[2.0]], discount=1.0)  # v = 2, so w = 1
    array([1.])
    """
    model = as_mdp(mdp)
    check_discount(discount)
    check_fractions("trace", trace)
    x = finite_array("features", features, model.states, "d")
    transitions, rewards, endless = policy_model(model, checked_policy(np.asarray(policy), model))
    if discount * trace == 1 and endless.any():
        raise ValueError(
            f"discount=1 and trace=1, but from state {np.flatnonzero(endless)[0]} the policy never "
            "ends the episode, so its returns have no sum; use a discount below 1"
        )
    traces = on_policy_distribution(model, policy)[:, None] * x
    if discount * trace > 0:  # expected traces: Z = D X + discount trace P^T Z
        traces = expected_visits(discount * trace * transitions, traces)
    matrix = traces.T @ (x - discount * (transitions @ x))
    return solve_unique(
        matrix,
        traces.T @ rewards,
        otherwise="the fixed point is not unique; leave out features that are linearly dependent "
        "on the states the policy visits, and with discount=1 use a policy that ends",
    )


def projection(features: ArrayLike, values: ArrayLike, state_weights: ArrayLike) -> Floats:
    r"""Return the weights of the nearest linear function (Sutton & Barto 2018, section 11.4).

        w = argmin \sum_s state_weights(s) (x(s)^T w - values(s))^2

    Where several are nearest, those of least norm.

    Args:
        features: ``(S, d)``.
        values: ``(S,)``.
        state_weights: ``(S,)``, 0 or more; only their ratios matter.

    Returns:
        Weights ``(d,)``.

    >>> projection([[1.0], [1.0]], [0.0, 4.0], [3.0, 1.0])
    array([1.])
    """
    x = finite_array("features", features, "S", "d")
    v = finite_array("values", values, len(x))
    roots = np.sqrt(check_state_weights(state_weights, len(x)))
    return np.asarray(
        np.linalg.lstsq(roots[:, None] * x, roots * v, rcond=None)[0], dtype=np.float64
    )


def value_error(
    mdp: str | gymnasium.Env | TabularMDP,
    policy: ArrayLike,
    features: ArrayLike,
    weights: ArrayLike,
    discount: float,
    state_weights: ArrayLike | None = None,
) -> float:
    r"""Return the mean squared value error (Sutton & Barto 2018, eq. 9.1).

        VE = \sum_s mu(s) (x(s)^T w - v_\pi(s))^2

    Args:
        mdp: A model, or an environment that has one.
        policy: Actions ``(S,)``, or probabilities of actions ``(S, A)``.
        features: ``(S, d)``.
        weights: ``(d,)``, w.
        discount: In [0, 1]; with 1 the policy must end from every state.
        state_weights: ``(S,)``, mu, 0 or more and used as they are; None is the on-policy
            distribution.
    """
    model, x, w, mu = _approximation(mdp, policy, features, weights, discount, state_weights)
    values = policy_evaluation(model, policy, discount).values
    return float(mu @ (x @ w - values) ** 2)


def bellman_error(
    mdp: str | gymnasium.Env | TabularMDP,
    policy: ArrayLike,
    features: ArrayLike,
    weights: ArrayLike,
    discount: float,
    state_weights: ArrayLike | None = None,
) -> float:
    r"""Return the mean squared Bellman error (Sutton & Barto 2018, eq. 11.17 to 11.19).

        BE = \sum_s mu(s) delta(s)^2,   delta = r_\pi + discount P_\pi X w - X w

    Args: see ``value_error``.
    """
    model, x, w, mu = _approximation(mdp, policy, features, weights, discount, state_weights)
    return float(mu @ _bellman_errors(model, policy, x, w, discount) ** 2)


def projected_bellman_error(
    mdp: str | gymnasium.Env | TabularMDP,
    policy: ArrayLike,
    features: ArrayLike,
    weights: ArrayLike,
    discount: float,
    state_weights: ArrayLike | None = None,
) -> float:
    r"""Return the mean squared projected Bellman error (Sutton & Barto 2018, eq. 11.22).

        PBE = \sum_s mu(s) (Pi delta)(s)^2,   Pi the projection that mu weighs

    It is 0 at TD's fixed point. Args: see ``value_error``.
    """
    model, x, w, mu = _approximation(mdp, policy, features, weights, discount, state_weights)
    errors = _bellman_errors(model, policy, x, w, discount)
    return float(mu @ (x @ projection(x, errors, mu)) ** 2)


def check_state_weights(state_weights: ArrayLike, states: int) -> Floats:
    """Return the weights ``(S,)``, not negative and not all 0."""
    found = finite_array("state_weights", state_weights, states)
    if (found < 0).any() or not (found > 0).any():
        raise ValueError(
            f"state_weights lie between {found.min():g} and {found.max():g}: states weigh 0 or "
            "more, some of them more than 0"
        )
    return found


def _approximation(
    mdp: str | gymnasium.Env | TabularMDP,
    policy: ArrayLike,
    features: ArrayLike,
    weights: ArrayLike,
    discount: float,
    state_weights: ArrayLike | None,
) -> tuple[TabularMDP, Floats, Floats, Floats]:
    model = as_mdp(mdp)
    check_discount(discount)
    x = finite_array("features", features, model.states, "d")
    w = finite_array("weights", weights, x.shape[1])
    if state_weights is None:
        return model, x, w, on_policy_distribution(model, policy)
    return model, x, w, check_state_weights(state_weights, model.states)


def _bellman_errors(
    mdp: TabularMDP, policy: ArrayLike, x: Floats, w: Floats, discount: float
) -> Floats:
    transitions, rewards, _ = policy_model(mdp, checked_policy(np.asarray(policy), mdp))
    values = x @ w
    return rewards + discount * (transitions @ values) - values
