from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from rl.estimators import (
    generalized_advantages,
    group_relative_advantages,
    leave_one_out_advantages,
)

Std = Literal["population", "sample"] | None
STDS: tuple[Std, ...] = ("population", "sample", None)


def equal(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


# --- group-relative ---------------------------------------------------------------------------


def test_population_deviation_of_hand_worked_groups() -> None:
    # (1, 0, 0, 1): mean 1/2, deviation 1/2.  (5, 0, 0, 0, 0): mean 1, squares 16 + 4 = 20, 20/5 = 4
    equal(
        group_relative_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0]]), std="population"),
        torch.tensor([[1.0, -1.0, -1.0, 1.0]]),
    )
    equal(
        group_relative_advantages(torch.tensor([[5.0, 0.0, 0.0, 0.0, 0.0]]), std="population"),
        torch.tensor([[2.0, -0.5, -0.5, -0.5, -0.5]]),
    )


def test_sample_deviation_divides_by_one_less() -> None:
    # (2, 0, 1): mean 1, squares 2, 2/2 = 1: the deviations themselves.
    equal(
        group_relative_advantages(torch.tensor([[2.0, 0.0, 1.0]]), std="sample"),
        torch.tensor([[1.0, -1.0, 0.0]]),
    )


def test_no_deviation_leaves_the_distance_from_the_mean() -> None:
    equal(
        group_relative_advantages(torch.tensor([[4.0, 0.0], [1.0, 2.0]]), std=None),
        torch.tensor([[2.0, -2.0], [-0.5, 0.5]]),
    )


def test_eps_is_added_to_the_deviation_not_to_the_variance() -> None:
    # deviation 1, eps 3: divided by 4; sqrt(1 + 3) would be 2
    rewards = torch.tensor([[2.0, 0.0]])
    equal(
        group_relative_advantages(rewards, std="population", eps=3.0), torch.tensor([[0.25, -0.25]])
    )
    equal(group_relative_advantages(rewards, std=None, eps=3.0), torch.tensor([[1.0, -1.0]]))


@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("eps", [0.0, 1e-8])
@pytest.mark.parametrize("reward", [0.1, 1 / 3, -7.7, 3e38, 1e-45, 0.0])
@pytest.mark.parametrize("size", [2, 3, 7, 8])
def test_group_of_equal_rewards_gets_exactly_0(
    std: Std, eps: float, reward: float, size: int
) -> None:
    rewards = torch.full((3, size), reward)
    equal(group_relative_advantages(rewards, std=std, eps=eps), torch.zeros(3, size))
    equal(leave_one_out_advantages(rewards), torch.zeros(3, size))


def test_equal_group_beside_an_unequal_one_changes_neither() -> None:
    rewards = torch.tensor([[0.1, 0.1, 0.1], [2.0, 0.0, 1.0]])
    equal(
        group_relative_advantages(rewards, std="sample"),
        torch.tensor([[0.0, 0.0, 0.0], [1.0, -1.0, 0.0]]),
    )


@pytest.mark.parametrize("unit", [1e-30, 1e30, 3e38])
def test_advantages_keep_their_meaning_when_squares_leave_the_range(unit: float) -> None:
    advantages = group_relative_advantages(torch.tensor([[unit, 0.0, 0.0, unit]]), std="population")
    torch.testing.assert_close(advantages, torch.tensor([[1.0, -1.0, -1.0, 1.0]]))


def test_a_span_beyond_the_range_of_floating_point_is_no_trouble() -> None:
    rewards = torch.tensor([[3e38, -3e38, -3e38, 3e38]])
    one = torch.tensor([[1.0, -1.0, -1.0, 1.0]])
    torch.testing.assert_close(group_relative_advantages(rewards, std="population"), one)
    equal(group_relative_advantages(rewards, std=None), rewards)
    # 2e38 - (0 - 2e38) / 2 = 3e38, though their span of 4e38 is beyond float32
    others = leave_one_out_advantages(torch.tensor([[2e38, 0.0, -2e38]]))
    torch.testing.assert_close(others, torch.tensor([[3e38, 0.0, -3e38]]), rtol=1e-6, atol=1e32)


def test_rewards_that_differ_in_their_last_bit_are_told_apart() -> None:
    rewards = torch.tensor([[1.0, 1.0 + 2**-23]])
    equal(group_relative_advantages(rewards, std="population"), torch.tensor([[-1.0, 1.0]]))


def test_unknown_std_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"std='unbiased' is unknown.*'population'.*'sample'.*None"
    ):
        group_relative_advantages(torch.ones(2, 2), std="unbiased")  # type: ignore[arg-type]  # on purpose


def test_negative_eps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"eps=-1\.0"):
        group_relative_advantages(torch.ones(2, 2), std="population", eps=-1.0)


def test_group_of_one_has_no_sample_deviation_and_no_others() -> None:
    with pytest.raises(ValueError, match=r"shape \(5, 1\).*at least 2"):
        group_relative_advantages(torch.ones(5, 1), std="sample")
    with pytest.raises(ValueError, match=r"shape \(5, 1\).*at least 2"):
        leave_one_out_advantages(torch.ones(5, 1))
    equal(group_relative_advantages(torch.ones(5, 1), std="population"), torch.zeros(5, 1))
    with pytest.raises(ValueError, match="at least 1"):
        group_relative_advantages(torch.tensor(1.0), std=None)


def test_no_groups_give_no_advantages() -> None:
    assert group_relative_advantages(torch.zeros(0, 4), std="sample").shape == (0, 4)
    assert leave_one_out_advantages(torch.zeros(0, 4)).shape == (0, 4)


@pytest.mark.parametrize("std", STDS)
def test_leading_axes_are_groups_of_their_own(std: Std) -> None:
    rewards = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    whole = group_relative_advantages(rewards, std=std)
    for index in ((0, 0, 0), (1, 2, 4)):
        equal(whole[index], group_relative_advantages(rewards[index], std=std))


def test_types_float64_stays_and_whole_numbers_become_floats() -> None:
    doubles = torch.tensor([[0.1, 0.4]], dtype=torch.float64)
    for advantages in (
        group_relative_advantages(doubles, std="population"),
        leave_one_out_advantages(doubles),
    ):
        assert advantages.dtype == torch.float64
    whole = torch.tensor([[3, 1]])
    equal(group_relative_advantages(whole, std=None), torch.tensor([[1.0, -1.0]]))
    equal(leave_one_out_advantages(whole > 2), torch.tensor([[1.0, -1.0]]))


def test_advantages_carry_no_gradient() -> None:
    x = torch.randn(2, 4, requires_grad=True)
    assert not group_relative_advantages(x, std="population").requires_grad
    assert not leave_one_out_advantages(x).requires_grad
    assert not generalized_advantages(x, x, x, x, x).requires_grad


groups = hnp.arrays("float64", (3, 5), elements=st.floats(-1e3, 1e3, width=32)).map(torch.tensor)


@given(rewards=groups, shift=st.integers(-1000, 1000), factor=st.sampled_from([0.5, 2.0, 3.0]))
def test_group_advantages_ignore_a_constant_and_a_unit(
    rewards: Tensor, shift: int, factor: float
) -> None:
    # Rounded to a grid, so that shifting them rounds nothing.
    rewards = (rewards * 64).round() / 64
    advantages = group_relative_advantages(rewards, std="sample")
    moved = group_relative_advantages(factor * (rewards + shift), std="sample")
    torch.testing.assert_close(moved, advantages, rtol=1e-9, atol=1e-9)


@given(rewards=groups)
def test_group_advantages_agree_with_the_textbook(rewards: Tensor) -> None:
    rewards = (rewards * 64).round() / 64
    centred = rewards - rewards.mean(-1, keepdim=True)
    for std, correction in (("population", 0), ("sample", 1)):
        deviation = rewards.std(-1, correction=correction, keepdim=True)
        expected = torch.where(deviation == 0, 0.0, centred / (deviation + 1e-4))
        actual = group_relative_advantages(rewards, std=std, eps=1e-4)  # type: ignore[arg-type]  # a str
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


# --- leave one out ----------------------------------------------------------------------------


def test_leave_one_out_of_hand_worked_group() -> None:
    # (6, 0, 3): 6 - 3/2, 0 - 9/2, 3 - 6/2
    equal(
        leave_one_out_advantages(torch.tensor([[6.0, 0.0, 3.0]])), torch.tensor([[4.5, -4.5, 0.0]])
    )


@given(rewards=groups)
def test_leave_one_out_is_the_centred_reward_times_g_over_g_minus_1(rewards: Tensor) -> None:
    expected = group_relative_advantages(rewards, std=None) * 5 / 4
    torch.testing.assert_close(leave_one_out_advantages(rewards), expected, rtol=1e-9, atol=1e-9)


@given(rewards=groups, reward=st.floats(-10, 10))
def test_leave_one_out_baseline_does_not_depend_on_its_own_reward(
    rewards: Tensor, reward: float
) -> None:
    other = rewards.clone()
    other[:, 0] = reward
    baseline = rewards[:, 0] - leave_one_out_advantages(rewards)[:, 0]
    after = other[:, 0] - leave_one_out_advantages(other)[:, 0]
    torch.testing.assert_close(after, baseline, rtol=1e-9, atol=1e-9)


# --- generalized ------------------------------------------------------------------------------


def test_generalized_advantages_of_hand_worked_episode() -> None:
    # A_2 = 1;  A_1 = 1 + .25 * 1;  A_0 = 1 + .25 * 1.25  (gamma = lambda = 1/2, V = 0)
    rewards, zeros, half = torch.ones(3), torch.zeros(3), torch.tensor([0.5, 0.5, 0.0])
    advantages = generalized_advantages(rewards, zeros, zeros, half, half)
    equal(advantages, torch.tensor([1.3125, 1.25, 1.0]))


def test_truncated_step_bootstraps_and_terminal_step_does_not() -> None:
    # r + discount V' - V with r = 1, V = 2, V' = 4: 1 + 2 - 2 truncated, 1 - 2 terminal
    one, two, four = torch.ones(2), torch.full((2,), 2.0), torch.full((2,), 4.0)
    discounts = torch.tensor([0.5, 0.0])
    advantages = generalized_advantages(one, two, four, discounts, torch.zeros(2))
    equal(advantages, torch.tensor([1.0, -1.0]))


@given(seed=st.integers(0, 2**16))
def test_trace_of_1_sums_rewards_and_trace_of_0_looks_one_step_ahead(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, 3, 6, generator=g, dtype=torch.float64)
    final = torch.randn(3, 1, generator=g, dtype=torch.float64)
    next_values = torch.cat([values[:, 1:], final], dim=1)
    gammas, ones = torch.full((3, 6), 0.9, dtype=torch.float64), torch.ones(3, 6)
    ahead = generalized_advantages(rewards, values, next_values, gammas, torch.zeros(3, 6))
    torch.testing.assert_close(ahead, rewards + 0.9 * next_values - values)
    returns = [
        sum(0.9**k * rewards[:, t + k] for k in range(6 - t)) + 0.9 ** (6 - t) * final[:, 0]
        for t in range(6)
    ]
    whole = generalized_advantages(rewards, values, next_values, gammas, ones)
    torch.testing.assert_close(whole, torch.stack(returns, dim=1) - values)


@given(seed=st.integers(0, 2**16), cut=st.integers(1, 7))
def test_advantages_do_not_leak_across_a_truncation(seed: int, cut: int) -> None:
    g = torch.Generator().manual_seed(seed)
    rewards, values, next_values = torch.randn(3, 2, 8, generator=g)
    discounts, traces = torch.full((2, 8), 0.9), torch.full((2, 8), 0.8)
    traces[:, [cut - 1, -1]] = 0.0
    steps = (rewards, values, next_values, discounts, traces)
    whole = generalized_advantages(*steps)
    parts = [
        generalized_advantages(*(x[:, rows] for x in steps)) for rows in (slice(cut), slice(cut, 8))
    ]
    equal(whole, torch.cat(parts, dim=1))


def test_generalized_advantages_of_no_steps_and_of_doubles() -> None:
    empty = torch.zeros(4, 0)
    assert generalized_advantages(empty, empty, empty, empty, empty).shape == (4, 0)
    one = torch.ones(1, dtype=torch.float64)
    assert generalized_advantages(one, one, one, one, one).dtype == torch.float64
    assert math.isclose(generalized_advantages(one, one, one, one, one).item(), 1.0)


def test_generalized_advantages_of_hand_worked_segment_with_a_truncation_inside() -> None:
    # steps: goes on, truncated, terminal, cut off by the end; gamma = lambda = 1/2, V = 2, 4, 2, 4
    # delta = 1 + 4/2 - 2, 2 + 8/2 - 4, 4 - 2, 8 + 16/2 - 4;  A_0 = 1 + 2/4
    rewards, values = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([2.0, 4.0, 2.0, 4.0])
    next_values = torch.tensor([4.0, 8.0, math.nan, 16.0])
    discounts, traces = torch.tensor([0.5, 0.5, 0.0, 0.5]), torch.tensor([0.5, 0.0, 0.5, 0.5])
    advantages = generalized_advantages(rewards, values, next_values, discounts, traces)
    equal(advantages, torch.tensor([1.5, 2.0, 2.0, 12.0]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_advantages_before_a_cut_do_not_see_what_follows_it(bad: float) -> None:
    one, half = torch.ones(3), torch.full((3,), 0.5)
    after = torch.tensor([1.0, 1.0, bad])
    # a truncation: delta = 1 + .5 - 1;  A_0 = .5 + .25 * .5
    cut = torch.tensor([0.5, 0.0, 0.5])
    advantages = generalized_advantages(after, after, one, half, cut)
    equal(advantages[:2], torch.tensor([0.625, 0.5]))
    # a terminal state, whose value is anything: delta_1 = 1 - 1
    next_values = torch.tensor([1.0, bad, 1.0])
    discounts = torch.tensor([0.5, 0.0, 0.5])
    advantages = generalized_advantages(after, after, next_values, discounts, half)
    equal(advantages[:2], torch.tensor([0.5, 0.0]))
    # the last step, whose trace is anything: A_0 = .5 + .25 * .5
    last = torch.tensor([0.5, bad])
    equal(generalized_advantages(*[one[:2]] * 3, half[:2], last), torch.tensor([0.625, 0.5]))


@pytest.mark.parametrize("place", range(1, 5))
def test_generalized_advantages_broadcast_nothing(place: int) -> None:
    steps = [torch.ones(2, 3) for _ in range(5)]
    steps[place] = torch.ones(2, 1)
    with pytest.raises(ValueError, match=r"of shape \(2, 1\) for rewards of shape \(2, 3\)"):
        generalized_advantages(*steps)
    with pytest.raises(ValueError, match="last axis is time"):
        generalized_advantages(*[torch.tensor(1.0)] * 5)
