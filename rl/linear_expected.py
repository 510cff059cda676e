r"""What temporal-difference methods with linear functions do on average: their expected updates.

With X the features ``(S, d)``, D the state weights, P and r the target policy's transitions and
rewards, everything is in three moments (Sutton & Barto 2018, section 11.7):

    A = X^T D (I - discount P) X,   b = X^T D r,   C = X^T D X
    E[rho delta x] = b - A w,   E[rho discount x' x^T] = (C - A)^T
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rl.bellman import check_discount, checked_policy
from rl.linear_arrays import Floats, check_counts, finite_array
from rl.linear_exact import PolicyModel, check_state_weights, policy_model
from rl.mdp import TabularMDP, as_mdp
from rl.state_distribution import expected_visits, on_policy_distribution
from rl.step_sizes import check_size
from rl.stochastic import DivergenceError

if TYPE_CHECKING:
    import gymnasium

__all__ = ["GTD2", "TD", "TDC", "EmphaticTD", "ExpectedMethod", "Moments", "expected_updates"]


class Moments(NamedTuple):
    """The expectations that updates are made of."""

    A: Floats
    """``(d, d)``."""
    b: Floats
    """``(d,)``."""
    C: Floats
    """``(d, d)``."""


class ExpectedMethod(ABC):
    """A method of prediction, as `expected_updates` takes it."""

    learns_secondary: ClassVar[bool] = False
    """Whether it learns a second vector of weights, h."""

    def emphasis(self, state_weights: Floats, target: PolicyModel, discount: float) -> Floats:
        """Return ``(S,)``, how much the update of each state counts: as much as it is visited."""
        return state_weights

    @abstractmethod
    def direction(self, moments: Moments, w: Floats, h: Floats) -> tuple[Floats, Floats]:
        """Return where the weights w and h go, each ``(d,)``, both from their old values."""


@dataclass(frozen=True)
class TD(ExpectedMethod):
    r"""Semi-gradient TD(0) (Sutton & Barto 2018, eq. 11.2), which off-policy can diverge.

    w <- w + step_size \sum_s d(s) x(s) E[rho delta]
    """

    def direction(self, moments: Moments, w: Floats, h: Floats) -> tuple[Floats, Floats]:
        """Return b - A w."""
        return moments.b - moments.A @ w, np.zeros_like(h)


@dataclass(frozen=True)
class GTD2(ExpectedMethod):
    r"""GTD2 (Sutton et al. 2009; Sutton & Barto 2018, section 11.7).

    w <- w + step_size \sum_s d(s) E[rho (x - discount x')] (x^T h)
    h <- h + secondary_step_size \sum_s d(s) (E[rho delta] - x^T h) x
    """

    learns_secondary = True

    def direction(self, moments: Moments, w: Floats, h: Floats) -> tuple[Floats, Floats]:
        """Return A^T h and b - A w - C h."""
        return moments.A.T @ h, moments.b - moments.A @ w - moments.C @ h


@dataclass(frozen=True)
class TDC(ExpectedMethod):
    r"""TD with gradient correction (Sutton et al. 2009; Sutton & Barto 2018, section 11.7).

    w <- w + step_size \sum_s d(s) E[rho (delta x - discount x' (x^T h))]
    h <- h + secondary_step_size \sum_s d(s) (E[rho delta] - x^T h) x
    """

    learns_secondary = True

    def direction(self, moments: Moments, w: Floats, h: Floats) -> tuple[Floats, Floats]:
        """Return b - A w - (C - A)^T h and b - A w - C h."""
        error = moments.b - moments.A @ w
        return error - (moments.C - moments.A).T @ h, error - moments.C @ h


@dataclass(frozen=True)
class EmphaticTD(TD):
    r"""Emphatic TD(0), interest 1 in every state (Sutton, Mahmood & White 2016; S&B 11.8).

        f = (I - discount P^T)^{-1} d
        w <- w + step_size \sum_s f(s) x(s) E[rho delta]

    f(s) is d(s) times the expected follow-on trace in s.
    """

    def emphasis(self, state_weights: Floats, target: PolicyModel, discount: float) -> Floats:
        """Return f; with discount 1 the target must end from every state."""
        if discount == 1 and target.endless.any():
            raise ValueError(
                f"discount=1, but from state {np.flatnonzero(target.endless)[0]} the target never "
                "ends the episode, so its emphasis has no limit; use a discount below 1"
            )
        return expected_visits(discount * target.transitions, state_weights)


def expected_updates(
    mdp: str | gymnasium.Env | TabularMDP,
    features: ArrayLike,
    *,
    target: ArrayLike,
    behaviour: ArrayLike,
    discount: float,
    method: ExpectedMethod,
    step_size: float,
    secondary_step_size: float = 0.0,
    sweeps: int,
    initial_weights: ArrayLike,
    state_weights: ArrayLike | None = None,
) -> Floats:
    """Return the weights after ``sweeps`` expected updates of a method of prediction.

    Each sweep updates all states at once, each with its weight, and both vectors of weights from
    their old values; the secondary ones begin at 0.

    Args:
        mdp: A model, or an environment that has one.
        features: ``(S, d)``, a row for each state.
        target: The policy whose values are learned, actions ``(S,)`` or probabilities ``(S, A)``.
        behaviour: The policy that acts. It must take, in each state that has weight, every action
            that the target takes.
        discount: In [0, 1].
        method: ``TD()``, ``TDC()``, ``GTD2()``, ``EmphaticTD()``, or one of your own.
        step_size: Above 0.
        secondary_step_size: Above 0 for the methods that learn secondary weights; the others do not
            use it.
        sweeps: How many.
        initial_weights: ``(d,)``.
        state_weights: ``(S,)``, d, 0 or more and used as they are; None is the behaviour's
            ``on_policy_distribution``, which sums to 1.

    Returns:
        Weights ``(d,)``.

    Raises:
        ValueError: An argument is out of its range, before the work.
        DivergenceError: The weights left the range of float64; names the sweep.

    >>> coin = TabularMDP([[[0.5]]], [[1.0]])
    >>> coin_weights = expected_updates(
    ...     coin, [[1.0]], target=[0], behaviour=[0], discount=1.0, method=TD(), step_size=0.5,
    ...     sweeps=2, initial_weights=[0.0],
    ... )
    >>> coin_weights  # 0 + 1/2 (1 + 0 - 0);  1/2 + 1/2 (1 + 1/4 - 1/2)
    array([0.875])
    """
    model = as_mdp(mdp)
    check_discount(discount)
    x = finite_array("features", features, model.states, "d")
    w = finite_array("initial_weights", initial_weights, x.shape[1]).copy()
    check_size("step_size", step_size)
    if method.learns_secondary or secondary_step_size != 0:
        check_size("secondary_step_size", secondary_step_size)
    check_counts("sweeps", sweeps, least=0)
    wanted = _named_policy("target", target, model)
    acting = _named_policy("behaviour", behaviour, model)
    if state_weights is None:
        weights = on_policy_distribution(model, acting)
    else:
        weights = check_state_weights(state_weights, model.states)
    _check_covered(wanted, acting, weights)
    goal = policy_model(model, wanted)
    weights = method.emphasis(weights, goal, float(discount))
    weighted = weights[:, None] * x
    moments = Moments(
        A=weighted.T @ (x - discount * (goal.transitions @ x)),
        b=weighted.T @ goal.rewards,
        C=weighted.T @ x,
    )
    h = np.zeros_like(w)
    with np.errstate(all="ignore"):  # what leaves float64 is reported, with its sweep
        for sweep in range(1, sweeps + 1):
            toward, secondary = method.direction(moments, w, h)
            w = w + step_size * toward
            h = h + secondary_step_size * secondary
            if not (np.isfinite(w).all() and np.isfinite(h).all()):
                raise DivergenceError(
                    f"sweep {sweep} of {sweeps} left the range of float64: take smaller steps, or "
                    "a method that is stable off-policy, such as TDC"
                )
    return w


def _named_policy(name: str, policy: ArrayLike, mdp: TabularMDP) -> Floats:
    """Return a policy as probabilities ``(S, A)``; errors call it by its argument's name."""
    try:
        return checked_policy(np.asarray(policy), mdp)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _check_covered(target: Floats, behaviour: Floats, state_weights: Floats) -> None:
    never = (target > 0) & (behaviour == 0) & (state_weights > 0)[:, None]
    for state, action in np.argwhere(never):
        raise ValueError(
            f"in state {state} the target takes action {action}, but behaviour never does, so no "
            "ratio of probabilities corrects for it; give it a positive probability"
        )
