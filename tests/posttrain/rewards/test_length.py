from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from posttrain.rewards import CosineLength, OverlongPenalty, RewardError, Sample


def sample(length: int, answer: str = "", finish_reason: str = "stop") -> Sample:
    return Sample(
        prompt="", completion="", answer=answer, tokens=(3,) * length, finish_reason=finish_reason
    )


def right(samples: Sequence[Sample]) -> list[float]:
    return [float(s.answer == "right") for s in samples]


def test_overlong_penalty_of_hand_worked_lengths() -> None:
    # free up to 6, then a quarter a token, -1 from 10 on
    lengths = (0, 5, 6, 7, 8, 9, 10, 11, 1000)
    rewards = OverlongPenalty(10, 4)([sample(n) for n in lengths])
    expected = torch.tensor([0, 0, 0, -0.25, -0.5, -0.75, -1, -1, -1])
    torch.testing.assert_close(rewards, expected, rtol=0, atol=0)
    assert not torch.signbit(rewards[0])
    assert OverlongPenalty(10, 4)([]).shape == (0,)


def test_overlong_penalty_may_grow_from_the_first_token() -> None:
    rewards = OverlongPenalty(max_length=4, buffer=4)([sample(1), sample(4)])
    assert rewards.tolist() == [-0.25, -1.0]


@pytest.mark.parametrize(("length", "buffer"), [(10, 0), (10, 11), (0, 0)])
def test_overlong_penalty_without_room_to_grow_is_refused(length: int, buffer: int) -> None:
    with pytest.raises(ValueError, match=f"max_length={length}, buffer={buffer}"):
        OverlongPenalty(length, buffer)


def test_cosine_length_goes_from_start_to_end() -> None:
    reward = CosineLength(8, reward=right, right=(2.0, 1.0), wrong=(-10.0, 0.0), exceeded=-7.0)
    samples = [
        sample(0, "right"), sample(4, "right"), sample(8, "right"), sample(9, "right"),
        sample(0), sample(4), sample(8), sample(8, "right", "length"), sample(2, "right"),
    ]  # fmt: skip
    between = 1 + (1 + math.cos(math.pi / 4)) / 2
    expected = torch.tensor([2, 1.5, 1, -7, -10, -5, 0, -7, between])
    torch.testing.assert_close(reward(samples), expected)
    assert reward([]).shape == (0,)


def test_cosine_length_checks_the_reward_that_it_asks() -> None:
    with pytest.raises(RewardError):
        CosineLength(8, reward=lambda samples: [math.nan])([sample(1)])


def test_cosine_length_counts_the_timeouts_of_its_reward() -> None:
    class Slow:
        timeouts = 3

        def __call__(self, samples: Sequence[Sample], /) -> torch.Tensor:
            return torch.zeros(len(samples))

    assert CosineLength(8, reward=Slow()).timeouts == 3
    assert CosineLength(8, reward=right).timeouts == 0


@pytest.mark.parametrize(
    ("settings", "match"),
    [({"max_length": 0}, "max_length=0"), ({"max_length": 4, "wrong": (0.0, math.nan)}, "wrong=")],
)
def test_cosine_length_refuses_settings_without_meaning(
    settings: dict[str, int], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        CosineLength(**settings)
