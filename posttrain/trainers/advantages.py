"""Advantage estimators as configs: what a policy trainer makes of a step's rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from rl.estimators import group_relative_advantages, leave_one_out_advantages

__all__ = ["Advantages", "GroupRelative", "LeaveOneOut"]


class Advantages(Protocol):
    """Turns the rewards of groups into advantages."""

    def __call__(self, rewards: Tensor, /) -> Tensor:
        """Return ``(P, G)`` advantages of ``(P, G)`` rewards; a group of equal rewards gets 0."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupRelative:
    """Reward less the group's mean, in deviations of the group (GRPO, arXiv:2402.03300)."""

    std: Literal["population", "sample"] | None = "population"
    """Divides the squares by G or by G - 1; null leaves the deviation out, as in Dr. GRPO."""
    eps: float = 1e-4
    """Added to the deviation, in units of reward."""

    def __call__(self, rewards: Tensor, /) -> Tensor:
        """Return ``(P, G)`` advantages."""
        return group_relative_advantages(rewards, std=self.std, eps=self.eps)


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaveOneOut:
    """Reward less the mean of the group's others (RLOO, arXiv:2402.14740)."""

    def __call__(self, rewards: Tensor, /) -> Tensor:
        """Return ``(P, G)`` advantages in units of reward."""
        return leave_one_out_advantages(rewards)
