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
    maxrl_advantages,
    process_supervised_advantages,
    reinforce_plus_plus_advantages,
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


# --- over the batch ---------------------------------------------------------------------------


def test_deviation_of_the_batch_divides_what_the_group_mean_is_taken_from() -> None:
    # (4, 0), (1, 3): group means 2, 2; of all four: mean 2, squares 4 + 4 + 1 + 1 = 10
    rewards = torch.tensor([[4.0, 0.0], [1.0, 3.0]], dtype=torch.float64)
    centred = torch.tensor([[2.0, -2.0], [-1.0, 1.0]], dtype=torch.float64)
    for std, count in (("population", 4), ("sample", 3)):
        actual = group_relative_advantages(rewards, std=std, eps=0.5, over="batch")  # type: ignore[arg-type]  # a str
        torch.testing.assert_close(actual, centred / (math.sqrt(10 / count) + 0.5))
    equal(group_relative_advantages(rewards, std=None, over="batch"), centred)


def test_deviation_of_the_batch_counts_the_distance_between_groups() -> None:
    # All rewards 0, 0, 4, 4: deviation 2, but each group is level: exactly 0.
    level = torch.tensor([[0.1, 0.1], [4.0, 4.0]])
    equal(group_relative_advantages(level, std="sample", over="batch"), torch.zeros(2, 2))
    # (0, 0.5) beside (8, 8.5): mean 4.25, squares 2 (4.25^2 + 3.75^2) = 64.25, over 4
    two = torch.tensor([[0.0, 0.5], [8.0, 8.5]], dtype=torch.float64)
    expected = torch.tensor([[-0.25, 0.25]] * 2).double() / math.sqrt(64.25 / 4)
    actual = group_relative_advantages(two, std="population", over="batch")
    torch.testing.assert_close(actual, expected)


def test_one_group_is_its_own_batch() -> None:
    rewards = torch.randn(3, 1, 5, generator=torch.Generator().manual_seed(0)).double()
    for std in STDS:
        torch.testing.assert_close(
            group_relative_advantages(rewards, std=std, eps=0.1, over="batch"),
            group_relative_advantages(rewards, std=std, eps=0.1),
        )
    assert group_relative_advantages(torch.zeros(0, 4), std="sample", over="batch").shape == (0, 4)


def test_over_is_checked() -> None:
    with pytest.raises(ValueError, match=r"over='rows' is unknown.*'group' or the 'batch'"):
        group_relative_advantages(torch.ones(2, 2), std=None, over="rows")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(ValueError, match=r"over='batch' needs the groups"):
        group_relative_advantages(torch.ones(2), std="population", over="batch")


# --- relative to the success rate -------------------------------------------------------------


def test_maxrl_of_hand_worked_groups() -> None:
    # (1, 0, 0, 0): mean 1/4: 3, -1, -1, -1.  (2, 1, 0, 1): mean 1.  None right: 0.
    rewards = torch.tensor([[1.0, 0, 0, 0], [2, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
    expected = torch.tensor([[3.0, -1, -1, -1], [1, 0, -1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    equal(maxrl_advantages(rewards), expected)


@given(rewards=groups.map(torch.abs), unit=st.sampled_from([0.25, 2.0, 1e30]))
def test_maxrl_is_the_centred_reward_over_the_mean_in_any_unit(
    rewards: Tensor, unit: float
) -> None:
    rewards = (rewards * 64).round() / 64
    mean = rewards.mean(-1, keepdim=True)
    expected = torch.where(mean == 0, 0.0, (rewards - mean) / mean)
    torch.testing.assert_close(maxrl_advantages(rewards * unit), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("reward", [0.1, 1 / 3, 3e38, 1e-45])
def test_maxrl_of_equal_rewards_is_exactly_0(reward: float) -> None:
    equal(maxrl_advantages(torch.full((2, 7), reward)), torch.zeros(2, 7))


def test_maxrl_refuses_negative_rewards() -> None:
    with pytest.raises(ValueError, match=r"reward of -0\.5.*0 or more"):
        maxrl_advantages(torch.tensor([[1.0, -0.5]]))


# --- over all tokens --------------------------------------------------------------------------

MASK = torch.tensor([[False, True, True, True], [False, True, False, False]])


def test_reinforce_plus_plus_of_hand_worked_rows() -> None:
    # rewards 0 (three tokens) and 4 (one): mean 1, squares 3 + 9 = 12
    rewards = torch.tensor([0.0, 4.0], dtype=torch.float64)
    centred = torch.tensor([[0.0, -1, -1, -1], [0, 3, 0, 0]]).double()
    for std, scale in (("population", math.sqrt(3)), ("sample", 2.0), (None, 1.0)):
        actual = reinforce_plus_plus_advantages(rewards, MASK, std=std)  # type: ignore[arg-type]  # a str
        torch.testing.assert_close(actual, centred / scale)


def test_reinforce_plus_plus_of_equal_rewards_is_exactly_0() -> None:
    for std in STDS:
        for reward in (0.1, 1 / 3, 3e38, 1e-45):
            rewards = torch.full((2,), reward)
            equal(reinforce_plus_plus_advantages(rewards, MASK, std=std), torch.zeros(2, 4))


def test_reinforce_plus_plus_does_not_count_rows_without_tokens() -> None:
    rewards = torch.tensor([0.0, 4.0, math.nan])
    mask = torch.cat([MASK, torch.zeros(1, 4, dtype=torch.bool)])
    actual = reinforce_plus_plus_advantages(rewards, mask, std="population")
    equal(actual[:2], reinforce_plus_plus_advantages(rewards[:2], MASK, std="population"))
    equal(actual[2], torch.zeros(4))
    nothing = reinforce_plus_plus_advantages(rewards, torch.zeros_like(mask), std="sample")
    equal(nothing, torch.zeros(3, 4))
    assert reinforce_plus_plus_advantages(rewards[:0], mask[:0], std="sample").shape == (0, 4)


def test_reinforce_plus_plus_checks_its_shapes_and_its_std() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\) for a mask of shape \(2, 4\)"):
        reinforce_plus_plus_advantages(torch.ones(3), MASK, std=None)
    with pytest.raises(ValueError, match="std='unbiased' is unknown"):
        reinforce_plus_plus_advantages(torch.ones(2), MASK, std="unbiased")  # type: ignore[arg-type]  # on purpose


@given(seed=st.integers(0, 999), shift=st.integers(-9, 9), factor=st.sampled_from([0.5, 3.0]))
def test_reinforce_plus_plus_has_mean_0_and_deviation_1_over_tokens(
    seed: int, shift: int, factor: float
) -> None:
    g = torch.Generator().manual_seed(seed)
    rewards = torch.randint(9, (6,), generator=g).double()
    mask = torch.rand(6, 5, generator=g) < 0.6
    advantages = reinforce_plus_plus_advantages(rewards, mask, std="population")
    spread = rewards[mask.any(1)].unique().numel() > 1
    torch.testing.assert_close(advantages[mask].mean().item(), 0.0, rtol=0, atol=1e-12)
    if spread:
        deviation = advantages[mask].std(correction=0).item()
        torch.testing.assert_close(deviation, 1.0, rtol=1e-12, atol=0)
    moved = reinforce_plus_plus_advantages(factor * (rewards + shift), mask, std="population")
    torch.testing.assert_close(moved, advantages)


# --- steps ------------------------------------------------------------------------------------

STEPS = torch.tensor([[[1.0, 0.0, 2.0], [1.0, math.nan, math.inf]]], dtype=torch.float64)
STEP_MASK = torch.tensor([[[True, True, True], [True, False, False]]])


def test_process_supervised_advantages_of_hand_worked_steps() -> None:
    # counted 1 0 2 1: mean 1, squares 2: z = 0 -1 1 0 over the deviation; sums from each step on
    sums = torch.tensor([[[0.0, 0, 1], [0, 0, 0]]]).double()
    for std, scale in (("population", math.sqrt(2 / 4)), ("sample", math.sqrt(2 / 3)), (None, 1)):
        actual = process_supervised_advantages(STEPS, STEP_MASK, std=std)  # type: ignore[arg-type]  # a str
        torch.testing.assert_close(actual, sums / scale)
    eps = process_supervised_advantages(STEPS, STEP_MASK, std="population", eps=0.5)
    torch.testing.assert_close(eps, sums / (math.sqrt(0.5) + 0.5))


def test_a_step_is_credited_with_what_comes_after_it() -> None:
    # one completion with steps 0 and 4 beside one with 2: mean 2: z = -2 2 | 0; sums 0 2 | 0
    steps = torch.tensor([[[0.0, 4.0], [2.0, 9.0]]])
    mask = torch.tensor([[[True, True], [True, False]]])
    actual = process_supervised_advantages(steps, mask, std=None)
    equal(actual, torch.tensor([[[0.0, 2.0], [0.0, 0.0]]]))


def test_process_supervised_advantages_of_equal_steps_are_exactly_0() -> None:
    for std in STDS:
        for reward in (0.1, 1 / 3, 3e38, 1e-45):
            steps = torch.where(STEP_MASK, reward, math.nan)
            equal(process_supervised_advantages(steps, STEP_MASK, std=std), torch.zeros_like(steps))
    nothing = torch.zeros_like(STEP_MASK)
    equal(process_supervised_advantages(STEPS, nothing, std="sample"), torch.zeros_like(STEPS))


def test_groups_of_steps_are_normalised_apart() -> None:
    g = torch.Generator().manual_seed(3)
    steps = torch.randn(4, 3, 5, generator=g).double()
    mask = torch.rand(4, 3, 5, generator=g) < 0.7
    for std in STDS:
        whole = process_supervised_advantages(steps, mask, std=std)
        for p in range(4):
            one = process_supervised_advantages(steps[p : p + 1], mask[p : p + 1], std=std)
            torch.testing.assert_close(whole[p : p + 1], one)


def test_one_step_a_completion_is_outcome_supervision() -> None:
    rewards = torch.randn(3, 5, 1, generator=torch.Generator().manual_seed(0)).double()
    for std in STDS:
        steps = process_supervised_advantages(rewards, torch.ones(3, 5, 1).bool(), std=std)
        torch.testing.assert_close(
            steps[..., 0], group_relative_advantages(rewards[..., 0], std=std)
        )


def test_process_supervised_advantages_check_their_shapes() -> None:
    with pytest.raises(ValueError, match=r"step_rewards of shape \(1, 2, 3\).*\(1, 2\)"):
        process_supervised_advantages(STEPS, STEP_MASK[..., 0], std=None)
    with pytest.raises(ValueError, match=r"eps=-1"):
        process_supervised_advantages(STEPS, STEP_MASK, std=None, eps=-1.0)


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
