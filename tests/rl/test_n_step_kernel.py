from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rl.n_step_kernel import complete, push, take_in


def empty(steps: int, count: int) -> list[Any]:
    """Return ``begun``, ``held``, ``sums`` and ``discounts`` of so many environments."""
    held = np.zeros((steps, count), np.bool_)
    return [np.zeros(count, np.int64), held, np.zeros((steps, count)), np.zeros((steps, count))]


def test_two_steps_of_hand_worked_rewards() -> None:
    # gamma 1/2 in two environments: 1 + 4/2 = 3 (1/4) in the first, where the second step stays
    # held; the second terminates at once, with 2 (0).
    state, no = empty(2, 2), np.zeros(2, np.bool_)
    first = push(*state, np.array([1.0, 2.0]), 0.5, np.array([False, True]), no, ~no)
    assert [x.tolist() for x in first] == [[0, 1], [0, 1], [1], [1]]
    only = np.array([True, False])
    second = push(*state, np.array([4.0, 9.0]), 0.5, no, no, only)
    assert [x.tolist() for x in second] == [[0], [2], [0], [0]]
    assert state[2].ravel()[[0, 1]].tolist() == [3.0, 2.0]
    assert state[3].ravel()[[0, 1]].tolist() == [0.25, 0.0]
    assert state[1].tolist() == [[False, False], [True, False]]


@given(seed=st.integers(0, 2**16), steps=st.integers(1, 4), count=st.integers(1, 3))
def test_compiled_loops_are_the_readable_ones_bit_for_bit(
    seed: int, steps: int, count: int
) -> None:
    rng = np.random.default_rng(seed)
    one, other = empty(steps, count), empty(steps, count)
    for _ in range(8):
        rewards, valid = rng.standard_normal(count), rng.random(count) < 0.8
        terminated, truncated = rng.random((2, count)) < 0.2
        found = push(*one, rewards, 0.9, terminated, truncated, valid)
        begun, held, _, discounts = other
        expected = take_in.py_func(*other, rewards, 0.9, valid)
        expected += complete.py_func(begun, held, discounts, terminated, truncated, valid)
        pairs = [*zip(found, expected, strict=True), *zip(one, other, strict=True)]
        assert all(np.array_equal(a, b) for a, b in pairs)
