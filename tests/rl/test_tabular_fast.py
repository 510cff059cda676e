"""The compiled loop against the readable one, and which of them is chosen."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numba
import numpy as np
import pytest
from numpy.typing import NDArray

import rl.monte_carlo as mc
import rl.temporal_difference as td
from rl.mdp import TabularMDP
from rl.step_sizes import Constant, Power
from rl.tabular_fast import Model, compiled
from rl.tabular_schedules import Schedule
from rl.tabular_tasks import Task, open_task, run
from rl.tabular_worlds import Env, GymWorld, shows_all

EVERYWHERE = TabularMDP(  # three states, two actions, every outcome possible, endings too
    [[[0.2, 0.3, 0.4], [0.5, 0.1, 0.2]], [[0.1, 0.6, 0.1], [0.3, 0.3, 0.3]], [[0.2, 0.2, 0.2]] * 2],
    [[1.0, -1.0], [0.5, 2.0], [-0.5, 0.25]],
    [0.5, 0.25, 0.25],
    max_episode_steps=5,
)
ENVS: dict[str, Callable[[], gymnasium.Env[Any, Any]]] = {
    "FrozenLake8x8": partial(gymnasium.make, "FrozenLake8x8-v1", max_episode_steps=30),
    "Taxi": partial(gymnasium.make, "Taxi-v4", is_rainy=True),
    "CliffWalking": partial(gymnasium.make, "CliffWalking-v1", max_episode_steps=40),
    "model": EVERYWHERE.to_env,
}
SIZES = Power(0.5, 0.6)
FALLING = td.Linear(1.0, 0.1, steps=200)
CONTROL: dict[str, Callable[..., td.ControlResult]] = {
    "sarsa": partial(td.sarsa, step_size=SIZES, epsilon=FALLING),
    "expected_sarsa": partial(td.expected_sarsa, step_size=Constant(0.3)),
    "q_learning": partial(td.q_learning, step_size=SIZES, epsilon=Power(0.9, 0.3)),
    "double_q_learning": td.double_q_learning,
    "n_step_sarsa": partial(td.n_step_sarsa, n=3),
    "n_step_tree_backup": partial(td.n_step_tree_backup, n=3, epsilon=FALLING),
    "n_step_q_sigma": partial(td.n_step_q_sigma, n=2, sigma=0.4),
    "sarsa_lambda": partial(td.sarsa_lambda, trace=0.8),
    "true_online_sarsa_lambda": partial(td.sarsa_lambda, trace=0.8, kind="true online"),
    "watkins_q_lambda": partial(td.watkins_q_lambda, trace=0.8, kind="replacing"),
    "dyna_q": partial(td.dyna_q, planning_steps=2),
    "prioritized_sweeping": partial(td.prioritized_sweeping, planning_steps=2),
    "mc_epsilon_greedy": partial(mc.mc_epsilon_greedy, epsilon=0.5),
    "mc_epsilon_greedy_every": partial(mc.mc_epsilon_greedy, visit="every", step_size=0.1),
}
PREDICTION: dict[str, Callable[..., NDArray[np.float64]]] = {
    "td0": td.td0,
    "n_step_td": partial(td.n_step_td, n=3, step_size=SIZES),
    "td_lambda": partial(td.td_lambda, trace=0.7),
    "true_online_td_lambda": partial(td.td_lambda, trace=0.7, kind="true online"),
    "mc_prediction": mc.mc_prediction,
    "mc_prediction_every": partial(mc.mc_prediction, visit="every", step_size=SIZES),
}


class Hiding(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Changes nothing; but a wrapper that is not known might, so the readable loop runs."""


def uniform(env: gymnasium.Env[Any, Any]) -> NDArray[np.float64]:
    states, actions = env.observation_space.n, env.action_space.n  # type: ignore[attr-defined]
    return np.full((states, actions), 1.0 / actions)


def lopsided(env: gymnasium.Env[Any, Any]) -> NDArray[np.float64]:
    weights = np.arange(1.0, uniform(env).shape[1] + 1)
    return np.tile(weights / weights.sum(), (len(uniform(env)), 1))


def same(compiled_result: td.ControlResult, readable: td.ControlResult) -> None:
    assert len(readable.episode_returns) > 0
    assert np.ptp(readable.action_values) > 0
    for field in ("action_values", "policy", "episode_returns", "episode_lengths"):
        np.testing.assert_array_equal(getattr(compiled_result, field), getattr(readable, field))


# --- equal results for equal draws --------------------------------------------------------------


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize("method", CONTROL)
def test_compiled_control_equals_the_readable_loop_bit_for_bit(method: str, env: str) -> None:
    learn = partial(CONTROL[method], discount=0.9, steps=600, initial_value=0.5, seed=7)
    same(learn(ENVS[env]()), learn(Hiding(ENVS[env]())))


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize("method", PREDICTION)
def test_compiled_prediction_equals_the_readable_loop_bit_for_bit(method: str, env: str) -> None:
    policy = lopsided(ENVS[env]())
    learn = partial(
        PREDICTION[method], policy=policy, discount=0.9, episodes=12, initial_value=0.5, seed=7
    )
    readable = learn(Hiding(ENVS[env]()))
    assert np.ptp(readable) > 0
    np.testing.assert_array_equal(learn(ENVS[env]()), readable)


@pytest.mark.parametrize("importance", ["ordinary", "weighted"])
def test_compiled_importance_sampling_equals_the_readable_loop(importance: str) -> None:
    env = ENVS["model"]
    learn = partial(
        mc.mc_prediction,
        policy=lopsided(env()),
        behaviour=uniform(env()),
        importance=importance,
        discount=0.9,
        episodes=30,
        seed=7,
    )
    np.testing.assert_array_equal(learn(env()), learn(Hiding(env())))


@pytest.mark.parametrize("method", [td.q_learning, partial(td.n_step_tree_backup, n=2)])
def test_compiled_off_policy_control_equals_the_readable_loop(
    method: Callable[..., td.ControlResult],
) -> None:
    env = ENVS["Taxi"]
    learn = partial(method, discount=0.9, episodes=2, behaviour=lopsided(env()), seed=7)
    same(learn(env()), learn(Hiding(env())))


@pytest.mark.parametrize("method", ["mc_basic", "mc_exploring_starts"])
def test_compiled_methods_that_begin_anywhere_equal_the_readable_loop(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = partial(getattr(mc, method), EVERYWHERE, discount=0.9, episodes=20, seed=7)
    fast = learn()
    monkeypatch.setattr("rl.tabular_tasks.compiled", lambda loop: loop)
    same(fast, learn())


def test_schedule_objects_equal_the_same_functions_of_step_and_visits() -> None:
    objects = td.q_learning(
        EVERYWHERE, discount=0.9, steps=500, step_size=SIZES, epsilon=FALLING, seed=1
    )
    functions = td.q_learning(
        EVERYWHERE,
        discount=0.9,
        steps=500,
        step_size=lambda step, visits: 0.5 / visits**0.6,
        epsilon=lambda step, visits: 1.0 + (0.1 - 1.0) * min(step / 200, 1.0),
        seed=1,
    )
    same(objects, functions)


def test_blackjack_of_the_model_has_the_values_of_the_game() -> None:
    # Stick on 20 and 21. Example 5.1's policy; both sides are samples: 4 standard errors apart.
    policy = np.ones(704, np.int64)
    policy[[(total * 11 + d) * 2 + u for total in (20, 21) for d in range(11) for u in (0, 1)]] = 0
    game = gymnasium.make("Blackjack-v1")
    learn = partial(mc.mc_prediction, policy=policy, discount=1.0, seed=3)
    fast, slow = learn(game, episodes=200_000), learn(Hiding(game), episodes=20_000)
    twenty = (20 * 11 + 10) * 2
    # the return of a 20 against a ten has deviation .8; it is dealt in 2.8% of all games
    assert abs(fast[twenty] - slow[twenty]) < 4 * 0.8 / np.sqrt(0.028 * 20_000)
    natural = (21 * 11 + 10) * 2 + 1
    assert abs(fast[natural] - slow[natural]) < 4 * 0.5 / np.sqrt(0.018 * 20_000)
    assert fast.shape == slow.shape == (704,)


# --- which loop runs ----------------------------------------------------------------------------


def world_of(env: Env, step_size: Schedule = 0.1, epsilon: Schedule = 0.1) -> object:
    return open_task(
        env,
        discount=1.0,
        steps=1,
        step_size=step_size,
        epsilon=epsilon,
        seed=0,
        max_episode_steps=9,
    ).world


@pytest.mark.parametrize(
    "env", ["Taxi-v4", "Blackjack-v1", gymnasium.make("CliffWalking-v1"), EVERYWHERE]
)
def test_a_model_at_hand_is_compiled_over(env: Env) -> None:
    assert isinstance(world_of(env), Model)


def test_what_the_model_does_not_know_of_brings_the_readable_loop() -> None:
    lake = "FrozenLake-v1"
    assert isinstance(world_of(Hiding(gymnasium.make(lake))), GymWorld)
    assert isinstance(world_of(gymnasium.make(lake, render_mode="ansi")), GymWorld)
    assert isinstance(world_of(gymnasium.make("Taxi-v4", fickle_passenger=True)), GymWorld)
    assert isinstance(world_of(lake, step_size=lambda step, visits: 1 / visits), GymWorld)
    assert isinstance(world_of(lake, epsilon=lambda step, visits: 1 / visits), GymWorld)
    assert not shows_all(gymnasium.wrappers.TransformReward(gymnasium.make(lake), abs))


def count_loop(task: Task) -> int:
    """Count to the budget."""
    total = 0
    while total < task.steps:
        total += 1
    return total


def test_loops_compile_also_where_no_folder_takes_the_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    really = numba.njit

    def nowhere(*functions: object, cache: bool = False) -> object:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return really(*functions)

    monkeypatch.setattr(numba, "njit", nowhere)
    task = open_task(EVERYWHERE, discount=1.0, steps=3, step_size=0.1, seed=0, max_episode_steps=9)
    compiled.cache_clear()  # type: ignore[attr-defined]
    assert run(count_loop, task) == 3
    compiled.cache_clear()  # type: ignore[attr-defined]
