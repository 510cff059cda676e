from __future__ import annotations

import math

import pytest
import torch

from posttrain.trainers import (
    BatchRelative,
    GroupRelative,
    LeaveOneOut,
    MaxRL,
    ReinforcePlusPlus,
)
from posttrain.trainers.advantages import Advantages, estimate

REWARDS = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.5, 0.5]])
LENGTHS = torch.tensor([[1, 2], [3, 1], [2, 4]])


def test_reinforce_plus_plus_weighs_completions_by_their_lengths() -> None:
    # (1 x 1 token, 0 x 2, 3 x 3, 0 x 1, .5 x 2, .5 x 4): sum 13, 13 tokens: mean 1
    actual = ReinforcePlusPlus(std=None, baseline=False).of_batch(REWARDS, LENGTHS)
    torch.testing.assert_close(actual, REWARDS - 1)
    # less the group means: .5 -.5 1.5 -1.5 0 0: sum .5 - 1 + 4.5 - 1.5 = 2.5 over 13
    actual = ReinforcePlusPlus(std=None).of_batch(REWARDS, LENGTHS)
    centred = torch.tensor([[0.5, -0.5], [1.5, -1.5], [0, 0]])
    torch.testing.assert_close(actual, centred - 2.5 / 13)


def test_reinforce_plus_plus_alone_takes_all_lengths_to_be_equal() -> None:
    actual = ReinforcePlusPlus(baseline=False)(torch.tensor([[1.0, 0.0, 0.0, 1.0]]))
    torch.testing.assert_close(actual, torch.tensor([[1.0, -1.0, -1.0, 1.0]]))


def test_batch_relative_divides_by_the_deviation_of_all_rewards() -> None:
    deviation = REWARDS.double().std(correction=0).float()
    centred = torch.tensor([[0.5, -0.5], [1.5, -1.5], [0, 0]])
    torch.testing.assert_close(BatchRelative(eps=0.0)(REWARDS), centred / deviation)


def test_maxrl_divides_by_the_success_rate() -> None:
    assert MaxRL()(torch.tensor([[1.0, 0.0, 0.0, 0.0]])).tolist() == [[3, -1, -1, -1]]


@pytest.mark.parametrize(
    "advantages",
    [GroupRelative(), LeaveOneOut(), MaxRL(), BatchRelative(), ReinforcePlusPlus()],
    ids=lambda a: type(a).__name__,
)
def test_two_processes_get_what_one_gets(advantages: Advantages) -> None:
    whole = estimate(advantages, REWARDS, LENGTHS, gather=lambda x: x, share=range(3))
    for share in (range(0), range(2), range(2, 3)):
        mine = slice(share.start, share.stop)
        answers = iter([REWARDS, LENGTHS])  # what ``gather`` returns
        part = estimate(
            advantages,
            REWARDS[mine],
            LENGTHS[mine],
            gather=lambda _, answers=answers: next(answers),  # type: ignore[misc]  # bound now
            share=share,
        )
        torch.testing.assert_close(part, whole[mine], rtol=0, atol=0)


@pytest.mark.parametrize(
    "advantages", [GroupRelative(), LeaveOneOut(), MaxRL(), BatchRelative(), ReinforcePlusPlus()]
)
def test_equal_rewards_get_exactly_0(advantages: Advantages) -> None:
    rewards = torch.full((3, 2), 0.1)
    for gathered in (rewards, rewards[:0]):
        lengths = LENGTHS[: len(gathered)]
        share = range(len(gathered))
        actual = estimate(advantages, gathered, lengths, gather=lambda x: x, share=share)
        torch.testing.assert_close(actual, torch.zeros_like(gathered), rtol=0, atol=0)


def test_completion_without_counted_tokens_does_not_move_the_others() -> None:
    rewards = torch.tensor([[1.0, math.nan], [3.0, 0.0]])
    lengths = torch.tensor([[2, 0], [1, 1]])
    actual = ReinforcePlusPlus(std=None, baseline=False).of_batch(rewards, lengths)
    # 1 + 1 + 3 + 0 over 4 tokens
    torch.testing.assert_close(actual, torch.tensor([[-0.25, 0.0], [1.75, -1.25]]))
