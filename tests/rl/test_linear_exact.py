from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.linear import (
    bellman_error,
    lstd_fixed_point,
    on_policy_distribution,
    projected_bellman_error,
    projection,
    value_error,
)
from rl.linear_arrays import Floats
from rl.mdp import TabularMDP
from rl.planning import policy_evaluation


def random_mdp(seed: int, *, ending: float = 0.1) -> tuple[TabularMDP, Floats, Floats]:
    """Return a model of 5 states and 2 actions, a policy, and 2 features."""
    rng = np.random.default_rng(seed)
    table = rng.dirichlet(np.ones(5), (5, 2)) * (1 - ending)
    mdp = TabularMDP(table, rng.normal(size=(5, 2)), rng.dirichlet(np.ones(5)))
    return mdp, rng.dirichlet(np.ones(2), 5), rng.normal(size=(5, 2))


def two_states(reward: float = 0.0) -> TabularMDP:
    """Sutton & Barto 2018, example 11.1 and its figure: w -> 2w, and 2w ends half of the time."""
    return TabularMDP([[[0.0, 1.0]], [[0.0, 0.5]]], [[reward], [0.0]], start=[1.0, 0.0])


# --- projection and fixed point ---------------------------------------------------------------


def test_projection_of_hand_worked_values() -> None:
    # x = 1, 2 for values 1, 1 with weights 1, 3:  w = (1 + 2 * 3) / (1 + 4 * 3)
    np.testing.assert_allclose(projection([[1], [2]], [1, 1], [1, 3]), [7 / 13], rtol=1e-15)


@given(seed=st.integers(0, 2**16))
def test_projection_leaves_an_error_that_no_feature_explains(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, values, mu = rng.normal(size=(6, 3)), rng.normal(size=6), rng.random(6)
    found = projection(x, values, mu)
    np.testing.assert_allclose(x.T @ (mu * (x @ found - values)), 0, rtol=0, atol=1e-12)


def test_projection_on_dependent_features_takes_the_least_weights() -> None:
    np.testing.assert_allclose(projection([[1, 1]], [4], [1]), [2, 2], rtol=1e-14)


def test_fixed_point_of_hand_worked_states() -> None:
    # One visit to state 0, two to 1.  A = 1 (1 - 2 g) + 2 * 2 (2 - g) = 9 - 6 g, b = 1, g = 1/2
    x = [[1.0], [2.0]]
    np.testing.assert_allclose(lstd_fixed_point(two_states(1), [0, 0], x, 0.5), [1 / 6], rtol=1e-15)
    # Trace 1: v = (1, 0), so w = 1 / (1 + 2 * 4)
    np.testing.assert_allclose(
        lstd_fixed_point(two_states(1), [0, 0], x, 0.5, 1.0), [1 / 9], rtol=1e-15
    )


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**16),
    trace=st.sampled_from([0.0, 0.5, 0.9]),
    ending=st.sampled_from([0.0, 0.1]),
)
def test_fixed_point_is_the_projection_of_its_lambda_returns(
    seed: int, trace: float, ending: float
) -> None:
    mdp, policy, x = random_mdp(seed, ending=ending)
    w = lstd_fixed_point(mdp, policy, x, 0.9, trace)
    moves = np.einsum("sa,sat->st", policy, np.asarray(mdp.transitions))
    rewards = (policy * mdp.rewards).sum(1)
    values = x @ w
    returns, earned, ahead = np.zeros(5), np.zeros(5), np.eye(5)
    for n in range(300):  # (1 - trace) sum of trace^n G_{n + 1}
        earned = earned + ahead @ rewards
        ahead = 0.9 * ahead @ moves
        returns = returns + (1 - trace) * trace**n * (earned + ahead @ values)
    mu = on_policy_distribution(mdp, policy)
    np.testing.assert_allclose(x @ projection(x, returns, mu), values, rtol=1e-8, atol=1e-9)


@given(seed=st.integers(0, 2**16))
def test_fixed_point_with_trace_one_is_the_projection_of_the_values(seed: int) -> None:
    mdp, policy, x = random_mdp(seed)
    values = policy_evaluation(mdp, policy, 1.0).values
    mu = on_policy_distribution(mdp, policy)
    np.testing.assert_allclose(
        lstd_fixed_point(mdp, policy, x, 1.0, 1.0), projection(x, values, mu), rtol=1e-8, atol=1e-10
    )


@pytest.mark.parametrize("trace", [0.0, 0.5, 1.0])
def test_fixed_point_of_a_table_is_the_values(trace: float) -> None:
    mdp, policy, _ = random_mdp(3, ending=0.0)
    np.testing.assert_allclose(
        lstd_fixed_point(mdp, policy, np.eye(5), 0.9, trace),
        policy_evaluation(mdp, policy, 0.9).values,
        rtol=1e-12,
    )


def test_fixed_point_that_is_not_unique_is_refused() -> None:
    with pytest.raises(ValueError, match=r"have rank 1 .* the fixed point is not unique"):
        lstd_fixed_point(two_states(), [0, 0], [[1, 2], [2, 4]], 0.5)
    loop = TabularMDP([[[1.0]]], [[0.0]])
    with pytest.raises(ValueError, match=r"have rank 0 .* with discount=1 use a policy that ends"):
        lstd_fixed_point(loop, [0], [[1.0]], 1.0)
    with pytest.raises(ValueError, match="discount=1 and trace=1, but from state 0"):
        lstd_fixed_point(loop, [0], [[1.0]], 1.0, 1.0)


# --- errors -----------------------------------------------------------------------------------


def test_errors_of_hand_worked_states() -> None:
    # v = (1, 0), mu = (1, 2) / 3, w = 1, discount 1/2:
    # VE = (0 + 2 * 4) / 3;  delta = (1 + 1 - 1, 1/2 - 2) = (1, -3/2), BE = (1 + 2 * 9/4) / 3
    # Pi delta: slope (1 - 6) / 9, PBE = 25/81 * 9 / 3
    mdp, x, w = two_states(1), [[1.0], [2.0]], [1.0]
    assert value_error(mdp, [0, 0], x, w, 0.5) == pytest.approx(8 / 3, rel=1e-14)
    assert bellman_error(mdp, [0, 0], x, w, 0.5) == pytest.approx(5.5 / 3, rel=1e-14)
    assert projected_bellman_error(mdp, [0, 0], x, w, 0.5) == pytest.approx(25 / 27, rel=1e-14)
    # Weights of states are used as they are.
    mu = [0.0, 2.0]
    assert value_error(mdp, [0, 0], x, w, 0.5, mu) == pytest.approx(8, rel=1e-14)
    assert bellman_error(mdp, [0, 0], x, w, 0.5, mu) == pytest.approx(4.5, rel=1e-14)
    assert projected_bellman_error(mdp, [0, 0], x, w, 0.5, mu) == pytest.approx(4.5, rel=1e-14)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**16), ending=st.sampled_from([0.0, 0.1]))
def test_errors_have_their_minima_where_they_must(seed: int, ending: float) -> None:
    mdp, policy, x = random_mdp(seed, ending=ending)
    w = lstd_fixed_point(mdp, policy, x, 0.9)
    scale = 1 + np.abs(w).max() ** 2
    assert projected_bellman_error(mdp, policy, x, w, 0.9) < 1e-18 * scale
    values = policy_evaluation(mdp, policy, 0.9).values
    mu = on_policy_distribution(mdp, policy)
    best = projection(x, values, mu)
    for change in np.random.default_rng(seed).normal(size=(3, 2)):
        assert value_error(mdp, policy, x, best + change, 0.9) > value_error(
            mdp, policy, x, best, 0.9
        )
    assert value_error(mdp, policy, np.eye(5), values, 0.9) < 1e-20
    assert bellman_error(mdp, policy, np.eye(5), values, 0.9) < 1e-20


@settings(max_examples=30)
@given(seed=st.integers(0, 2**16))
def test_projected_error_is_part_of_the_bellman_error(seed: int) -> None:
    mdp, policy, x = random_mdp(seed)
    w = np.random.default_rng(seed + 1).normal(size=2)
    whole = bellman_error(mdp, policy, x, w, 0.9)
    assert projected_bellman_error(mdp, policy, x, w, 0.9) <= whole * (1 + 1e-12)
    square = np.eye(5)  # features that explain everything leave nothing out
    w = np.random.default_rng(seed).normal(size=5)
    assert projected_bellman_error(mdp, policy, square, w, 0.9) == pytest.approx(
        bellman_error(mdp, policy, square, w, 0.9), rel=1e-10
    )


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", [value_error, bellman_error, projected_bellman_error])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"policy": [0, 0, 0]}, r"policy of shape \(3,\)"),
        ({"policy": [[0.5], [1.0]]}, "sums to 0.5"),
        ({"features": [[1.0]]}, r"features of shape \(1, 1\): expected \(2, d\)"),
        ({"weights": [1.0, 1.0]}, r"weights of shape \(2,\): expected \(1,\)"),
        ({"discount": 1.5}, r"discount=1.5 is outside \[0, 1\]"),
        ({"state_weights": [1.0, -1.0]}, "state_weights lie between -1 and 1"),
        ({"state_weights": [0.0, 0.0]}, "state_weights lie between 0 and 0"),
        ({"mdp": "CartPole-v1"}, "has no model"),
    ],
)
def test_errors_refuse_bad_input(measure: object, changes: dict[str, object], said: str) -> None:
    assert callable(measure)
    good: dict[str, object] = {
        "mdp": two_states(),
        "policy": [0, 0],
        "features": [[1.0], [2.0]],
        "weights": [1.0],
        "discount": 0.5,
    }
    with pytest.raises(ValueError, match=said):
        measure(**(good | changes))


def test_fixed_point_and_projection_refuse_bad_input() -> None:
    with pytest.raises(ValueError, match=r"trace=2.0 is outside \[0, 1\]"):
        lstd_fixed_point(two_states(), [0, 0], [[1.0], [2.0]], 0.5, 2.0)
    with pytest.raises(ValueError, match="discount=-1 is outside"):
        lstd_fixed_point(two_states(), [0, 0], [[1.0], [2.0]], -1)
    with pytest.raises(ValueError, match="features hold NaN"):
        lstd_fixed_point(two_states(), [0, 0], [[1.0], [np.nan]], 0.5)
    with pytest.raises(ValueError, match=r"values of shape \(3,\): expected \(2,\)"):
        projection([[1.0], [2.0]], [1, 2, 3], [1, 1])
    with pytest.raises(ValueError, match=r"state_weights of shape \(1,\)"):
        projection([[1.0], [2.0]], [1, 2], [1])
