from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rl.estimators import masked_mean, masked_standardize, masked_sum
from rl.estimators.scaling import binary_scale

Masked = Callable[..., Tensor]
ALL: tuple[Masked, ...] = (masked_sum, masked_mean, masked_standardize)
JUNK = (math.nan, math.inf, -math.inf, 3e38)
AXES = (None, 0, 1, -1, (0, 1))


def equal(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_sum_and_mean_of_hand_worked_rows() -> None:
    x = torch.tensor([[1.0, 2.0, 4.0], [8.0, math.nan, 16.0]])
    mask = torch.tensor([[True, True, False], [True, False, True]])
    equal(masked_sum(x, mask), torch.tensor(27.0))
    equal(masked_sum(x, mask, axis=1), torch.tensor([3.0, 24.0]))
    equal(masked_sum(x, mask, axis=0), torch.tensor([9.0, 2.0, 16.0]))
    equal(masked_mean(x, mask), torch.tensor(6.75))
    equal(masked_mean(x, mask, axis=1), torch.tensor([1.5, 12.0]))
    equal(masked_mean(x, mask, axis=0), torch.tensor([4.5, 2.0, 16.0]))
    equal(masked_mean(x, mask, axis=(0, 1)), torch.tensor(6.75))


def test_standardize_of_hand_worked_rows() -> None:
    # (0, 0, 0, 0, 5): mean 1, population variance 20/5 = 4.  (1, 3): mean 2, deviation 1.
    x = torch.tensor([[0.0, 0.0, 0.0, 0.0, 5.0, 9.0], [1.0, 7.0, 7.0, 7.0, 7.0, 3.0]])
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[0, 5] = mask[1, 1:5] = False
    equal(
        masked_standardize(x, mask, axis=1),
        torch.tensor([[-0.5, -0.5, -0.5, -0.5, 2.0, 0.0], [-1.0, 0.0, 0.0, 0.0, 0.0, 1.0]]),
    )


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("junk", JUNK)
def test_what_is_masked_counts_for_nothing_and_gets_gradient_0(
    function: Masked, axis: int | tuple[int, ...] | None, junk: float
) -> None:
    g = torch.Generator().manual_seed(0)
    clean = torch.randn(4, 6, generator=g)
    mask = torch.rand(4, 6, generator=g) < 0.5
    mask[1], mask[:, 2] = False, False
    weights = torch.randn(4, 6, generator=g)

    def run(fill: float) -> tuple[Tensor, Tensor]:
        x = torch.where(mask, clean, fill).requires_grad_()
        result = function(x, mask, axis)
        (result * (weights if result.shape == weights.shape else 1.0)).sum().backward()
        assert x.grad is not None
        return result.detach(), x.grad

    for with_junk, without in zip(run(junk), run(0.0), strict=True):
        equal(with_junk, without)
    result, grad = run(junk)
    assert result.isfinite().all()
    assert grad.isfinite().all()
    assert (grad[~mask] == 0).all()


@pytest.mark.parametrize("function", ALL)
def test_nothing_counted_gives_0_and_gradient_0(function: Masked) -> None:
    x = torch.full((2, 3), math.nan, requires_grad=True)
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    for axis in AXES:
        result = function(x, nothing, axis)
        assert (result == 0).all()
        (grad,) = torch.autograd.grad(result.sum(), x)
        equal(grad, torch.zeros(2, 3))


@pytest.mark.parametrize("function", ALL)
def test_empty_tensors_are_nothing_counted(function: Masked) -> None:
    x, mask = torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool)
    assert (function(x, mask) == 0).all()
    assert function(x, mask, axis=1).shape[0] == 0


@pytest.mark.parametrize("value", [0.1, 1 / 3, -7.7, 3e38, 1e-45, 0.0])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_standardize_is_exactly_0_where_all_counted_entries_are_equal(
    value: float, count: int
) -> None:
    x = torch.full((8,), math.nan)
    x[:count] = value
    x.requires_grad_()
    result = masked_standardize(x, torch.arange(8) < count)
    equal(result, torch.zeros(8))
    (gradient,) = torch.autograd.grad(result @ torch.arange(8.0), x)
    equal(gradient, torch.zeros(8))


@pytest.mark.parametrize("unit", [1e-30, 1e30, 3e38])
def test_standardize_keeps_its_meaning_when_squares_leave_the_range(unit: float) -> None:
    x = torch.tensor([unit, 0.0, 0.0, unit], requires_grad=True)
    result = masked_standardize(x, torch.ones(4, dtype=torch.bool))
    torch.testing.assert_close(result, torch.tensor([1.0, -1.0, -1.0, 1.0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_standardize_survives_differences_beyond_the_range(dtype: torch.dtype) -> None:
    # 1, -1 and 3 have mean 1 and variance 8/3.
    largest = torch.finfo(dtype).max
    x = torch.tensor([1.0, -1.0, 3.0, math.inf], dtype=torch.float64).div(3).mul(largest).to(dtype)
    result = masked_standardize(x, torch.tensor([True, True, True, False]))
    wanted = torch.tensor([0.0, -math.sqrt(1.5), math.sqrt(1.5), 0.0], dtype=dtype)
    torch.testing.assert_close(result, wanted, atol=4 * torch.finfo(dtype).eps, rtol=0)
    ends = torch.tensor([largest, -largest, largest, -largest], dtype=dtype, requires_grad=True)
    result = masked_standardize(ends, torch.ones(4, dtype=torch.bool))
    equal(result, torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=dtype))
    (gradient,) = torch.autograd.grad(result[0], ends)
    assert gradient.isfinite().all()


def test_standardize_of_1e38_minus_1e38_3e38() -> None:
    x = torch.tensor([1e38, -1e38, 3e38])
    result = masked_standardize(x, torch.ones(3, dtype=torch.bool))
    torch.testing.assert_close(result, torch.tensor([0.0, -1.2247449, 1.2247449]))


@given(seed=st.integers(0, 2**16), shift=st.floats(-50, 50))
def test_standardized_entries_have_mean_0_deviation_1_and_forget_a_shift(
    seed: int, shift: float
) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 7, generator=g, dtype=torch.float64)
    mask = torch.rand(5, 7, generator=g) < 0.6
    mask[:, :2] = True
    result = masked_standardize(x, mask, axis=1)
    for row, keep in zip(result, mask, strict=True):
        assert abs(row[keep].mean()) < 1e-12
        assert abs(row[keep].std(correction=0) - 1) < 1e-12
    torch.testing.assert_close(masked_standardize(3 * x + shift, mask, axis=1), result)


@pytest.mark.parametrize("function", ALL)
def test_gradients_agree_with_finite_differences(function: Masked) -> None:
    g = torch.Generator().manual_seed(2)
    x = torch.randn(3, 4, generator=g, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]]).bool()
    for axis in (None, 1):
        assert torch.autograd.gradcheck(lambda x, axis=axis: function(x, mask, axis), x)


def test_masks_broadcast_and_every_entry_is_counted() -> None:
    x = torch.tensor([[1.0, 3.0], [5.0, 7.0], [9.0, 11.0]])
    rows = torch.tensor([[True], [True], [False]])
    equal(masked_sum(x, rows), torch.tensor(16.0))
    equal(masked_mean(x, rows), torch.tensor(4.0))
    equal(masked_mean(x, torch.tensor([True, False]), axis=0), torch.tensor([5.0, 0.0]))
    standardized = masked_standardize(x, rows, axis=1)
    equal(standardized, torch.tensor([[-1.0, 1.0], [-1.0, 1.0], [0.0, 0.0]]))


def test_types_float64_stays_and_whole_numbers_become_floats() -> None:
    mask = torch.tensor([True, True, False])
    for function in ALL:
        assert function(torch.ones(3, dtype=torch.float64), mask).dtype == torch.float64
    equal(masked_sum(torch.tensor([1, 2, 4]), mask), torch.tensor(3))
    equal(masked_mean(torch.tensor([1, 2, 4]), mask), torch.tensor(1.5))
    equal(masked_standardize(torch.tensor([1, 3, 4]), mask), torch.tensor([-1.0, 1.0, 0.0]))


def test_nan_that_is_counted_is_not_hidden() -> None:
    x, everything = torch.tensor([1.0, math.nan]), torch.ones(2, dtype=torch.bool)
    for function in ALL:
        assert function(x, everything).isnan().any()


@given(x=st.floats(2.0**-126, 2.0**127, width=32))
def test_binary_scale_is_a_power_of_two_that_brings_x_into_1_to_2(x: float) -> None:
    scale = binary_scale(torch.tensor([-x, 0.0])).item()
    assert math.frexp(scale)[0] == 0.5
    assert 1 <= x / scale <= 2
