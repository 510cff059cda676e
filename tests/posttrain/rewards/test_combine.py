from collections.abc import Sequence
from typing import Any

import pytest
import torch

from posttrain.rewards import AnswerReward, FormatReward, RewardError, Sample, WeightedSum, score

GOOD = "<think>1 + 1</think> <answer>2</answer>"
SAMPLES = [
    Sample(prompt="1+1?", completion=GOOD, answer="2"),
    Sample(prompt="1+1?", completion="<answer>2</answer>", answer="2"),
    Sample(prompt="1+1?", completion=GOOD, answer="3"),
    Sample(prompt="1+1?", completion="", answer="2"),
]


def returns(values: Any) -> Any:  # noqa: ANN401 - right and wrong ones
    def reward(samples: Sequence[Sample]) -> Any:  # noqa: ANN401 - as above
        return values

    return reward


def test_weighted_sum_adds_accuracy_and_format() -> None:
    both = WeightedSum({"accuracy": (1.0, AnswerReward()), "format": (0.25, FormatReward())})
    rewards = both(SAMPLES)
    assert rewards.dtype == torch.float32
    assert rewards.tolist() == [1.25, 1.0, 0.25, 0.0]
    parts = both.parts(SAMPLES)
    assert list(parts) == ["accuracy", "format"]
    assert parts["accuracy"].tolist() == [1, 1, 0, 0]
    assert parts["format"].tolist() == [1, 0, 1, 0]
    assert torch.equal(both.combine(parts), rewards)
    assert both([]).shape == (0,)


@pytest.mark.parametrize("weight", [1.0, 0.0, -1])
@pytest.mark.parametrize(
    ("values", "said"),
    [
        (None, "reward bad returned None"),
        ([1, 1, None, 1], "reward bad returned None for row 2"),
        (torch.tensor([1, 1, 1, float("nan")]), "reward bad returned nan for row 3"),
        ([1, float("-inf"), 1, 1], "reward bad returned -inf for row 1"),
        ([1, 1, 1], r"reward bad returned shape \(3,\) for 4 samples"),
        (torch.ones(4, 1), r"reward bad returned shape \(4, 1\)"),
    ],
)
def test_weighted_sum_names_the_reward_and_the_row_at_any_weight(
    weight: float, values: object, said: str
) -> None:
    both = WeightedSum({"good": (1.0, AnswerReward()), "bad": (weight, returns(values))})
    with pytest.raises(ValueError, match=said):
        both(SAMPLES)


def test_weighted_sum_that_overflows_is_an_error() -> None:
    huge = WeightedSum({"huge": (10.0, returns([3e38] * 4))})
    with pytest.raises(RewardError, match="reward huge returned inf for row 0"):
        huge(SAMPLES)


def test_weighted_sum_may_hold_a_weighted_sum() -> None:
    inner = WeightedSum({"a": (2.0, returns([1.0])), "b": (1.0, returns([3.0]))})
    assert WeightedSum({"inner": (0.5, inner)})(SAMPLES[:1]).tolist() == [2.5]


def test_weighted_sum_counts_the_timeouts_of_its_parts() -> None:
    answer = AnswerReward()
    both = WeightedSum({"accuracy": (1.0, answer), "format": (1.0, FormatReward())})
    answer.timeouts = 3
    assert both.timeouts == 3


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        ({}, "mapping from names"),
        ([("a", 1.0)], "mapping from names"),
        ({"a": AnswerReward()}, "reward a: expected"),
        ({"a": (1.0,)}, "reward a: expected"),
        ({"a": (float("nan"), AnswerReward())}, "reward a: the weight nan"),
        ({"a": ("1", AnswerReward())}, "reward a: the weight '1'"),
        ({"a": (1.0, "answer")}, "reward a: 'answer' cannot be called"),
    ],
)
def test_weighted_sum_refuses_what_it_cannot_weigh(rewards: Any, said: str) -> None:  # noqa: ANN401 - wrong ones
    with pytest.raises(ValueError, match=said):
        WeightedSum(rewards)


def test_score_gives_the_parts_of_a_sum_and_checks_any_other_reward() -> None:
    both = WeightedSum({"a": (2.0, returns([1, 2])), "b": (1.0, returns([0, 1]))})
    total, parts = score(both, SAMPLES[:2])
    assert total.tolist() == [2, 5]
    assert {name: values.tolist() for name, values in parts.items()} == {"a": [1, 2], "b": [0, 1]}
    total, parts = score(returns([1, 2]), SAMPLES[:2], seconds=20)
    assert (total.tolist(), parts) == ([1, 2], {})
    with pytest.raises(RewardError, match=r"reward returns.* returned None for row 1"):
        score(returns([1, None]), SAMPLES[:2])
