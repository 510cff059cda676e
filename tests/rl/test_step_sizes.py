from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.step_sizes import Constant, Power, check_size, evaluate_steps


def test_power_of_hand_worked_counts() -> None:
    # 3 / sqrt(k) at 1, 4, 9
    halves = Power(scale=3.0, exponent=0.5)
    assert [halves(1), halves(4), halves(9)] == [3.0, 1.5, 1.0]
    assert [Power()(k) for k in (1, 2, 4, 5)] == [1.0, 0.5, 0.25, 0.2]
    assert Power(scale=2.0, exponent=0.0)(99) == 2.0
    np.testing.assert_array_equal(halves(np.array([[1], [4]])), [[3.0], [1.5]], strict=True)


def test_constant_is_the_same_for_every_count() -> None:
    assert [Constant(0.1)(k) for k in (1, 10**9)] == [0.1, 0.1]
    np.testing.assert_array_equal(Constant(0.1)(np.array([1, 7])), [0.1, 0.1], strict=True)


@given(
    scale=st.floats(1e-3, 1e3), exponent=st.floats(0, 3), k=st.lists(st.integers(1, 10**6)).map(set)
)
def test_arrays_of_counts_give_what_single_counts_do(
    scale: float, exponent: float, k: set[int]
) -> None:
    size, counts = Power(scale, exponent), sorted(k)
    single = np.array([size(count) for count in counts])
    # numpy's power and that of the C library may differ in the last bit
    np.testing.assert_allclose(size(np.array(counts, dtype=np.int64)), single, rtol=4e-16)


@pytest.mark.parametrize(
    ("exponent", "satisfies"),
    [(0.0, False), (0.5, False), (0.500001, True), (1.0, True), (1.000001, False), (2.0, False)],
)
def test_robbins_monro_conditions_hold_above_a_half_up_to_one(
    exponent: float, satisfies: bool
) -> None:
    assert Power(7.0, exponent).satisfies_robbins_monro is satisfies
    assert Constant(0.01).satisfies_robbins_monro is False


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, -math.inf])
def test_size_that_is_not_positive_and_finite_is_refused_in_one_line(bad: float) -> None:
    for name, make in (
        ("scale", lambda: Power(scale=bad)),
        ("value", lambda: Constant(bad)),
        ("rate", lambda: evaluate_steps(bad, 3, name="rate")),
        (r"rate\(2\)", lambda: evaluate_steps(lambda k: [1.0, bad][k - 1], 2, name="rate")),
    ):
        with pytest.raises(ValueError, match=rf"{name}={bad}: .*greater than 0") as raised:
            make()
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("bad", [-0.5, math.nan, math.inf])
def test_exponent_that_lets_steps_grow_or_vanish_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=rf"exponent={bad}: .*must not grow"):
        Power(exponent=bad)


def test_size_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match=r"value='1e-4': a step size is a number, not a str"):
        Constant("1e-4")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(TypeError, match=r"step_size=None: .*NoneType"):
        check_size("step_size", None)  # type: ignore[arg-type]  # on purpose


def test_evaluated_steps_are_counted_from_1() -> None:
    assert evaluate_steps(Power(), 4, name="a") == [1.0, 0.5, 1 / 3, 0.25]
    assert evaluate_steps(1, 2, name="a") == [1.0, 1.0]
    assert evaluate_steps(lambda k: 10 - k, 2, name="a") == [9.0, 8.0]
    with pytest.raises(ValueError, match=r"steps=0: use at least 1"):
        evaluate_steps(Power(), 0, name="a")


def test_power_beyond_the_range_is_refused_and_not_an_overflow() -> None:
    with pytest.raises(ValueError, match=r"a\(6\)=0\.0"):
        evaluate_steps(Power(exponent=400.0), 6, name="a")  # 6^400 is 10^311
    np.testing.assert_array_equal(Power(exponent=400.0)(np.array([1, 6])), [1.0, 0.0])
