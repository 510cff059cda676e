"""Exploration: how often to try something else, and what.

``Linear`` and ``Constant`` count environment steps over all environments and processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rl.action_laws import mask_logits

__all__ = ["Constant", "Linear", "Schedule", "epsilon_greedy"]


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value}: it is a probability or a share, between 0 and 1")


class Schedule(Protocol):
    """A share, from 0 to 1, that depends on how many environment steps were taken."""

    def __call__(self, env_steps: int) -> float:
        """Return the value after ``env_steps`` steps."""
        ...


@dataclass(frozen=True, slots=True)
class Constant:
    """Always the same.

    >>> Constant(0.1)(1_000_000)
    0.1
    """

    value: float

    def __post_init__(self) -> None:
        _check_share("value", self.value)

    def __call__(self, env_steps: int) -> float:
        """Return the value."""
        return self.value


@dataclass(frozen=True, slots=True)
class Linear:
    """A straight line from ``start`` to ``end`` over ``env_steps`` steps, then ``end``.

    Mnih et al. 2015, doi:10.1038/nature14236, Methods (1 to .1 over a million frames).

    >>> [Linear(1.0, 0.5, 4)(step) for step in range(6)]
    [1.0, 0.875, 0.75, 0.625, 0.5, 0.5]
    """

    start: float
    end: float
    env_steps: int
    """After so many the end is reached."""

    def __post_init__(self) -> None:
        if self.env_steps < 1:
            raise ValueError(
                f"env_steps={self.env_steps}: the line takes at least one step; for a value that "
                "never changes use Constant"
            )
        _check_share("start", self.start)
        _check_share("end", self.end)

    def __call__(self, env_steps: int) -> float:
        """Return the value after ``env_steps`` steps."""
        if env_steps >= self.env_steps:
            return self.end
        return self.start + (self.end - self.start) * env_steps / self.env_steps


def epsilon_greedy(
    q_values: np.ndarray,
    epsilon: float,
    uniforms: np.ndarray,
    action_masks: np.ndarray | None = None,
) -> np.ndarray:
    """Return the best action, or any with probability ``epsilon`` (Sutton and Barto 2018, 2.2).

    One uniform u for each row decides both: where u < epsilon, u / epsilon is uniform again and
    picks the action. Among equal values the first is the best.

    Args:
        q_values: ``(B, A)``.
        epsilon: Between 0 and 1.
        uniforms: ``(B,)`` in [0, 1).
        action_masks: ``(B, A)`` bool, True where an action may be taken; at least one in each row.

    Returns:
        ``(B,)`` int64.

    >>> q_values = np.array([[0.0, 1.0, 0.0]] * 4)
    >>> epsilon_greedy(q_values, 0.5, np.array([0.0, 0.25, 0.49, 0.5]))
    array([0, 1, 2, 1])
    """
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon={epsilon}: it is a probability, between 0 and 1")
    if q_values.ndim != 2 or uniforms.shape != q_values.shape[:1]:
        raise ValueError(
            f"got q_values of shape {q_values.shape} and uniforms of shape {uniforms.shape}, "
            "expected (B, A) and (B,)"
        )
    best = (q_values if action_masks is None else mask_logits(q_values, action_masks)).argmax(1)
    explores = uniforms < epsilon
    if not explores.any():
        return best
    count = np.full(len(best), q_values.shape[1]) if action_masks is None else action_masks.sum(1)
    share = np.where(explores, uniforms, 0.0) / epsilon  # which may round up to 1
    place = np.minimum((share * count).astype(np.int64), count - 1)
    if action_masks is not None:  # the action of this place among those that may be taken
        place = (action_masks.cumsum(1) <= place[:, None]).sum(1)
    return np.where(explores, place, best)
