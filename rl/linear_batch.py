"""Linear values from a batch of transitions: least-squares TD, its policy iteration, fitted Q.

A batch is arrays with a row for each transition. ``discounts`` are gamma, or 0 where the transition
terminated. Features of state-action pairs are yours to choose; with features x(s) ``(d,)`` and A
actions the usual ones are x(s) in the block of the action, ``(A * d,)``, and 0 elsewhere, which
`pair_features` makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rl.linear_arrays import Floats, check_counts, check_fractions, finite_array, solve_unique
from rl.stochastic import DivergenceError

__all__ = ["BatchControl", "fitted_q", "lspi", "lstd", "pair_features"]

_SINGULAR = "give ridge=, such as 1e-6, or leave out features that the others determine"


def lstd(
    features: ArrayLike,
    next_features: ArrayLike,
    rewards: ArrayLike,
    discounts: ArrayLike,
    *,
    trace: float = 0.0,
    ridge: float = 0.0,
    ends: ArrayLike | None = None,
) -> Floats:
    r"""LSTD(lambda) (Bradtke & Barto 1996; Boyan 1999; Sutton & Barto 2018, section 9.8).

        z_t = discount_{t-1} trace z_{t-1} + x_t
        (\sum_t z_t (x_t - discount_t x'_t)^T + ridge I) w = \sum_t z_t r_t

    So w solves \sum_t x_t (G_t - x_t^T w) = 0, G_t the lambda-return that it bootstraps. The ridge
    is added to the sum, not to a mean; the book's epsilon is it.

    Args:
        features: ``(N, d)``, x_t of the states left, in the order of time.
        next_features: ``(N, d)``, x'_t of the states reached; what stands beside a discount of 0
            does not count.
        rewards: ``(N,)``.
        discounts: ``(N,)``, gamma, or 0 where the transition terminated, which ends an episode.
        trace: lambda, in [0, 1].
        ridge: 0 or more.
        ends: ``(N,)`` bool, True at the last step of an episode. Only a trace needs it, and only
            where an episode is truncated: there its discount is not 0.

    Returns:
        Weights ``(d,)``.

    Raises:
        ValueError: A wrong shape or number, or equations without a unique solution.

    >>> lstd([[1.0], [2.0]], [[2.0], [0.0]], [1.0, 1.0], [1.0, 0.0])  # A = -1 + 4, b = 1 + 2
    array([1.])
    """
    x = finite_array("features", features, "N", "d")
    count, size = x.shape
    x_next = finite_array("next_features", next_features, count, size)
    r, gammas = _checked_steps(rewards, discounts, count)
    check_fractions("trace", trace)
    _check_ridge(ridge)
    decays = trace * gammas
    if ends is not None:
        last = np.asarray(ends)
        if last.shape != (count,) or last.dtype != np.bool_:
            raise ValueError(
                f"got ends of shape {last.shape} and type {last.dtype}: expected bool ({count},)"
            )
        decays = np.where(last, 0.0, decays)
    z = x.copy()
    for t in np.flatnonzero(decays[:-1]) + 1:
        z[t] += decays[t - 1] * z[t - 1]
    matrix = z.T @ (x - gammas[:, None] * x_next) + ridge * np.eye(size)
    return solve_unique(matrix, z.T @ r, otherwise=_SINGULAR)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BatchControl:
    """Action values that are linear in the features of pairs, and their greedy policy."""

    weights: Floats
    """``(d,)``."""
    iterations: int
    """How many were made."""
    converged: bool
    """Whether the weights have settled; otherwise the iterations ran out."""

    def action_values(self, features: ArrayLike) -> Floats:
        """Return ``(B, A)``, of the features ``(B, A, d)`` of all actions."""
        return finite_array("features", features, "B", "A", len(self.weights)) @ self.weights

    def act(self, features: ArrayLike) -> NDArray[np.int64]:
        """Return greedy actions ``(B,)``, of equal ones the first; features ``(B, A, d)``."""
        return self.action_values(features).argmax(1)


def lspi(
    features: ArrayLike,
    next_features: ArrayLike,
    rewards: ArrayLike,
    discounts: ArrayLike,
    *,
    ridge: float = 0.0,
    iterations: int = 100,
    tolerance: float = 1e-8,
    initial_weights: ArrayLike | None = None,
) -> BatchControl:
    r"""Least-squares policy iteration (Lagoudakis & Parr 2003), from transitions of any policy.

        \pi(s') = argmax_a x(s', a)^T w
        (\sum_t x_t (x_t - discount_t x(s'_t, \pi(s'_t)))^T + ridge I) w = \sum_t x_t r_t

    until w has settled. With features that cannot tell all pairs apart, policies can take turns for
    ever; ``converged`` is then False.

    Args:
        features: ``(N, d)``, of the pairs (s_t, a_t), in any order.
        next_features: ``(N, A, d)``, of all actions in the states reached.
        rewards: ``(N,)``.
        discounts: ``(N,)``, gamma, or 0 where the transition terminated.
        ridge: 0 or more.
        iterations: Policies evaluated at most.
        tolerance: Stop when no weight changes by more, relative to the largest weight or 1.
        initial_weights: ``(d,)``, the values that the first policy is greedy by; None is 0.

    Raises:
        ValueError: A wrong shape or number, or equations without a unique solution.
    """
    batch = _Batch.of(features, next_features, rewards, discounts)
    _check_ridge(ridge)
    rows = np.arange(len(batch.rewards))

    def evaluate(weights: Floats) -> Floats:
        chosen = (batch.next_features @ weights).argmax(1)
        following = batch.next_features[rows, chosen]
        return lstd(batch.features, following, batch.rewards, batch.discounts, ridge=ridge)

    return _settle(evaluate, batch.start(initial_weights), iterations, tolerance)


def fitted_q(
    features: ArrayLike,
    next_features: ArrayLike,
    rewards: ArrayLike,
    discounts: ArrayLike,
    *,
    ridge: float = 0.0,
    iterations: int = 1000,
    tolerance: float = 1e-8,
    initial_weights: ArrayLike | None = None,
) -> BatchControl:
    r"""Fitted Q iteration (Ernst, Geurts & Wehenkel 2005), fitted by linear least squares.

        y_t = r_t + discount_t max_a x(s'_t, a)^T w
        w <- argmin_w \sum_t (x_t^T w - y_t)^2 + ridge ||w||^2

    until w has settled. The paper fits trees, which average and so cannot diverge; this can.

    Args:
        features: ``(N, d)``, of the pairs (s_t, a_t), in any order.
        next_features: ``(N, A, d)``, of all actions in the states reached.
        rewards: ``(N,)``.
        discounts: ``(N,)``, gamma, or 0 where the transition terminated.
        ridge: 0 or more.
        iterations: Fits at most.
        tolerance: Stop when no weight changes by more, relative to the largest weight or 1.
        initial_weights: ``(d,)``; None is 0.

    Raises:
        ValueError: A wrong shape or number, or a fit that is not unique.
        DivergenceError: The weights left the range of float64.
    """
    batch = _Batch.of(features, next_features, rewards, discounts)
    _check_ridge(ridge)
    x = batch.features
    gram = x.T @ x + ridge * np.eye(x.shape[1])
    fit = solve_unique(gram, x.T, otherwise=_SINGULAR)  # (d, N)

    def evaluate(weights: Floats) -> Floats:
        best = (batch.next_features @ weights).max(1)
        return fit @ (batch.rewards + batch.discounts * best)

    return _settle(evaluate, batch.start(initial_weights), iterations, tolerance)


def pair_features(features: ArrayLike, actions: int) -> Floats:
    """Return features of pairs, each action with weights of its own.

    Args:
        features: ``(B, d)``, of states.
        actions: A.

    Returns:
        ``(B, A, A * d)``; row b, a holds the features of b in block a and 0 elsewhere. Those of the
        actions taken are ``pairs[np.arange(B), taken]``.

    >>> pair_features([[1.0, 2.0]], 2)
    array([[[1., 2., 0., 0.],
            [0., 0., 1., 2.]]])
    """
    x = finite_array("features", features, "B", "d")
    check_counts("actions", actions)
    pairs = np.zeros((len(x), actions, actions, x.shape[1]))
    for action in range(actions):
        pairs[:, action, action] = x
    return pairs.reshape(len(x), actions, -1)


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    features: Floats
    next_features: Floats
    rewards: Floats
    discounts: Floats

    @staticmethod
    def of(
        features: ArrayLike, next_features: ArrayLike, rewards: ArrayLike, discounts: ArrayLike
    ) -> _Batch:
        x = finite_array("features", features, "N", "d")
        count, size = x.shape
        x_next = finite_array("next_features", next_features, count, "A", size)
        return _Batch(x, x_next, *_checked_steps(rewards, discounts, count))

    def start(self, initial_weights: ArrayLike | None) -> Floats:
        size = self.features.shape[1]
        if initial_weights is None:
            return np.zeros(size)
        return finite_array("initial_weights", initial_weights, size)


def _checked_steps(rewards: ArrayLike, discounts: ArrayLike, count: int) -> tuple[Floats, Floats]:
    r = finite_array("rewards", rewards, count)
    gammas = finite_array("discounts", discounts, count)
    check_fractions("discounts", gammas)
    return r, gammas


def _check_ridge(ridge: float) -> None:
    if not 0 <= ridge < math.inf:
        raise ValueError(f"ridge={ridge}: use a finite number of 0 or more")


def _settle(
    improve: Callable[[Floats], Floats], weights: Floats, iterations: int, tolerance: float
) -> BatchControl:
    """Improve the weights until they do not change any more."""
    check_counts("iterations", iterations)
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance={tolerance}: use a finite number of 0 or more")
    for iteration in range(1, iterations + 1):
        with np.errstate(all="ignore"):  # what leaves float64 is reported below
            improved = improve(weights)
        if not np.isfinite(improved).all():
            raise DivergenceError(
                f"iteration {iteration} of {iterations} left the range of float64: give a ridge, "
                "a smaller discount or features that tell more pairs apart"
            )
        change = np.abs(improved - weights).max()
        weights = improved
        if change <= tolerance * max(1.0, np.abs(weights).max()):
            return BatchControl(weights=weights, iterations=iteration, converged=True)
    return BatchControl(weights=weights, iterations=iterations, converged=False)
