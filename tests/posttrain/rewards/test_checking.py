import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from posttrain.rewards import Sample, check_rewards, checked
from posttrain.rewards.checking import RewardError, reward_name

SAMPLES = [Sample(prompt="", completion=text, answer="") for text in "abc"]


@pytest.mark.parametrize(
    "values",
    [
        torch.tensor([1.0, 0.5, -2.0]),
        torch.tensor([1.0, 0.5, -2.0], dtype=torch.float64, requires_grad=True),
        [1, 0.5, -2],
        (True, 0.5, -2.0),
        np.array([1.0, 0.5, -2.0]),
        np.array([1.0, 0.5, -2.0], dtype=object),
        [torch.tensor(1), np.float32(0.5), -2],
    ],
)
def test_check_rewards_takes_every_kind_of_numbers(values: Any) -> None:  # noqa: ANN401 - any kind
    rewards = check_rewards("mine", values, 3)
    torch.testing.assert_close(rewards, torch.tensor([1.0, 0.5, -2.0]), rtol=0, atol=0)
    assert not rewards.requires_grad


def test_check_rewards_returns_a_copy() -> None:
    values = torch.ones(2)
    check_rewards("mine", values, 2).zero_()
    assert values.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("values", "row"),
    [
        ([0, None, 1], 1),
        ([0, 1, float("nan")], 2),
        ([float("inf"), 1, 2], 0),
        ([0, "1", 2], 1),
        ([0, 1, 10**400], 2),
        ([0, 1e300, 2], 1),
        ([0, [1], 2], 1),
        ([0, {}, 2], 1),
        ([0, torch.ones(2), 2], 1),
        (torch.tensor([0, float("nan"), 2]), 1),
        (torch.tensor([0, 1, 1e300], dtype=torch.float64), 2),
        (np.array([0, None, 2], dtype=object), 1),
        (np.array([-np.inf, 1, 2]), 0),
    ],
)
def test_check_rewards_names_the_reward_and_the_row(values: Any, row: int) -> None:  # noqa: ANN401 - any kind
    with pytest.raises(RewardError, match=rf"reward mine returned .* for row {row}"):
        check_rewards("mine", values, 3)


@pytest.mark.parametrize(
    "values",
    [
        None,
        1.0,
        "abc",
        {"a": 1},
        iter([1, 2, 3]),
        [],
        [1, 2],
        [1, 2, 3, 4],
        torch.ones(()),
        torch.ones(3, 1),
        torch.ones(1, 3),
        np.ones((3, 3)),
        torch.ones(3, dtype=torch.complex64),
    ],
)
def test_check_rewards_names_the_reward_of_a_wrong_shape_or_kind(values: Any) -> None:  # noqa: ANN401 - any kind
    with pytest.raises(RewardError, match="reward mine returned"):
        check_rewards("mine", values, 3)


@pytest.mark.parametrize("seconds", [None, 20.0])
def test_checked_names_a_reward_that_raises_and_keeps_the_cause(seconds: float | None) -> None:
    def broken(samples: Sequence[Sample]) -> Tensor:
        raise ZeroDivisionError("by zero\nindeed")

    with pytest.raises(RewardError, match="reward mine raised ZeroDivisionError: by zero") as error:
        checked("mine", broken, SAMPLES, seconds=seconds)
    assert isinstance(error.value.__cause__, ZeroDivisionError)
    assert "\n" not in str(error.value)
    assert __file__ in str(error.value)


def test_checked_leaves_a_reward_behind_that_does_not_return() -> None:
    started = time.perf_counter()
    with pytest.raises(RewardError, match=r"slow did not return within 0\.1 s.*reward_seconds"):
        checked("slow", lambda samples: time.sleep(3), SAMPLES, seconds=0.1)  # type: ignore[arg-type, return-value]  # never gets there
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize("seconds", [None, 20.0])
def test_checked_calls_in_the_callers_grad_mode(seconds: float | None) -> None:
    def mode(samples: Sequence[Sample]) -> Tensor:
        return torch.full((len(samples),), float(torch.is_grad_enabled()))

    with torch.no_grad():
        assert checked("mode", mode, SAMPLES, seconds=seconds).tolist() == [0, 0, 0]
    assert checked("mode", mode, SAMPLES, seconds=seconds).tolist() == [1, 1, 1]


def test_checked_lets_an_interrupt_through() -> None:
    def interrupted(samples: Sequence[Sample]) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checked("mine", interrupted, SAMPLES)


def test_reward_name_is_that_of_the_function_or_class() -> None:
    assert reward_name(check_rewards) == "check_rewards"
    assert reward_name(SAMPLES[0]) == "Sample"
