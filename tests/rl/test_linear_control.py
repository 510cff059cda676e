from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rl.evaluation import evaluate
from rl.linear import DivergenceError, Features, Fourier, OneHot, TileCoding, semi_gradient_sarsa
from rl.linear_arrays import Floats
from rl.linear_control import LinearControl
from rl.mdp import TabularMDP, grid_world
from rl.planning import value_iteration
from rl.step_sizes import Power

CAR = [-1.2, -0.07], [0.6, 0.07]


def chain() -> TabularMDP:
    """0 -> 1 -> end with a single action; rewards 1 and 2."""
    return TabularMDP([[[0.0, 1.0]], [[0.0, 0.0]]], [[1.0], [2.0]], start=[1.0, 0.0])


def test_sarsa_of_hand_worked_episodes() -> None:
    # x = 1, 2, discount 1/2, step 1/2:  w = 1/2 (1 + 0) = 1/2;  error 2 - 1 = 1: w = 3/2
    # with trace 1/2: z = 1/4 + 2:  w = 1/2 + 1/2 * 9/4 = 13/8
    # second episode, trace 0: error 1 + 3/2 - 3/2 = 1, w = 2;  2 - 4: w = 2 - 2
    def learned(trace: float, episodes: int) -> LinearControl:
        return semi_gradient_sarsa(
            chain(),
            [[1.0], [2.0]],
            discount=0.5,
            episodes=episodes,
            step_size=0.5,
            trace=trace,
        )

    np.testing.assert_array_equal(learned(0.0, 1).weights, [[1.5]], strict=True)
    np.testing.assert_array_equal(learned(0.5, 1).weights, [[1.625]])
    twice = learned(0.0, 2)
    np.testing.assert_array_equal(twice.weights, [[0.0]])
    np.testing.assert_array_equal(twice.episode_returns, [3.0, 3.0], strict=True)
    np.testing.assert_array_equal(twice.episode_lengths, np.array([2, 2]), strict=True)


def test_truncated_episodes_are_bootstrapped() -> None:
    # Cut after one step: error 1 + 1/2 * 2 w - w = 1 at any w
    found = semi_gradient_sarsa(
        chain(),
        [[1.0], [2.0]],
        discount=0.5,
        episodes=4,
        step_size=0.5,
        initial_weights=[[7.0]],
        max_episode_steps=1,
    )
    np.testing.assert_array_equal(found.weights, [[9.0]])
    np.testing.assert_array_equal(found.episode_lengths, [1] * 4)


@pytest.mark.parametrize("trace", [0.0, 0.8])
@pytest.mark.parametrize("hashed_size", [None, 30])
def test_active_features_alone_do_what_all_features_do(
    trace: float, hashed_size: int | None
) -> None:
    coder = TileCoding(*CAR, tilings=4, tiles=4, hashed_size=hashed_size)
    features: list[Features] = [coder, lambda rows: coder(rows)]
    sizes = np.linspace(0.01, 0.1, coder.size)
    found = [
        semi_gradient_sarsa(
            "MountainCar-v0", f, episodes=2, step_size=sizes, trace=trace, seed=1
        ).weights
        for f in features
    ]
    assert np.abs(found[0]).max() > 1
    np.testing.assert_allclose(found[0], found[1], rtol=1e-9, atol=1e-12)


def test_sarsa_of_a_table_finds_the_best_way() -> None:
    grid = grid_world(3, 3, forbidden=[(1, 1)], target=(2, 2))
    found = semi_gradient_sarsa(
        grid,
        OneHot(9),
        discount=0.9,
        episodes=300,
        step_size=0.3,
        epsilon=Power(scale=100.0),
        max_episode_steps=50,
        seed=0,
    )
    best = value_iteration(grid, 0.9)
    actions = found.act(np.arange(9))
    assert (best.action_values[np.arange(9), actions] > best.values - 1e-6).all()
    np.testing.assert_array_equal(found.action_values(np.arange(9)), found.weights.T)


def test_same_seed_gives_the_same_weights() -> None:
    settings: dict[str, Any] = {"episodes": 2, "step_size": 0.02, "trace": 0.5}
    fourier = Fourier(*CAR, order=3)
    found = [
        semi_gradient_sarsa("MountainCar-v0", fourier, seed=seed, **settings).weights
        for seed in (3, 3, np.random.default_rng(3), 4)
    ]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    assert (found[0] != found[3]).any()


def test_result_can_be_evaluated() -> None:
    coder = TileCoding(*CAR)
    found = semi_gradient_sarsa("MountainCar-v0", coder, episodes=1, step_size=0.1, epsilon=0.0)
    assert found.weights.shape == (3, coder.size)
    assert found.weights.dtype == np.float64
    returns = evaluate(found, "MountainCar-v0", episodes=3)
    assert ((returns >= -200) & (returns < 0)).all()
    actions = found.act(np.array([[-0.5, 0.0], [0.3, 0.01]], np.float32))
    assert actions.dtype == np.int64
    q = coder([[-0.5, 0.0]]) @ found.weights.T
    np.testing.assert_allclose(found.action_values(np.array([[-0.5, 0.0]])), q, rtol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mountain_car_is_learned_to_within_20_steps_of_the_best(seed: int) -> None:
    found = semi_gradient_sarsa(
        "MountainCar-v0",
        TileCoding(*CAR, tilings=8, tiles=8),
        episodes=500,
        step_size=0.1 / 8,
        epsilon=0.0,
        trace=0.9,
        seed=seed,
    )
    assert evaluate(found, "MountainCar-v0", episodes=200).mean() > -97.65 - 20
    assert found.episode_returns[-100:].mean() > -97.65 - 20


def test_mountain_car_is_learned_faster_and_faster() -> None:
    found = semi_gradient_sarsa(
        "MountainCar-v0",
        TileCoding(*CAR),
        episodes=20,
        step_size=0.5 / 8,
        epsilon=0.0,
        max_episode_steps=5000,
    )
    first, last = found.episode_lengths[:4], found.episode_lengths[-4:]
    assert first.mean() > 400
    assert last.mean() < 0.5 * first.mean()
    np.testing.assert_array_equal(found.episode_returns, -found.episode_lengths)


def test_weights_that_diverge_are_reported() -> None:
    with pytest.raises(DivergenceError, match=r"update \d+ left the range .* number of tilings"):
        semi_gradient_sarsa("MountainCar-v0", TileCoding(*CAR), episodes=100, step_size=1.0)


def nothing(rows: Floats) -> Floats:
    raise AssertionError("worked before the arguments were checked")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"discount": -0.1}, r"discount=-0.1 is outside \[0, 1\]"),
        ({"episodes": 0}, "episodes=0"),
        ({"trace": 1.1}, r"trace=1.1 is outside \[0, 1\]"),
        ({"epsilon": 1.5}, r"epsilon=1.5 is outside \[0, 1\]"),
        ({"env": "Pendulum-v1"}, "actions of Pendulum-v1 are Box.*, not Discrete"),
    ],
)
def test_numbers_out_of_range_are_refused_before_the_work(
    changes: dict[str, object], said: str
) -> None:
    good: dict[str, object] = {"env": "MountainCar-v0", "episodes": 1, "step_size": 0.1}
    with pytest.raises(ValueError, match=said):
        semi_gradient_sarsa(features=nothing, **(good | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"step_size": 0}, "step_size=0: a step size is a finite number greater than 0"),
        ({"step_size": [0.1]}, r"step_size of shape \(1,\)"),
        (
            {"initial_weights": np.zeros(18)},
            r"initial_weights of shape \(18,\): expected \(3, 18\)",
        ),
        (
            {"features": np.eye(3)},
            "a table of features, but the observations of MountainCar-v0 are",
        ),
        ({"features": OneHot(10)}, r"these features take \(B, 1\)"),
        ({"epsilon": lambda k: -1.0}, r"epsilon\(1\)=-1.0: a probability is 0 or more"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, object], said: str) -> None:
    good: dict[str, object] = {"episodes": 1, "step_size": 0.1}
    good["features"] = TileCoding(*CAR, tilings=2, tiles=2)
    with pytest.raises(ValueError, match=said):
        semi_gradient_sarsa("MountainCar-v0", **(good | changes))  # type: ignore[arg-type]


def test_an_episode_that_never_ends_is_refused() -> None:
    loop = TabularMDP([[[1.0]]], [[0.0]])
    with pytest.raises(ValueError, match="max_episode_steps="):
        semi_gradient_sarsa(loop, OneHot(1), episodes=1, step_size=0.1)
