"""Advantage estimators as configs: what a policy trainer makes of a step's rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from posttrain.rewards.base import Sample
from posttrain.rewards.step_model import ModelSteps
from posttrain.rewards.steps import StepRewards, step_tensors
from rl.estimators import (
    group_relative_advantages,
    leave_one_out_advantages,
    maxrl_advantages,
    process_supervised_advantages,
    reinforce_plus_plus_advantages,
)

__all__ = [
    "Advantages",
    "BatchRelative",
    "GroupRelative",
    "LeaveOneOut",
    "MaxRL",
    "OfTokens",
    "ProcessSupervised",
    "ReinforcePlusPlus",
    "WholeBatch",
    "check_advantages",
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


@runtime_checkable
class OfTokens(Protocol):
    """Advantages that differ within a completion."""

    def of_tokens(self, samples: Sequence[Sample], mask: Tensor, group_size: int, /) -> Tensor:
        """Return ``(B, T)`` advantages, 0 where nothing counts.

        Args:
            samples: B completions, group after group.
            mask: ``(B, T)`` bool, where their tokens stand in the rows.
            group_size: Completions of each prompt.
        """
        ...


def check_advantages(advantages: Advantages) -> None:
    """Raise UsageError for what can be seen before any work, as a missing process reward model."""
    if isinstance(advantages, ProcessSupervised) and isinstance(advantages.steps, ModelSteps):
        advantages.steps.check()


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


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessSupervised:
    r"""Rewards of steps, normalised over the steps of the group (GRPO's process supervision).

    A token's advantage is the sum of the normalised rewards of the steps that end at it or later
    (Shao et al. 2024, arXiv:2402.03300, section 4.1.3); after the last step it is 0. The reward of
    the whole completion is logged, and nothing else.
    """

    steps: StepRewards
    std: Literal["population", "sample"] | None = "population"
    """Divides the squares by the number of steps of the group or by one less."""
    eps: float = 1e-4
    """Added to the deviation, in units of reward."""

    def __call__(self, rewards: Tensor, /) -> Tensor:
        """Refuse: of whole completions there are no steps.

        Raises:
            TypeError: Always.
        """
        raise TypeError("ProcessSupervised knows steps, not completions: call of_tokens")

    def of_tokens(self, samples: Sequence[Sample], mask: Tensor, group_size: int, /) -> Tensor:
        """Return ``(B, T)`` advantages."""
        ends, rewards, some = step_tensors(self.steps, samples)
        shape = (len(samples) // group_size, group_size, -1)
        by_step = process_supervised_advantages(
            rewards.view(shape), some.view(shape), std=self.std, eps=self.eps
        ).view(rewards.shape)
        if not len(samples):
            return torch.zeros_like(mask, dtype=torch.float32)
        mask = mask.cpu()
        place = (mask.cumsum(-1) > 0).cumsum(-1) - 1  # of a token in its completion
        before = (some[:, None] & (ends[:, None] < place[..., None])).sum(-1)  # (B, T) steps done
        padded = torch.nn.functional.pad(by_step, (0, 1))  # after the last step: 0
        return torch.where(mask, padded.gather(1, before), 0.0)
