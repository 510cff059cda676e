from __future__ import annotations

from collections.abc import Sequence

import pytest

from posttrain.rewards import Late, Sample, score
from posttrain.rewards.late import reward_at

SAMPLES = [Sample(prompt="", completion="", answer="")] * 2


def zeros(samples: Sequence[Sample]) -> list[float]:
    return [0.0] * len(samples)


def ones(samples: Sequence[Sample]) -> list[float]:
    return [1.0] * len(samples)


def test_one_reward_takes_the_place_of_the_other() -> None:
    reward = Late(first=zeros, then=ones, after=1_300)
    assert reward_at(reward, 1_300) is zeros
    assert reward_at(reward, 1_301) is ones
    assert reward_at(zeros, 5) is zeros
    assert reward_at(Late(first=zeros, then=ones, after=0), 1) is ones


def test_without_a_step_it_is_the_later_one() -> None:
    scores, parts = score(Late(first=zeros, then=ones, after=5), SAMPLES)
    assert scores.tolist() == [1.0, 1.0]
    assert parts == {}


def test_timeouts_are_those_of_both() -> None:
    class Slow:
        timeouts = 3

        def __call__(self, samples: Sequence[Sample], /) -> list[float]:
            return [0.0] * len(samples)

    assert Late(first=Slow(), then=Slow(), after=2).timeouts == 6


def test_a_negative_step_is_refused() -> None:
    with pytest.raises(ValueError, match="after=-1: give the last step"):
        Late(first=zeros, then=ones, after=-1)
