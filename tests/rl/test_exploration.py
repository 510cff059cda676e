from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from rl.exploration import Constant, Linear, epsilon_greedy


def test_linear_reaches_its_ends_exactly_and_stays() -> None:
    schedule = Linear(1.0, 0.1, 10)
    assert [schedule(0), schedule(5), schedule(10), schedule(10**9)] == [1.0, 0.55, 0.1, 0.1]
    assert Constant(0.25)(0) == Constant(0.25)(10**9) == 0.25


def test_line_without_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"env_steps=0.*Constant"):
        Linear(1.0, 0.0, 0)


def test_uniform_below_epsilon_picks_evenly_and_above_takes_the_best() -> None:
    # epsilon 1/2, three actions: u in [0, 1/6), [1/6, 1/3), [1/3, 1/2) explore, the rest is greedy
    uniforms = np.array([0.0, 0.16, 0.17, 0.33, 0.34, 0.49, 0.5, 0.99])
    q_values = np.repeat([[1.0, 3.0, 2.0]], 8, axis=0)
    expected = [0, 0, 1, 1, 2, 2, 1, 1]
    assert epsilon_greedy(q_values, 0.5, uniforms).tolist() == expected


def test_masks_limit_both_the_best_and_the_random() -> None:
    # allowed 0 and 2: u / epsilon below 1/2 is action 0, above is action 2
    masks = np.repeat([[True, False, True]], 3, axis=0)
    q_values = np.repeat([[1.0, 3.0, 2.0]], 3, axis=0)
    uniforms = np.array([0.2, 0.3, 0.7])
    assert epsilon_greedy(q_values, 0.5, uniforms, masks).tolist() == [0, 2, 2]


@given(
    q_values=hnp.arrays(np.float32, (6, 4), elements=st.floats(-10, 10, width=32)),
    uniforms=hnp.arrays(np.float64, 6, elements=st.floats(0, 1, exclude_max=True)),
    masks=hnp.arrays(np.bool_, (6, 4)).filter(lambda m: m.any(1).all()),
    epsilon=st.floats(0, 1),
)
def test_actions_are_allowed_and_rows_do_not_touch_each_other(
    q_values: NDArray[np.float32],
    uniforms: NDArray[np.float64],
    masks: NDArray[np.bool_],
    epsilon: float,
) -> None:
    actions = epsilon_greedy(q_values, epsilon, uniforms, masks)
    assert masks[np.arange(6), actions].all()
    alone = [
        epsilon_greedy(q_values[i : i + 1], epsilon, uniforms[i : i + 1], masks[i : i + 1])[0]
        for i in range(6)
    ]
    assert actions.tolist() == alone
    greedy = np.where(masks, q_values, -np.inf).argmax(1)
    assert ((actions == greedy) | (uniforms < epsilon)).all()


def test_epsilon_0_never_explores_and_epsilon_1_always() -> None:
    q_values = np.repeat([[0.0, 1.0]], 2, axis=0)
    ends = np.array([0.0, math.nextafter(1, 0)])
    assert epsilon_greedy(q_values, 0.0, ends).tolist() == [1, 1]
    assert epsilon_greedy(q_values, 1.0, ends).tolist() == [0, 1]


def test_first_of_equal_values_is_the_best() -> None:
    assert epsilon_greedy(np.zeros((1, 3)), 0.0, np.array([0.5])).tolist() == [0]


def test_what_is_no_probability_and_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"epsilon=1\.5"):
        epsilon_greedy(np.zeros((1, 2)), 1.5, np.zeros(1))
    with pytest.raises(
        ValueError, match=r"\(2,\) and uniforms of shape \(1,\).*\(B, A\) and \(B,\)"
    ):
        epsilon_greedy(np.zeros(2), 0.5, np.zeros(1))


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_share_outside_0_and_1_is_refused_before_it_is_reached(share: float) -> None:
    with pytest.raises(ValueError, match=r"value=.*between 0 and 1"):
        Constant(share)
    with pytest.raises(ValueError, match=r"start=.*between 0 and 1"):
        Linear(share, 0.0, 10)
    with pytest.raises(ValueError, match=r"end=.*between 0 and 1"):
        Linear(1.0, share, 10)
