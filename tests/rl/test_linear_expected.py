from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.linear import (
    GTD2,
    TD,
    TDC,
    DivergenceError,
    EmphaticTD,
    ExpectedMethod,
    expected_updates,
    lstd_fixed_point,
    on_policy_distribution,
    projected_bellman_error,
    projection,
    value_error,
)
from rl.linear_arrays import Floats
from rl.mdp import TabularMDP

METHODS: list[ExpectedMethod] = [TD(), TDC(), GTD2(), EmphaticTD()]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)


def random_task(seed: int, ending: float) -> tuple[TabularMDP, Floats, Floats, Floats]:
    """Return a model of 4 states and 2 actions, target, behaviour and 2 features."""
    rng = np.random.default_rng(seed)
    table = rng.dirichlet(np.ones(4), (4, 2)) * (1 - ending)
    mdp = TabularMDP(table, rng.normal(size=(4, 2)), rng.dirichlet(np.ones(4)))
    target, behaviour = rng.dirichlet(np.ones(2), 4), rng.dirichlet(np.full(2, 5.0), 4)
    return mdp, target, behaviour, rng.normal(size=(4, 2))


def two_states() -> TabularMDP:
    """1 -> 2 with reward 1, 2 ends or goes on by halves."""
    return TabularMDP([[[0.0, 1.0]], [[0.0, 0.5]]], [[1.0], [0.0]], start=[1.0, 0.0])


def baird() -> tuple[TabularMDP, Floats, Floats, Floats]:
    """Return Baird's counterexample (Sutton & Barto 2018, figure 11.1), target, behaviour, x.

    Action 0 (dashed) goes to one of the six upper states, 1 (solid) to the lower one.
    """
    table = np.zeros((7, 2, 7))
    table[:, 0, :6] = 1 / 6
    table[:, 1, 6] = 1
    x = np.zeros((7, 8))
    x[np.arange(6), np.arange(6)], x[:6, 7] = 2, 1
    x[6, 6], x[6, 7] = 1, 2
    target, behaviour = np.tile([0.0, 1.0], (7, 1)), np.tile([6 / 7, 1 / 7], (7, 1))
    return TabularMDP(table, np.zeros((7, 2))), target, behaviour, x


BAIRD_START = [1.0, 1, 1, 1, 1, 1, 10, 1]


# --- one update -------------------------------------------------------------------------------


def test_updates_of_hand_worked_states() -> None:
    # x = (1, 2), state weights (1, 1), discount 1/2, w = 1, h = 0 at first.
    # delta = (1 + 1/2 * 2 - 1, 1/2 * 1/2 * 2 - 2) = (1, -3/2);  sum of delta x = 1 - 3 = -2
    # TD, step 1/2: w = 0.  Then delta = (1, 0): + 1/2 -> 1/2
    # TDC, h step 1/4: w = 0, h = -1/2.  Then delta = (1, 0), and of discount x' (x h):
    #   1 * (-1/2) + 1/2 * (-1) = -1:  w = 0 + 1/2 (1 + 1) = 1
    # GTD2: w = 1, h = -1/2.  Then (x - discount x') (x h): (1 - 1) (-1/2) + (2 - 1/2) (-1) = -3/2:
    #   w = 1 - 3/4
    # Emphatic: f = (1, (1 + 1/2) / (1 - 1/4)) = (1, 2): 1 - 6 = -5, w = -3/2
    #   then delta = (1, 9/4) of values (-3/2, -3):  (1 - 3/2 + 3/2, -3/4 + 3), 1 + 2 * 2 * 9/4 = 10
    def after(method: ExpectedMethod, sweeps: int) -> Floats:
        return expected_updates(
            two_states(),
            [[1.0], [2.0]],
            target=[0, 0],
            behaviour=[0, 0],
            discount=0.5,
            method=method,
            step_size=0.5,
            secondary_step_size=0.25,
            sweeps=sweeps,
            initial_weights=[1.0],
            state_weights=[1.0, 1.0],
        )

    found = {type(method).__name__: [after(method, n)[0] for n in (0, 1, 2)] for method in METHODS}
    assert found == {
        "TD": [1, 0, 0.5],
        "TDC": [1, 0, 1],
        "GTD2": [1, 1, 0.25],
        "EmphaticTD": [1, -1.5, 3.5],
    }


def literal_sweep(
    method: ExpectedMethod,
    mdp: TabularMDP,
    target: Floats,
    behaviour: Floats,
    x: Floats,
    d: Floats,
    w: Floats,
    h: Floats,
) -> tuple[Floats, Floats]:
    """Return the directions as sums over states, actions, next states and ratios; discount .9."""
    toward, secondary = np.zeros_like(w), np.zeros_like(h)
    table = np.asarray(mdp.transitions)
    if isinstance(method, EmphaticTD):  # expected follow-on traces, summed up over time
        moves, passed_on = np.einsum("sa,sat->st", target, table), d
        for _ in range(400):
            passed_on = 0.9 * moves.T @ passed_on
            d = d + passed_on
    for s, a in itertools.product(range(4), range(2)):
        rho = target[s, a] / behaviour[s, a]
        outcomes = [(t, table[s, a, t], x[t]) for t in range(4)]
        outcomes.append((-1, 1 - table[s, a].sum(), np.zeros(2)))  # the end
        for _, chance, x_next in outcomes:
            p = d[s] * behaviour[s, a] * chance * rho
            delta = mdp.rewards[s, a] + 0.9 * x_next @ w - x[s] @ w
            secondary += p * (delta - x[s] @ h) * x[s]
            if isinstance(method, TDC):
                toward += p * (delta * x[s] - 0.9 * x_next * (x[s] @ h))
            elif isinstance(method, GTD2):
                toward += p * (x[s] - 0.9 * x_next) * (x[s] @ h)
            else:
                toward += p * delta * x[s]
    return toward, secondary


@every_method
@pytest.mark.parametrize("ending", [0.0, 0.2])
@settings(max_examples=30)
@given(seed=st.integers(0, 2**16))
def test_updates_are_the_expectation_over_all_outcomes(
    method: ExpectedMethod, ending: float, seed: int
) -> None:
    mdp, target, behaviour, x = random_task(seed, ending)
    start = np.array([0.5, -1.0])
    w, h, d = start, np.zeros(2), on_policy_distribution(mdp, behaviour)
    for _ in range(3):
        toward, secondary = literal_sweep(method, mdp, target, behaviour, x, d, w, h)
        w, h = w + 0.1 * toward, h + 0.3 * secondary
    found = expected_updates(
        mdp,
        x,
        target=target,
        behaviour=behaviour,
        discount=0.9,
        method=method,
        step_size=0.1,
        secondary_step_size=0.3,
        sweeps=3,
        initial_weights=start,
    )
    np.testing.assert_allclose(found, w, rtol=1e-9, atol=1e-11)
    np.testing.assert_array_equal(start, [0.5, -1.0])


# --- where they lead --------------------------------------------------------------------------


@every_method
def test_tables_settle_at_the_values_whatever_the_weights_of_states(method: ExpectedMethod) -> None:
    mdp, target, behaviour, _ = random_task(0, 0.2)
    w = expected_updates(
        mdp,
        np.eye(4),
        target=target,
        behaviour=behaviour,
        discount=0.9,
        method=method,
        step_size=0.5,
        secondary_step_size=1.0,
        sweeps=5000,
        initial_weights=np.zeros(4),
    )
    assert value_error(mdp, target, np.eye(4), w, 0.9) < 1e-18


@pytest.mark.parametrize("method", METHODS[:3], ids=lambda m: type(m).__name__)
def test_on_policy_methods_settle_at_the_fixed_point(method: ExpectedMethod) -> None:
    mdp, target, _, x = random_task(1, 0.0)
    w = expected_updates(
        mdp,
        x,
        target=target,
        behaviour=target,
        discount=0.9,
        method=method,
        step_size=0.2,
        secondary_step_size=0.5,
        sweeps=20_000,
        initial_weights=[1.0, 1.0],
    )
    np.testing.assert_allclose(w, lstd_fixed_point(mdp, target, x, 0.9), rtol=1e-9)


def test_emphatic_td_settles_where_its_own_weights_project() -> None:
    mdp, target, behaviour, x = random_task(2, 0.0)
    d = on_policy_distribution(mdp, behaviour)
    w = expected_updates(
        mdp,
        x,
        target=target,
        behaviour=behaviour,
        discount=0.9,
        method=EmphaticTD(),
        step_size=0.02,
        sweeps=20_000,
        initial_weights=[1.0, 1.0],
    )
    moves = np.einsum("sa,sat->st", target, np.asarray(mdp.transitions))
    f = np.linalg.solve(np.eye(4) - 0.9 * moves.T, d)
    backup = (target * mdp.rewards).sum(1) + 0.9 * moves @ x @ w
    np.testing.assert_allclose(projection(x, backup, f), w, rtol=1e-9)


def bairds_weights(method: ExpectedMethod, sweeps: int, step_size: float) -> Floats:
    mdp, target, behaviour, x = baird()
    return expected_updates(
        mdp,
        x,
        target=target,
        behaviour=behaviour,
        discount=0.99,
        method=method,
        step_size=step_size,
        secondary_step_size=0.05,
        sweeps=sweeps,
        initial_weights=BAIRD_START,
    )


def test_td_diverges_in_bairds_counterexample() -> None:
    # Sutton & Barto 2018, figure 11.2 (right): all weights grow without bound.
    sizes = [np.abs(bairds_weights(TD(), n, 0.01)).max() for n in (1000, 2000, 4000)]
    assert sizes[0] > 100
    assert sizes[1] > 5 * sizes[0]
    assert sizes[2] > 5 * sizes[1]
    with pytest.raises(DivergenceError, match=r"sweep \d+ of 1000000 left the range of float64"):
        bairds_weights(TD(), 1_000_000, 0.5)


def test_gradient_methods_settle_in_bairds_counterexample() -> None:
    mdp, target, _, x = baird()
    uniform = np.full(7, 1 / 7)
    first = projected_bellman_error(mdp, target, x, BAIRD_START, 0.99, uniform)
    for method in (TDC(), GTD2()):
        w = bairds_weights(method, 20_000, 0.005)
        assert projected_bellman_error(mdp, target, x, w, 0.99, uniform) < 1e-3 * first
        assert np.abs(w).max() < 10


def test_tdc_of_bairds_counterexample_is_suttons_and_bartos_figure() -> None:
    # Figure 11.5 (right), expected TDC with 0.005 and 0.05: after 1000 sweeps the root of PBE is
    # near 0, that of VE still near 2 (their errors are unweighted means over the 7 states).
    mdp, target, _, x = baird()
    w, uniform = bairds_weights(TDC(), 1000, 0.005), np.full(7, 1 / 7)
    assert projected_bellman_error(mdp, target, x, w, 0.99, uniform) ** 0.5 < 0.1
    assert value_error(mdp, target, x, w, 0.99, uniform) ** 0.5 == pytest.approx(2, abs=0.3)


def test_emphatic_td_learns_the_values_in_bairds_counterexample() -> None:
    mdp, target, _, x = baird()
    w = bairds_weights(EmphaticTD(), 20_000, 0.03)
    assert value_error(mdp, target, x, w, 0.99, np.full(7, 1 / 7)) < 1e-6


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": [0, 0, 0]}, r"target: got a policy of shape \(3,\)"),
        ({"behaviour": [[0.5], [1.0]]}, r"behaviour: policy\[0\] sums to 0.5"),
        ({"features": np.ones((3, 1))}, r"features of shape \(3, 1\): expected \(2, d\)"),
        ({"features": [[1.0], [np.inf]]}, "features hold NaN or infinity"),
        ({"discount": 1.01}, r"discount=1.01 is outside \[0, 1\]"),
        ({"step_size": 0.0}, "step_size=0.0: a step size is a finite number greater than 0"),
        ({"step_size": -1.0}, "step_size=-1.0"),
        ({"secondary_step_size": -1.0}, "secondary_step_size=-1.0"),
        ({"method": TDC()}, "secondary_step_size=0.0: a step size is a finite number greater"),
        ({"method": GTD2()}, "secondary_step_size=0.0"),
        ({"sweeps": -1}, "sweeps=-1: use a whole number of 0 or more"),
        ({"initial_weights": [1.0, 2.0]}, r"initial_weights of shape \(2,\): expected \(1,\)"),
        ({"state_weights": [1.0]}, r"state_weights of shape \(1,\): expected \(2,\)"),
        ({"state_weights": [-1.0, 1.0]}, "state_weights lie between -1 and 1"),
        ({"mdp": "MountainCar-v0"}, "has no model"),
    ],
)
def test_bad_input_is_refused_before_the_work(changes: dict[str, object], said: str) -> None:
    good: dict[str, object] = {
        "mdp": two_states(),
        "features": [[1.0], [2.0]],
        "target": [0, 0],
        "behaviour": [0, 0],
        "discount": 0.5,
        "method": TD(),
        "step_size": 0.5,
        "sweeps": 10**9,
        "initial_weights": [0.0],
    }
    with pytest.raises(ValueError, match=said):
        expected_updates(**(good | changes))  # type: ignore[arg-type]


def test_an_action_that_only_the_target_takes_is_refused() -> None:
    mdp, target, behaviour, x = random_task(0, 0.0)
    behaviour[2], target[2] = [1, 0], [0.5, 0.5]
    settings = {
        "target": target,
        "behaviour": behaviour,
        "discount": 0.9,
        "method": TD(),
        "step_size": 0.1,
        "sweeps": 1,
        "initial_weights": np.zeros(2),
    }
    with pytest.raises(ValueError, match="in state 2 the target takes action 1, but behaviour"):
        expected_updates(mdp, x, **settings)  # type: ignore[arg-type]
    settings["state_weights"] = [1.0, 1, 0, 1]  # where no weight is, nothing needs correction
    assert np.isfinite(expected_updates(mdp, x, **settings)).all()  # type: ignore[arg-type]


def test_emphasis_without_limit_is_refused() -> None:
    loop = TabularMDP([[[1.0]]], [[0.0]])
    with pytest.raises(ValueError, match="from state 0 the target never ends the episode, so its"):
        expected_updates(
            loop,
            [[1.0]],
            target=[0],
            behaviour=[0],
            discount=1.0,
            method=EmphaticTD(),
            step_size=0.1,
            sweeps=1,
            initial_weights=[0.0],
        )
