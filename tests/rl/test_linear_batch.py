from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.linear import DivergenceError, fitted_q, lspi, lstd, lstd_fixed_point, pair_features
from rl.linear_arrays import Floats
from rl.mdp import TabularMDP
from rl.planning import policy_iteration

Batch = tuple[Floats, Floats, Floats, Floats]


def episodes_of(seed: int, count: int = 12, size: int = 3) -> tuple[Batch, Floats]:
    """Return random steps in order, some of which end an episode, some truncated; and ends."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count + 1, size))
    ends = rng.random(count) < 0.3
    ends[-1] = True
    x_next = np.where(ends[:, None], rng.normal(size=(count, size)), x[1:])
    discounts = np.where(ends & (rng.random(count) < 0.5), 0, rng.uniform(0.5, 1, count))
    return (x[:-1], x_next, rng.normal(size=count), discounts), ends


# --- LSTD -------------------------------------------------------------------------------------


def test_lstd_of_hand_worked_steps() -> None:
    # One episode 1 -> 2 -> end, discount 1/2, trace 1/2:  z = 1, then 1/4 + 2 = 9/4
    # A = 1 (1 - 1/2 * 2) + 9/4 * 2 = 9/2;  b = 1 * 3 + 9/4 * 4 = 12.  Twice, and ridge 1:
    # w = 24 / (9 + 1)
    x, x_next = np.array([[1.0], [2], [1], [2]]), np.array([[2.0], [7], [2], [7]])
    rewards, discounts = [3.0, 4, 3, 4], [0.5, 0, 0.5, 0]
    found = lstd(x[:2], x_next[:2], rewards[:2], discounts[:2], trace=0.5)
    np.testing.assert_allclose(found, [12 / 4.5], rtol=1e-15)
    found = lstd(x, x_next, rewards, discounts, trace=0.5, ridge=1.0)
    np.testing.assert_allclose(found, [2.4], rtol=1e-15)


@given(seed=st.integers(0, 2**16), trace=st.sampled_from([0.0, 0.3, 0.9, 1.0]))
def test_lstd_fits_the_lambda_returns_that_it_bootstraps(seed: int, trace: float) -> None:
    (x, x_next, rewards, discounts), ends = episodes_of(seed)
    w = lstd(x, x_next, rewards, discounts, trace=trace, ridge=0.1, ends=ends)
    returns, following = np.zeros(len(x)), 0.0
    for t in reversed(range(len(x))):
        value = x_next[t] @ w
        ahead = value if ends[t] else (1 - trace) * value + trace * following
        following = returns[t] = rewards[t] + discounts[t] * ahead
    np.testing.assert_allclose(x.T @ (returns - x @ w), 0.1 * w, rtol=0, atol=1e-8)


@given(seed=st.integers(0, 2**16), trace=st.sampled_from([0.0, 0.7]))
def test_lstd_of_several_episodes_adds_up_their_equations(seed: int, trace: float) -> None:
    (x, x_next, rewards, discounts), ends = episodes_of(seed)
    order = np.concatenate([np.arange(6, 12), np.arange(6)])
    ends[5] = True  # so that the halves are whole episodes
    steps = x, x_next, rewards, discounts
    there = lstd(*steps, trace=trace, ridge=1.0, ends=ends)
    back = lstd(*(a[order] for a in steps), trace=trace, ridge=1.0, ends=ends[order])
    np.testing.assert_allclose(there, back, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("trace", [0.0, 0.4, 1.0])
def test_lstd_finds_the_fixed_point_of_a_chain(trace: float) -> None:
    # 0 -> 1 -> 2 -> end, so that one episode is the expectation
    chain = TabularMDP(np.eye(3, k=1)[:, None], [[1.0], [-2.0], [3.0]], start=[1.0, 0, 0])
    x = np.array([[1.0, 0], [1, 1], [0, 2]])
    x_next = np.vstack([x[1:], np.zeros((1, 2))])
    found = lstd(x, x_next, [1, -2, 3], [0.9, 0.9, 0], trace=trace)
    np.testing.assert_allclose(found, lstd_fixed_point(chain, [0, 0, 0], x, 0.9, trace), rtol=1e-12)


def test_singular_equations_say_that_a_ridge_helps() -> None:
    x = np.array([[1.0, 2], [2, 4]])
    with pytest.raises(ValueError, match=r"the 2 equations have rank 1 .* give ridge="):
        lstd(x, 0 * x, [1, 1], [0, 0])
    with pytest.raises(ValueError, match="have rank 1"):  # a feature that never occurs
        lstd([[1.0, 0]], [[0.0, 0]], [1], [0])
    assert np.isfinite(lstd(x, 0 * x, [1, 1], [0, 0], ridge=1e-6)).all()


def test_units_of_features_do_not_make_equations_singular() -> None:
    (x, x_next, rewards, discounts), _ = episodes_of(0)
    scales = np.array([1e-12, 1, 1e9])
    np.testing.assert_allclose(
        lstd(x * scales, x_next * scales, rewards, discounts) * scales,
        lstd(x, x_next, rewards, discounts),
        rtol=1e-9,
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"features": np.ones(3)}, r"features of shape \(3,\): expected \(N, d\)"),
        ({"next_features": np.ones((3, 1))}, r"next_features of shape \(3, 1\): expected \(3, 2\)"),
        ({"rewards": np.ones(2)}, r"rewards of shape \(2,\): expected \(3,\)"),
        ({"rewards": [1, np.nan, 1]}, "rewards hold NaN"),
        ({"discounts": [0.5, 1.5, 0]}, r"discounts=1.5 is outside \[0, 1\]"),
        ({"trace": -0.1}, r"trace=-0.1 is outside \[0, 1\]"),
        ({"ridge": -1.0}, "ridge=-1.0: use a finite number of 0 or more"),
        ({"ends": [0, 0, 1]}, "ends of shape .* expected bool"),
    ],
)
def test_lstd_refuses_bad_input(changes: dict[str, object], said: str) -> None:
    good: dict[str, object] = {
        "features": np.eye(3, 2),
        "next_features": np.ones((3, 2)),
        "rewards": np.ones(3),
        "discounts": np.zeros(3),
    }
    with pytest.raises(ValueError, match=said):
        lstd(**(good | changes))  # type: ignore[arg-type]


# --- control ----------------------------------------------------------------------------------


def quarters(seed: int, states: int = 4, actions: int = 3) -> TabularMDP:
    """Return a model whose probabilities are quarters, one of which often ends the episode."""
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(4, np.full(states + 1, 1 / (states + 1)), size=(states, actions))
    return TabularMDP(counts[..., :states] / 4, rng.normal(size=(states, actions)))


def all_transitions(mdp: TabularMDP, discount: float) -> Batch:
    """Return every pair with its outcomes, a row for each quarter of probability."""
    pairs, table = pair_features(np.eye(mdp.states), mdp.actions), np.asarray(mdp.transitions)
    rows = []
    for s, a in itertools.product(range(mdp.states), range(mdp.actions)):
        following = np.repeat(np.arange(mdp.states), (4 * table[s, a]).astype(int))
        for t in [*following.tolist(), *[-1] * (4 - len(following))]:
            rows.append((pairs[s, a], pairs[max(t, 0)], mdp.rewards[s, a], discount * (t >= 0)))
    x, x_next, rewards, discounts = zip(*rows, strict=True)
    return np.array(x), np.array(x_next), np.array(rewards), np.array(discounts)


@pytest.mark.parametrize("learn", [lspi, fitted_q])
@pytest.mark.parametrize("seed", range(5))
def test_batch_control_of_tables_finds_the_best_values(learn: object, seed: int) -> None:
    assert callable(learn)
    mdp = quarters(seed)
    best = policy_iteration(mdp, 0.9)
    found = learn(*all_transitions(mdp, 0.9))
    assert found.converged
    q = found.weights.reshape(mdp.actions, mdp.states).T
    np.testing.assert_allclose(q, best.action_values, rtol=0, atol=1e-6)
    pairs = pair_features(np.eye(mdp.states), mdp.actions)
    np.testing.assert_allclose(found.action_values(pairs), q, rtol=1e-14)
    np.testing.assert_array_equal(found.act(pairs), best.policy)


def test_fitted_q_of_hand_worked_fits() -> None:
    # Features 1 and 2; y = 2 + .5 max(w, 3 w), 1;  w <- (y_1 + 2 y_2) / 5
    # from 0: (2 + 2) / 5 = .8;  then (2 + 1.2 + 2) / 5 = 1.04
    batch = [[1.0], [2.0]], [[[1.0], [3.0]], [[0.0], [0.0]]], [2.0, 1.0], [0.5, 0.0]
    found = fitted_q(*batch, iterations=1)
    np.testing.assert_allclose(found.weights, [0.8], rtol=1e-15)
    assert (found.iterations, found.converged) == (1, False)
    found = fitted_q(*batch, iterations=1, initial_weights=[0.8], ridge=3.0)
    np.testing.assert_allclose(found.weights, [5.2 / 8], rtol=1e-15)
    found = fitted_q(*batch)  # w = (4 + 1.5 w) / 5
    np.testing.assert_allclose(found.weights, [4 / 3.5], rtol=1e-8)


def test_lspi_of_hand_worked_policies() -> None:
    # At w = 0 the first action is greedy, with feature -1:  (1 + .5) w = 3, so w = 2, at which the
    # second is better, with 1:  (1 - .5) w = 3, so w = 6, where it still is.
    batch = [[1.0]], [[[-1.0], [1.0]]], [3.0], [0.5]
    np.testing.assert_allclose(lspi(*batch, iterations=1).weights, [2.0], rtol=1e-15)
    found = lspi(*batch)
    np.testing.assert_allclose(found.weights, [6.0], rtol=1e-15)
    assert (found.iterations, found.converged) == (3, True)
    assert lspi(*batch, initial_weights=[1.0]).iterations == 2


def test_lspi_says_that_policies_take_turns() -> None:
    # w > 0 makes the action 2 greedy, (1 - 2) w = 1, w = -1; that makes -1 greedy, w = 1 / 2
    found = lspi([[1.0]], [[[-1.0], [2.0]]], [1.0], [1.0], iterations=20)
    assert (found.iterations, found.converged) == (20, False)


def test_fitted_q_that_diverges_says_so() -> None:
    # Tsitsiklis & Van Roy 1996 (Sutton & Barto 2018, example 11.1): w <- 6/5 * .99 w
    batch = [[1.0], [2.0]], [[[2.0]], [[2.0]]], [0.0, 0.0], [0.99, 0.99]
    found = fitted_q(*batch, initial_weights=[1.0], iterations=2)
    np.testing.assert_allclose(found.weights, [(1.2 * 0.99) ** 2], rtol=1e-14)
    with pytest.raises(DivergenceError, match="of 5000 left the range of float64"):
        fitted_q(*batch, initial_weights=[1.0], iterations=5000)


@pytest.mark.parametrize("learn", [lspi, fitted_q])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"next_features": np.ones((1, 2))}, r"\(1, 2\): expected \(1, A, 1\)"),
        ({"discounts": [-0.5]}, r"discounts=-0.5 is outside"),
        ({"initial_weights": [1.0, 2]}, r"initial_weights of shape \(2,\): expected \(1,\)"),
        ({"iterations": 0}, "iterations=0: use a whole number of 1 or more"),
        ({"tolerance": -1.0}, "tolerance=-1.0"),
        ({"ridge": np.inf}, "ridge=inf"),
        ({"features": [[0.0]]}, "give ridge="),
    ],
)
def test_batch_control_refuses_bad_input(
    learn: object, changes: dict[str, object], said: str
) -> None:
    assert callable(learn)
    good: dict[str, object] = {
        "features": [[1.0]],
        "next_features": [[[1.0], [0.0]]],
        "rewards": [1.0],
        "discounts": [0.5],
    }
    with pytest.raises(ValueError, match=said):
        learn(**(good | changes))
