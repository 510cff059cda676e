"""Rewards of a completion's steps, for process supervision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from posttrain.rewards.base import Sample
from posttrain.rewards.checking import RewardError, reward_name

__all__ = ["StepRewards", "step_tensors"]


class StepRewards(Protocol):
    """Scores each step of a completion, such as a process reward model does."""

    def __call__(self, samples: Sequence[Sample], /) -> Sequence[Sequence[tuple[int, float]]]:
        """Return for each sample its steps in order: index of the last token, and a reward.

        Indices count the completion's tokens, ``sample.tokens``, from 0; rewards are finite. A
        completion may have no steps.
        """
        ...


def step_tensors(rewards: StepRewards, samples: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor]:
    """Return ends ``(B, K)`` int64, rewards ``(B, K)`` float32 and mask ``(B, K)`` bool.

    K is the largest number of steps, at least 1; where the mask is False there is no step.

    >>> sample = Sample(prompt="", completion="", answer="", tokens=(7, 8, 9))
    >>> step_tensors(lambda samples: [[(0, 1.0), (2, -1.0)], []], [sample, sample])
    (tensor([[0, 2],
            [0, 0]]), tensor([[ 1., -1.],
            [ 0.,  0.]]), tensor([[ True,  True],
            [False, False]]))

    Raises:
        RewardError: Not one list for each sample, ends that do not rise within the completion, or
            a reward that is not finite.
    """
    name, found = reward_name(rewards), rewards(samples)
    if len(found) != len(samples):
        raise RewardError(
            f"step rewards {name} returned {len(found)} lists for {len(samples)} samples: expected "
            "one list of (last token, reward) for each"
        )
    longest = max([1, *map(len, found)])
    ends = torch.zeros(len(samples), longest, dtype=torch.int64)
    values = torch.zeros(len(samples), longest)
    mask = torch.zeros(len(samples), longest, dtype=torch.bool)
    for row, (steps, sample) in enumerate(zip(found, samples, strict=True)):
        if not steps:
            continue
        places = torch.tensor([end for end, _ in steps])
        ends[row, : len(steps)], mask[row, : len(steps)] = places, True
        values[row, : len(steps)] = torch.tensor([float(value) for _, value in steps])
        rises = bool((places.diff() > 0).all()) and 0 <= places[0] <= places[-1]
        if not rises or places[-1] >= len(sample.tokens) or not values[row].isfinite().all():
            raise RewardError(
                f"step rewards {name} returned {list(steps)} for row {row}, a completion of "
                f"{len(sample.tokens)} tokens: expected ends that rise within it, from 0 on, and "
                "finite rewards"
            )
    return ends, values, mask
