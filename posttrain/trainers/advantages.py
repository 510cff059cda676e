"""Advantage estimators as configs: what a policy trainer makes of a step's rewards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from rl.estimators import (
    group_relative_advantages,
    leave_one_out_advantages,
    maxrl_advantages,
    reinforce_plus_plus_advantages,
)

__all__ = [
    "Advantages",
    "BatchRelative",
    "GroupRelative",
    "LeaveOneOut",
    "MaxRL",
    "ReinforcePlusPlus",
    "WholeBatch",
    "estimate",
]


class Advantages(Protocol):
    """Turns the rewards of groups into advantages."""

    def __call__(self, rewards: Tensor, /) -> Tensor:
        """Return ``(P, G)`` advantages of ``(P, G)`` rewards; a group of equal rewards gets 0."""
        ...


@runtime_checkable
class WholeBatch(Protocol):
    """Advantages that need statistics beyond the group: of what all processes hold."""

    def of_batch(self, rewards: Tensor, lengths: Tensor, /) -> Tensor:
        """Return ``(P, G)`` advantages of all groups of a step.

        Args:
            rewards: ``(P, G)``, of all processes.
            lengths: ``(P, G)``, the counted tokens of each completion.
        """
        ...


def estimate(
    advantages: Advantages,
    rewards: Tensor,
    lengths: Tensor,
    *,
    gather: Callable[[Tensor], Tensor],
    share: range,
) -> Tensor:
    """Return the ``(P, G)`` advantages of this process's groups.

    Args:
        advantages: One that needs the whole batch is given it.
        rewards: ``(P, G)``, of this process's groups.
        lengths: ``(P, G)``, the counted tokens of each completion.
        gather: Returns the rows of every process, in order of rank.
        share: Where in the whole batch this process's groups stand.
    """
    if not isinstance(advantages, WholeBatch):
        return advantages(rewards)
    return advantages.of_batch(gather(rewards), gather(lengths))[share.start : share.stop]


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


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchRelative:
    """Reward less the group's mean, in deviations of the whole batch (arXiv:2508.08221)."""

    std: Literal["population", "sample"] | None = "population"
    """Divides the squares by the number of completions or by one less."""
    eps: float = 1e-4
    """Added to the deviation, in units of reward."""

    def __call__(self, rewards: Tensor, /) -> Tensor:
        """Return ``(P, G)`` advantages, these groups being the whole batch."""
        return group_relative_advantages(rewards, std=self.std, eps=self.eps, over="batch")

    def of_batch(self, rewards: Tensor, lengths: Tensor, /) -> Tensor:
        """Return ``(P, G)`` advantages of all groups."""
        return self(rewards)


@dataclass(frozen=True, kw_only=True, slots=True)
class MaxRL:
    """Reward less the group's mean, in means of the group (MaxRL, arXiv:2602.02710)."""

    def __call__(self, rewards: Tensor, /) -> Tensor:
        """Return ``(P, G)`` advantages of rewards of 0 or more."""
        return maxrl_advantages(rewards)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReinforcePlusPlus:
    """Rewards z-scored over all tokens of the batch (REINFORCE++, arXiv:2501.03262)."""

    std: Literal["population", "sample"] | None = "population"
    """Divides the squares by the number of counted tokens or by one less."""
    baseline: bool = True
    """Subtract the group's mean first, as the paper does with several completions a prompt. Then
    a group of equal rewards need not get 0: long completions shift the mean over tokens."""

    def __call__(self, rewards: Tensor, /) -> Tensor:
        """Return ``(P, G)`` advantages, every completion being as long as the others."""
        return self.of_batch(rewards, torch.ones_like(rewards, dtype=torch.int64))

    def of_batch(self, rewards: Tensor, lengths: Tensor, /) -> Tensor:
        """Return ``(P, G)`` advantages of all groups."""
        if self.baseline:
            rewards = group_relative_advantages(rewards, std=None)
        longest = int(lengths.max()) if lengths.numel() else 0
        places = torch.arange(max(1, longest), device=lengths.device)
        mask = places < lengths.reshape(-1, 1)
        tokens = reinforce_plus_plus_advantages(rewards.reshape(-1), mask, std=self.std)
        return tokens[:, 0].view(rewards.shape)
